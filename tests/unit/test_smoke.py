"""What the smoke test takes for a complaint, of the services and of the job, and for left behind."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest

from scripts.commands import smoke
from scripts.docker import host as docker_host
from scripts.docker import project as compose_project
from scripts.settings import StackSettings

KNOWN = "WARNING 11-22 06:54:26 [cpu.py:224] Triton is not installed. triton-cpu is expected on x86 CPUs."
# On a CPU with AVX2 alone.
NO_AVX512 = (
    "(Worker pid=93) WARNING 11-28 12:06:55 [utils.py:597] Failed to create oneDNN linear, fallback to torch linear. "
    "Exception: could not create a primitive descriptor for the matmul primitive. Run workload with environment "
    "variable ONEDNN_VERBOSE=all to get additional diagnostic information."
)
DYING = "ERROR 11-22 06:56:50 [async_llm.py:906] AsyncLLM output_handler failed."
SLOW = "WARNING 11-25 14:31:50 [x.py:1] [shutdown] Executor: workers still running after grace period; sending SIGTERM"
NEW = "WARNING 11-22 06:54:26 [new.py:1] The sky is falling."


def test_what_is_known_to_be_harmless_is_no_complaint() -> None:
    assert smoke.complaints(["INFO all is well", KNOWN, NO_AVX512]) == []
    assert smoke.complaints([KNOWN, NEW]) == [NEW]


def test_a_stopping_server_may_say_more() -> None:
    assert smoke.complaints([DYING, SLOW]) == [DYING, SLOW]
    assert smoke.complaints([f"INFO {smoke.STOPPING}", DYING, SLOW, NEW]) == [NEW]


@pytest.mark.parametrize(
    "line",
    [
        "(EngineCore pid=1) WARNING 11-22 06:54:26 [new.py:1] The sky is falling.",
        "CRITICAL: out of sky",
        '{"timestamp":"2026-11-25T14:08:47Z","level":"WARN","target":"mosec","fields":{"message":"queue is full"}}',
        '{"timestamp": "2026-11-25T14:08:47Z ", "level": "ERROR", "fields": {"message": "worker exited"}}',
        "/spotter/x.py:3: UserWarning: a tensor was copied",
        "/spotter/x.py:3: FutureWarning: `sky` is deprecated",
        "RuntimeError: the sky is falling",
        "torch.OutOfMemoryError: CUDA out of memory.",
        "error: the detector service stopped: a worker died (see above)",
        "warning: weights of 3 GB on a disk of 4 GB",
        "Traceback (most recent call last):",
        "Fatal Python error: Segmentation fault",
        "[W1125 14:09:13.187534227 utils.cpp:68] no such node",
        "E1125 14:09:12.683000 21486 torch/_library/new.py:53] no such kernel",
        "thread 'tokio-runtime-worker' panicked at src/main.rs:3:5:",
    ],
)
def test_complaints_in_the_words_of_every_program(line: str) -> None:
    assert smoke.complaints([line]) == [line]


@pytest.mark.parametrize(
    "line",
    [
        '{"timestamp":"2026-11-25T14:08:54Z","level":"INFO","target":"mosec:124","fields":{"message":"is running"}}',
        "INFO 11-25 14:09:03 [core.py:133] Initializing an engine with config: log_errors=True, error_limit=3",
        'INFO:     127.0.0.1:36140 - "POST /v1/chat/completions HTTP/1.1" 200 OK',
        "78 dog detections: 78 answered, 0 failed",
        "rows:   runs/errors/detections.parquet",
    ],
)
def test_what_only_speaks_of_errors_is_no_complaint(line: str) -> None:
    assert smoke.complaints([line]) == []


@pytest.mark.parametrize("line", ["x.py:3: DeprecationWarning: soon gone", "Traceback (most recent call last):"])
def test_a_job_that_complains_fails_the_smoke_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """Also one that ends with exit code 0."""
    monkeypatch.setattr(smoke.Smoke, "operate", lambda *_: f"26 images\n{line}\nreport: x\n")
    with pytest.raises(smoke.SmokeFailed, match="the job complains") as raised:
        smoke.Smoke(StackSettings(state=tmp_path), "process").job()
    assert line in str(raised.value)


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> smoke.Smoke:
    """A pass whose commands all say that they did something, on a host without Docker."""
    monkeypatch.setattr(smoke.Smoke, "operate", lambda *_: "stopped vllm, detector\n")
    monkeypatch.setattr(docker_host, "answers", lambda: False)
    made = smoke.Smoke(StackSettings(state=tmp_path), "process")
    made.output.mkdir(parents=True)
    return made


@contextmanager
def process(one: smoke.Smoke) -> Iterator[str]:
    """A process that a command of this pass has started."""
    with subprocess.Popen(["sleep", "60"], env={**os.environ, **one.variables}) as child:
        yield f"process {child.pid}"
        child.kill()


@contextmanager
def port(one: smoke.Smoke) -> Iterator[str]:
    """A listener where a service of this pass was."""
    with closing(socket.create_server(("127.0.0.1", one.ports["STACK_DETECTOR_PORT"]))):
        yield f"port {one.ports['STACK_DETECTOR_PORT']}"


@contextmanager
def at_docker(one: smoke.Smoke, place: str, found: object, shown: str) -> Iterator[str]:
    """Something of this pass's project at Docker, of which `place` tells."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docker_host, "answers", lambda: True)
        patch.setattr(compose_project, "left_over", lambda project: ([], []))
        patch.setattr(compose_project, "volumes", lambda project: [])
        patch.setattr(compose_project, place, lambda project: found if project == one.project else None)
        yield shown


def container(one: smoke.Smoke) -> AbstractContextManager[str]:
    return at_docker(one, "left_over", (["d0d0"], []), "container d0d0")


def network(one: smoke.Smoke) -> AbstractContextManager[str]:
    return at_docker(one, "left_over", ([], ["inside"]), "network inside")


def volume(one: smoke.Smoke) -> AbstractContextManager[str]:
    return at_docker(one, "volumes", ["hub-cache"], "volume hub-cache")


@contextmanager
def state(one: smoke.Smoke) -> Iterator[str]:
    """A file in the state's folder that `clean` should have removed."""
    (one.state / "api_key").touch()
    yield str(one.state / "api_key")


@pytest.mark.parametrize("leave", [process, port, container, network])
def test_what_down_leaves_fails_the_smoke_test(
    one: smoke.Smoke, leave: Callable[[smoke.Smoke], AbstractContextManager[str]]
) -> None:
    """At once: the step that cleans up would take it down."""
    assert one.down() == "stopped vllm, detector"
    with leave(one) as left, pytest.raises(smoke.SmokeFailed, match=rf"^left behind: {left}$"):
        one.down()


@pytest.mark.parametrize("leave", [process, port, container, network, volume, state])
def test_what_clean_leaves_fails_the_smoke_test(
    one: smoke.Smoke, leave: Callable[[smoke.Smoke], AbstractContextManager[str]]
) -> None:
    with leave(one) as left, pytest.raises(smoke.SmokeFailed, match=rf"^left behind: {left}$"):
        one.nothing_left()


def test_the_smoke_test_leaves_no_state(one: smoke.Smoke) -> None:
    for name in smoke.KEPT:
        (one.state / name).mkdir(exist_ok=True)
    assert one.nothing_left().startswith("no process, ")
    assert not one.state.exists()
