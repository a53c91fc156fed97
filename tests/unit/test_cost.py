"""How the tests are told apart by cost, and which of them run in one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.side_by_side import group

TESTS = """
import subprocess, sys, time, pytest
BURN = "import time\\nend = time.process_time() + 0.6\\nwhile time.process_time() < end: pass"
def test_computes(): exec(BURN)
def test_lets_compute(): subprocess.run([sys.executable, "-c", BURN])
def test_waits(): time.sleep(0.6)
@pytest.mark.slow
def test_marked(): subprocess.run([sys.executable, "-c", BURN])
"""
LIMITED = """
import sys, pytest
from tests import cost
cost.MOST_CPU_S = 0.3
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", sys.argv[1], sys.argv[1]], [cost]))
"""


def test_computing_long_without_the_mark_fails_and_waiting_does_not(tmp_path: Path) -> None:
    (tmp_path / "test_costs.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow: it takes long\n")
    done = subprocess.run([sys.executable, "-c", LIMITED, tmp_path], cwd=ROOT, capture_output=True, text=True)
    failed = {line.split("::")[1].split(" ")[0] for line in done.stdout.splitlines() if line.startswith("FAILED ")}
    assert failed == {"test_computes", "test_lets_compute"}, done.stdout
    assert "2 failed, 2 passed" in done.stdout


@pytest.mark.parametrize(
    ("nodeid", "expected"),
    [
        ("tests/stack/test_main_job.py::test_a[x/y::z]", "tests/stack"),
        ("tests/services/test_offline.py::test_a", "tests/services/test_offline.py"),
        ("tests/unit/test_run.py::test_a[b::c]", "tests/unit/test_run.py"),
        ("tests/clocked/test_sweep.py::test_a[1]", "tests/clocked/test_sweep.py::test_a[1]"),
        ("tests/clocked/test_ladder.py::test_a[1]", "tests/clocked/test_ladder.py"),
    ],
)
def test_what_runs_in_one_process(nodeid: str, expected: str) -> None:
    assert group(nodeid) == expected
