"""Detector services that tests start for themselves: special settings, other weights, starts that fail, stops."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]

# A start with torch takes 10 s on a quiet machine and has taken 25 s on a busy one, nearly all of it imports.
START_S = 300.0
STOP_S = 120.0
POLL_S = 0.1


class DetectorProcess:
    """A detector service in a session of its own, with its own log and, unless told otherwise, a free port."""

    def __init__(self, python: Path, log: Path, **variables: str) -> None:
        """Start the service; `variables` are set beside the environment of the test run."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [python, "-m", "services.detector"],
                cwd=ROOT,
                env={**os.environ, "DETECTOR_PORT": str(self.port), **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        """Everything that the service has printed."""
        return self._log.read_text(errors="replace")

    def wait_until_ready(self) -> None:
        """Wait for a 200 from the service; its end, or `START_S`, is a failure that shows the log."""
        deadline = time.monotonic() + START_S
        while not self.answers():
            assert self.process.poll() is None, f"the service ended with {self.process.returncode}:\n{self.log}"
            assert time.monotonic() < deadline, f"the service is not ready after {START_S} s:\n{self.log}"
            time.sleep(POLL_S)

    def answers(self) -> bool:
        """Whether the service says that it is ready."""
        try:
            with urllib.request.urlopen(self.url, timeout=10) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait(self) -> int:
        """The exit code, once the service has ended."""
        return self.process.wait(START_S)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the main process, as an operator's stop does."""
        self.process.send_signal(number)

    def workers(self) -> list[psutil.Process]:
        """The service's child processes."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def close(self) -> None:
        """Stop the service and make sure that nothing of it is left."""
        family: list[psutil.Process] = []
        if self.process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                family = self.workers()
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_S)
            self.process.kill()
            self.process.wait()
        _, left = psutil.wait_procs(family, timeout=STOP_S)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.fixture(scope="session")
def detector_url(detector_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A detector service with default settings, for all tests that change nothing of it."""
    service = DetectorProcess(detector_python, tmp_path_factory.mktemp("detector") / "detector.log")
    try:
        service.wait_until_ready()
        yield service.url
    finally:
        service.close()


Launch = Callable[..., DetectorProcess]
Start = Callable[..., str]


@pytest.fixture
def launch_detector(detector_python: Path, torch_python: Path, tmp_path: Path) -> Iterator[Launch]:
    """Start a service with `DETECTOR_*` variables and do not wait for it; it is stopped after the test.

    As in the stack, an ONNX model has an environment without torch.
    """
    with contextlib.ExitStack() as started:

        def launch(**variables: str) -> DetectorProcess:
            log = tmp_path / f"detector-{len(list(tmp_path.glob('detector-*.log')))}.log"
            python = detector_python if variables.get("DETECTOR_MODEL", ".onnx").endswith(".onnx") else torch_python
            service = DetectorProcess(python, log, **variables)
            started.callback(service.close)
            return service

        yield launch


@pytest.fixture
def start_detector(launch_detector: Launch) -> Start:
    """Start a service with `DETECTOR_*` variables and give its address once it is ready."""

    def start(**variables: str) -> str:
        service = launch_detector(**variables)
        service.wait_until_ready()
        return service.url

    return start
