"""A run that needs more open files than the system allows is refused before it begins."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

CODE = """
import resource
from pipeline.runtime.open_files import OTHER_FILES, allow_open_files
allow_open_files(400)
assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 400 + OTHER_FILES
"""


@pytest.mark.parametrize(
    ("limits", "refused"),
    [("-Sn 128", False), ("-n 256", True), ("-n 600", False)],
    ids=["the process may raise it", "the system allows fewer", "enough"],
)
def test_the_limit_is_raised_or_named(limits: str, refused: bool) -> None:
    done = subprocess.run(
        ["bash", "-c", f"ulimit {limits} && exec {sys.executable} -c '{CODE}'"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode != 0) is refused, done.stderr
    if refused:
        assert "SPOTTER_MODEL_CONCURRENCY are 400 together" in done.stderr
        assert "ulimit -n 500" in done.stderr
