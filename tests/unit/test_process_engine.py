"""The process engine with small services: start, know again, notice a death, stop the whole family."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from scripts.settings import NotReady, PortTaken, ServiceDied, StackSettings
from scripts.stack import warmup
from scripts.stack.process_engine import ProcessEngine, session_members
from scripts.stack.service import Service
from tests.ports import free_port

# Answers 200 on every path, with a child of its own that would outlive it.
SERVER = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
class Ok(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Ok).serve_forever()
"""


def service(code: str = SERVER, *, port: int | None = None, variables: tuple[tuple[str, str], ...] = ()) -> Service:
    port = port or free_port()
    return Service(
        name="toy",
        environment="operator",
        command=(sys.executable, "-c", code, str(port)),
        variables=variables,
        port=port,
        ready_url=f"http://127.0.0.1:{port}/",
        stop_grace_s=5,
        inputs=(),
    )


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[ProcessEngine]:
    engine = ProcessEngine(StackSettings(state=tmp_path))
    yield engine
    engine.stop("toy", grace_s=0)


Wait = Callable[..., None]


@pytest.fixture
def wait(engine: ProcessEngine) -> Wait:
    def do(toy: Service, timeout_s: float = 20) -> None:
        warmup.wait(engine, [toy], timeout_s, Console(file=io.StringIO()))

    return do


@pytest.mark.slow
def test_started_known_again_and_stopped_with_its_children(engine: ProcessEngine, wait: Wait, tmp_path: Path) -> None:
    toy = service()
    engine.start(toy)
    wait(toy)
    known = ProcessEngine(StackSettings(state=tmp_path)).started("toy")  # as the next command sees it
    assert known is not None
    assert len(session_members(known)) == 2
    assert ProcessEngine(StackSettings(state=tmp_path)).stop("toy", grace_s=5)
    assert session_members(known) == []
    assert engine.running("toy") is None
    assert not engine.stop("toy", grace_s=5)


@pytest.mark.slow
def test_children_of_a_killed_service_are_stopped(engine: ProcessEngine, wait: Wait) -> None:
    toy = service()
    engine.start(toy)
    wait(toy)
    known = engine.started("toy")
    assert known is not None
    os.kill(known.pid, signal.SIGKILL)
    engine.children["toy"].wait(5)
    assert engine.running("toy") is None
    (orphan,) = session_members(known)
    engine.stop("toy", grace_s=5)
    assert not orphan.is_running()


@pytest.mark.slow
def test_a_service_that_ignores_sigterm_is_killed(engine: ProcessEngine, wait: Wait) -> None:
    toy = service("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVER)
    engine.start(toy)
    wait(toy)
    started = time.monotonic()
    engine.stop("toy", grace_s=0.5)
    assert 0.5 <= time.monotonic() - started < 10
    assert engine.running("toy") is None


def test_a_death_is_told_at_once_with_the_last_lines(engine: ProcessEngine, wait: Wait) -> None:
    toy = service("print('one'); print('the cause'); raise SystemExit(7)")
    engine.start(toy)
    started = time.monotonic()
    with pytest.raises(ServiceDied, match=r"(?s)toy .* 7 .*the cause\n.*toy\.log"):
        wait(toy, timeout_s=600)
    assert time.monotonic() - started < 10


@pytest.mark.slow
def test_a_death_is_told_at_once_also_of_a_service_that_was_ready(
    engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another is waited for: it is killed when it has become ready."""
    monkeypatch.setattr(warmup.Start, "tell_ready", lambda start, console: engine.children["toy"].kill())
    first, second = service(SERVER), replace(service("import time; time.sleep(600)"), name="slow")
    try:
        for each in (first, second):
            engine.start(each)
        with pytest.raises(ServiceDied, match=r"toy .* -9 "):
            warmup.wait(engine, [first, second], 60, Console(file=io.StringIO(), width=200))
    finally:
        engine.stop("slow", grace_s=0)


def test_a_service_whose_own_checks_fail_is_told_with_cause_and_remedy(engine: ProcessEngine) -> None:
    class Checked(ProcessEngine):
        def unhealthy(self, name: str) -> str | None:
            return "HTTP 500: OSError: [Errno 28]\n No space left on device"

    toy = service()
    checked = Checked(engine.settings)
    checked.start(toy)
    with pytest.raises(ServiceDied) as raised:
        warmup.wait(checked, [toy], 60, Console(file=io.StringIO()))
    for part in (
        "toy ",
        "HTTP 500: OSError: [Errno 28] No space left on device",
        "disk space",
        "toy.log",
    ):
        assert part in str(raised.value)


def test_ctrl_c_while_a_service_is_started_leaves_none_that_nobody_knows(
    engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(psutil.Process):
        def create_time(self) -> float:  # the last thing asked before the process is written down
            if engine.started("toy") is None:
                os.kill(os.getpid(), signal.SIGINT)
            return super().create_time()

    monkeypatch.setattr("scripts.stack.process_engine.psutil.Process", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.start(service())
    known = engine.started("toy")
    assert known is not None
    assert psutil.pid_exists(known.pid)
    assert engine.stop("toy", grace_s=1)
    assert not psutil.pid_exists(known.pid)


@pytest.mark.slow
def test_never_ready_ends_at_the_limit(engine: ProcessEngine, wait: Wait) -> None:
    toy = service("import time; time.sleep(600)")
    engine.start(toy)
    with pytest.raises(NotReady, match=r"toy: .* 1 s.*STACK_START_TIMEOUT_S"):
        wait(toy, timeout_s=1)


def test_a_taken_port_is_named_with_its_owner_and_remedy(engine: ProcessEngine) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"port {port} .*process {os.getpid()}.*STACK_TOY_PORT"):
            engine.start(service(port=port))
    assert engine.started("toy") is None


def test_a_missing_program(engine: ProcessEngine) -> None:
    toy = service()
    missing = Service(**{name: getattr(toy, name) for name in toy.__slots__} | {"command": ("/no/such/program",)})
    with pytest.raises(ServiceDied, match=r"/no/such/program .*No such file"):
        engine.start(missing)


def test_another_process_with_the_same_id_is_not_ours(engine: ProcessEngine, tmp_path: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        engine.records.mkdir(parents=True)
        born = psutil.Process(stranger.pid).create_time()
        (engine.records / "toy.json").write_text(f'{{"pid": {stranger.pid}, "born": {born + 60}, "fingerprint": ""}}')
        assert engine.running("toy") is None
        assert not engine.stop("toy", grace_s=1)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_changed_settings_change_the_fingerprint(engine: ProcessEngine) -> None:
    port = free_port()
    plain = service(port=port)
    assert plain.fingerprint == service(port=port).fingerprint
    assert plain.fingerprint != service(port=port, variables=(("A", "1"),)).fingerprint


def test_the_last_log_but_one_is_kept(engine: ProcessEngine) -> None:
    for word in ("first", "second"):
        engine.start(service(f"print({word!r})"))
        engine.children["toy"].wait(10)
    assert engine.last_lines("toy") == "second"
    assert engine.log("toy").with_suffix(".log.1").read_text() == "first\n"
