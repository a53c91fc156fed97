"""The wait for a service: estimates, causes of death, and an answer as the only proof of being ready."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from pipeline.settings import Settings
from scripts.settings import NotReady, ServiceDied, StackSettings
from scripts.stack import first_request, warmup
from scripts.stack.process_engine import ProcessEngine
from scripts.stack.service import Service
from scripts.stack.start_history import StartHistory
from tests.doubles.simulated import Simulated
from tests.ports import free_port

LOG = Path(__file__).parents[1] / "logs" / "vllm-cold.txt"

SERVER = """
import http.server, pathlib, sys
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *words):
        pass
print(pathlib.Path({log!r}).read_text(), flush=True)
http.server.HTTPServer(("127.0.0.1", {port}), Health).serve_forever()
"""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[ProcessEngine]:
    """A process engine of its own; what it started is stopped."""
    made = ProcessEngine(StackSettings(state=tmp_path / "state"))
    yield made
    made.stop("vllm", grace_s=1)


@pytest.fixture
def service() -> Callable[[str], Service]:
    """Make a service named vllm out of Python code, which may print a real start's log and listen on its port."""

    def make(code: str = SERVER) -> Service:
        port = free_port()
        return Service(
            name="vllm",
            environment="operator",
            command=(sys.executable, "-c", code.format(log=str(LOG), port=port)),
            variables=(),
            port=port,
            ready_url=f"http://127.0.0.1:{port}/health",
            stop_grace_s=1.0,
            inputs=(Path(__file__).with_name("test_warmup.py"),),
        )

    return make


class Waited:
    """What a wait printed."""

    def __init__(self) -> None:
        self.output = io.StringIO()
        self.console = Console(file=self.output, width=200)


def test_ready_means_that_a_request_was_answered(engine: ProcessEngine, service: Callable[..., Service]) -> None:
    waited, asked = Waited(), []

    def ask(asked_service: Service) -> None:
        time.sleep(0.3)
        asked.append(asked_service.name)

    toy = service()
    engine.start(toy)
    warmup.wait(engine, [toy], 20, waited.console, ask=ask)
    assert asked == ["vllm"]
    assert "vllm: ready after" in waited.output.getvalue()


@pytest.mark.slow
def test_the_wait_itself_costs_little(engine: ProcessEngine, service: Callable[..., Service]) -> None:
    """In CPU time, which other programs do not change: the host belongs to the service that is starting."""
    slow = service("import time; time.sleep(3)" + SERVER)
    engine.start(slow)
    others = {thread.id for thread in psutil.Process().threads()} - {threading.get_native_id()}

    def cpu_s() -> float:
        """Of this process, but for threads that other tests have left."""
        left = (each for each in psutil.Process().threads() if each.id in others)
        return time.process_time() - sum(each.user_time + each.system_time for each in left)

    before, begin = cpu_s(), time.monotonic()
    warmup.wait(engine, [slow], 50, Waited().console, ask=lambda _: None)
    assert cpu_s() - before < 0.2 * (time.monotonic() - begin)


def test_a_refused_first_request_ends_the_wait(engine: ProcessEngine, service: Callable[..., Service]) -> None:
    def ask(_: Service) -> None:
        raise NotReady("vllm is up, but does not answer this job")

    toy = service()
    engine.start(toy)
    with pytest.raises(NotReady):
        warmup.wait(engine, [toy], 20, Waited().console, ask=ask)


def test_a_death_during_the_first_request_is_told_with_the_cause(
    engine: ProcessEngine, service: Callable[..., Service]
) -> None:
    def ask(_: Service) -> None:
        process = engine.running("vllm")
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        engine.children["vllm"].wait(5)
        raise NotReady("Connection reset by peer")

    toy = service()
    engine.start(toy)
    with pytest.raises(ServiceDied, match=r"vllm .* -9 "):
        warmup.wait(engine, [toy], 20, Waited().console, ask=ask)


