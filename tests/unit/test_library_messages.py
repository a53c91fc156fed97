"""C libraries write to file descriptor 2 as they like: the log gets it, the terminal does not."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.runtime import library_messages
from tests.conftest import ROOT, Cli
from tests.doubles.simulated import Simulated
from tests.pictures import encoded, gradient

IN_A_PROCESS = """
import logging, os, sys
from pipeline.runtime import library_messages
logging.basicConfig(filename=sys.argv[1], level="INFO", format="%(message)s")
with library_messages.logged():
    os.write(2, b"first\\nsecond \\xff\\n")
    print("from Python", file=sys.stderr)
    os.write(2, b"no end")
os.write(2, b"after\\n")
"""


def test_what_libraries_write_goes_to_the_log_and_pythons_own_to_the_terminal(tmp_path: Path) -> None:
    command = [sys.executable, "-c", IN_A_PROCESS, str(tmp_path / "log")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "from Python\nafter\n"
    said = [f"a library says: {line}" for line in ("first", "second \\xff", "no end")]
    assert (tmp_path / "log").read_text().splitlines() == said


def test_a_flood_is_bounded_and_waits_for_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """More than a pipe holds, written in one piece by a thread that holds the interpreter's lock."""
    with caplog.at_level(logging.INFO), library_messages.logged():
        for _ in range(40):
            with open(os.dup(2), "wb", buffering=0) as stderr:  # noqa: PTH123 a descriptor
                stderr.write(b"odd tag\n" * 4000)
    texts = [record.getMessage() for record in caplog.records]
    assert 0 < len(texts) <= library_messages.MOST_LINES + 1
    assert set(texts[:-1]) <= {"a library says: odd tag", "a library says: odd", "a library says: od"}


def test_libtiffs_complaints_are_in_the_log_of_a_run(simulated: Simulated, tmp_path: Path, cli: Cli) -> None:
    """A TIFF whose compressed data is damaged: its row has the reason, and stderr stays empty."""
    (tmp_path / "photos").mkdir()
    data = bytearray(encoded(gradient(), "TIFF", compression="tiff_adobe_deflate"))
    for place in range(2000, len(data) - 1000, 50):
        data[place] ^= 255
    (tmp_path / "photos" / "a.tif").write_bytes(data)
    (tmp_path / "photos" / "b.jpg").write_bytes(encoded(gradient()))
    done = cli("--images", str(tmp_path / "photos"), "--output", str(tmp_path / "runs"), env=simulated.settings)
    assert (done.stderr, "ZIPDecode" in done.stdout) == ("", False)
    assert "a library says: ZIPDecode" in (tmp_path / "runs" / "latest" / "run.log").read_text()
