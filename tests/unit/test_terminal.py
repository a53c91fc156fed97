"""What is printed is text, wherever it comes from, and no run ends because it cannot be printed."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import pytest

from pipeline.runtime.display import show_summary
from pipeline.runtime.terminal import Output, make_console
from tests.conftest import ROOT, Cli
from tests.doubles.simulated import Simulated
from tests.pictures import encoded, gradient

VALUES = ("[/red]", "[red]stop", ":dog:", "a\x1b[2Jb", "café")
SHOWN = ("[/red]", "[red]stop", ":dog:", r"a\x1b[2Jb", "café")


def test_nothing_that_comes_from_data_is_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    counts = {"total": 1, "detected": 1, "no_object": 0, "failed": 1, "not_reached": 0, "answered": 0}
    for value, shown in zip(VALUES, SHOWN, strict=True):
        manifest = {
            "summary": {value: 3},
            "job": {"summary": f"{value}?", "label": value},
            "counts": {"images": counts, "detections": counts},
            "failures": [{"stage": "ask", "reason": value, "rows": 1}],
            "accuracy": {value: {"share": 0.5, "right": 1, "rows": 2, "no_answer": 0, "without_truth": 0}},
            "several_frames": 0,
            "starts": [],
            "reason": value,
        }
        show_summary(make_console(), manifest)
        printed = capsys.readouterr().out
        lines = (
            f"right {shown}: 50.0%",
            f"3  {shown}",
            f"{shown}?",
            f"1 {shown} detections",
            f"stopped: {shown}",
            f"ask: {shown} (1 rows)",
        )
        for line in lines:
            assert line in printed


class Broken(io.StringIO):
    """A pipe without a reader."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


def test_what_cannot_be_printed_is_dropped() -> None:
    output = Output(Broken())
    assert output.write("lost") == 4
    output.flush()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["ascii", "/dev/full", "closed", "nobody"])
def test_a_run_ends_well_whatever_becomes_of_what_it_prints(
    cli: Cli, simulated: Simulated, tmp_path: Path, target: str
) -> None:
    """A standard output that takes no such character, one on a full disk, none at all, and a pipe that nobody reads."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(encoded(gradient(320, 240)))
    redirection = {"/dev/full": "> /dev/full", "closed": ">&- 2>&-", "nobody": "| true; exit ${PIPESTATUS[0]}"}
    environment = {**simulated.settings, "PYTHONIOENCODING": "ascii"} if target == "ascii" else simulated.settings
    shell = ("bash", "-c", f'"$@" {redirection.get(target, "")}', "--")
    arguments = ["--images", str(tmp_path / "photos"), "--output", str(tmp_path / "runs"), "--run-name", "chiens-très"]
    done = cli(*arguments, env=environment, prefix=shell)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "runs" / "chiens-très" / "run.json").read_text())
    assert manifest["status"] == "complete"
    if target == "ascii":
        assert f"chiens-tr\\xe8s{os.sep}report.html" in done.stdout


def test_no_console_of_the_product_reads_markup() -> None:
    """Only `make_console` and consoles that say so; those that nobody sees do not matter."""
    unseen = re.compile(r"\bConsole\((?!.*(markup=False|StringIO\(\)|quiet=True)).*\)")
    made = {
        f"{path.relative_to(ROOT)}:{number}"
        for folder in ("pipeline", "scripts", "samples", "examples")
        for path in (ROOT / folder).rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if unseen.search(line)
    }
    assert not made
