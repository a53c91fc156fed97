"""Container tests are left out where there is no Docker, but not where `.ci/run` has started one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.stack.container_stack import REQUIRED

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("variables", "code", "said"), [({}, 0, "left out"), ({REQUIRED: "1"}, 4, "cannot run")])
def test_without_an_engine(tmp_path: Path, variables: dict[str, str], code: int, said: str) -> None:
    fake = tmp_path / "docker"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    inherited = {name: value for name, value in os.environ.items() if name != REQUIRED}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "--collect-only", "tests/stack/test_stack_lifecycle.py"],
        cwd=ROOT,
        env={**inherited, **variables, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == code, done.stdout
    assert said in done.stdout


def test_ci_requires_them_once_it_has_an_engine() -> None:
    started = (ROOT / ".ci" / "run").read_text().split("if scripts/docker_engine.sh start; then")[1].split("else")[0]
    assert f"export {REQUIRED}=1" in started