def test_a_death_is_told_within_a_second_with_cause_and_remedy(
    engine: ProcessEngine, service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what is slept until then: a busy machine takes its time besides."""
    slept: list[float] = []
    sleep = time.sleep

    def noted(seconds: float) -> None:
        slept.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", noted)
    toy = service(
        "print('(Worker pid=3) ERROR 11-22 06:54:35 [multiproc_executor.py:953] torch.OutOfMemoryError: CUDA out of '"
        "'memory. Tried to allocate 2.00 GiB.')\n"
        "print('RuntimeError: Engine core initialization failed. See root cause above.')\nraise SystemExit(1)"
    )
    engine.start(toy)
    engine.children["vllm"].wait(10)
    slept.clear()
    with pytest.raises(ServiceDied) as failure:
        warmup.wait(engine, [toy], 600, Waited().console)
    assert sum(slept) < 1.0
    assert "torch.OutOfMemoryError: CUDA out of memory" in str(failure.value)
    assert "`gpu-memory-utilization`" in str(failure.value)


@pytest.mark.slow
def test_a_server_that_gave_up_is_told_before_it_ends(engine: ProcessEngine, service: Callable[..., Service]) -> None:
    """vLLM's engine says why it cannot start; its server then takes seconds to notice."""
    toy = service(
        "import time\n"
        "print('(EngineCore pid=3) ERROR 11-22 06:54:35 [core.py:1510] EngineCore failed to start.')\n"
        "print('(EngineCore pid=3) ERROR 11-22 06:54:35 [core.py:1510] torch.OutOfMemoryError: CUDA out of memory.', "
        "flush=True)\ntime.sleep(60)"
    )
    engine.start(toy)
    with pytest.raises(ServiceDied) as failure:
        warmup.wait(engine, [toy], 50, Waited().console)
    assert engine.is_running("vllm")
    assert "vllm " in str(failure.value)
    assert "torch.OutOfMemoryError: CUDA out of memory" in str(failure.value)


def test_history_estimates_and_a_slower_start_is_seen(tmp_path: Path) -> None:
    history = StartHistory(tmp_path)
    assert history.usual_s("process/vllm/cpu") is None
    for seconds in (40.0, 44.0, 42.0):
        assert history.add("process/vllm/cpu", "f", seconds, {"imports": 30.0}) is None
    assert history.add("process/vllm/l4", "f", 400.0, {}) is None  # another preset is another matter
    assert history.usual_s("process/vllm/cpu") == 42.0
    slower = history.add("process/vllm/cpu", "f", 70.0, {"imports": 60.0})
    assert slower is not None
    assert "slower than usual (42 s), most of it in phase imports: 60 s, usually 30 s" in slower
    last = json.loads((tmp_path / "starts.jsonl").read_text().splitlines()[-1])
    assert last["phases"] == {"imports": 60.0}


def test_a_broken_line_of_the_history_is_passed_over(tmp_path: Path) -> None:
    history = StartHistory(tmp_path)
    history.add("k", "f", 10.0, {})
    with history.file.open("a") as file:
        file.write('{"half": \n')
    assert history.usual_s("k") == 10.0


def test_a_start_is_written_down_and_one_that_was_ready_is_not(
    engine: ProcessEngine, service: Callable[..., Service], tmp_path: Path
) -> None:
    toy = service()
    engine.start(toy)
    began = time.monotonic()
    for _ in range(2):  # the second time it is up already
        warmup.wait(engine, [toy], 20, Waited().console, state=tmp_path, ask=lambda _: None)
    (start,) = StartHistory(tmp_path).read("process/vllm/test_warmup")
    assert 0 < start.ready_s <= time.monotonic() - began
    assert sum(start.phases.values()) == pytest.approx(start.ready_s, abs=0.1)
    assert "first request" in start.phases


def simulated_service(simulated: Simulated, name: str) -> Service:
    """The simulated servers as a service that the wait can ask."""
    port = int(simulated.url.rsplit(":", 1)[1])
    url = f"{simulated.url}/health"
    return Service(name, "operator", (), (), port, url, 1.0, ())


def test_the_first_request_is_the_jobs_own(simulated: Simulated) -> None:
    first_request.ask(simulated_service(simulated, "vllm"), Settings())
    (body,) = simulated.model.bodies
    assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "text"]
    assert body["response_format"]["type"] == "json_schema"
    first_request.ask(simulated_service(simulated, "detector"), Settings())
    assert simulated.detector.requests == 1


def test_an_answer_outside_the_schema_is_not_ready(simulated: Simulated) -> None:
    simulated.answer = lambda crop, request: "Sure! It is a poodle."
    with pytest.raises(NotReady, match=r"vllm .*JSON"):
        first_request.ask(simulated_service(simulated, "vllm"), Settings())
