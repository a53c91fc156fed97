"""The wait for a service: phases, estimates, causes of death, and an answer as the only proof of being ready."""

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

from scripts.settings import StackError
from scripts.stack import first_request, warmup
from scripts.stack.process_engine import ProcessEngine
from scripts.stack.services import Service
from scripts.stack.start_history import StartHistory
from scripts.vllm.startup_causes import find_cause, remedy_for
from scripts.vllm.startup_phases import Phases, summary
from tests.doubles.simulated import Simulated
from tests.ports import free_port

# The lines of vLLM 0.32 that open phases, shortened, with others between them that must not mislead.
STARTUP = (
    "W1122 06:26:37.451000 19959 torch/_library/triton.py:53] Triton not available",
    "(APIServer pid=1) INFO 11-22 06:26:38 [api_utils.py:286] non-default args: {'model': 'tiny'}",
    "(APIServer pid=1) WARNING 11-22 06:26:54 [vllm.py:1703] Enforce eager set, disabling torch.compile, CUDAGraphs",
    "(APIServer pid=1) INFO 11-22 06:26:54 [base.py:280] Multi-modal warmup completed in 0.161s",
    "(EngineCore pid=2) INFO 11-22 06:27:03 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: x",
    "Loading safetensors checkpoint shards:   0% Completed | 0/1 [00:00<?, ?it/s]",
    "(Worker pid=3) INFO [gpu_model_runner.py:1] Model loading took 13.3 GiB and 20 seconds",
    "(Worker pid=3) INFO [backends.py:1] Dynamo bytecode transform time: 6.55 s",
    "(EngineCore pid=2) INFO [kv_cache_utils.py:2327] GPU KV cache size: 62,000 tokens",
    "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  10%|#         | 2/20",
    "(EngineCore pid=2) INFO [core.py:402] init engine (profile, create kv cache, warmup model) took 40.25 s",
)

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
    made = ProcessEngine(tmp_path / "state")
    yield made
    made.stop("vllm", grace_s=1)


@pytest.fixture
def service(tmp_path: Path) -> Callable[[str], Service]:
    """Make a service named vllm out of Python code, which finds vLLM's log lines and its port in it."""
    log = tmp_path / "startup.log"
    log.write_text("\n".join(STARTUP))

    def make(code: str = SERVER) -> Service:
        port = free_port()
        return Service(
            name="vllm",
            environment="operator",
            command=(sys.executable, "-c", code.format(log=str(log), port=port)),
            variables=(),
            port=port,
            port_variable="STACK_VLLM_PORT",
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


def test_phases_are_told_in_order_as_the_log_grows() -> None:
    phases = Phases()
    for second in range(1, len(STARTUP) + 1):
        phases.read("\n".join(STARTUP[:second]), float(second))
    names = [name for name, _ in phases.opened]
    assert names == [
        "imports",
        "configuration",
        "engine process",
        "model set-up",
        "weights",
        "profile",
        "compile",
        "KV cache",
        "capture",
        "API",
    ]
    seconds = phases.seconds(20.0)
    assert sum(seconds.values()) == pytest.approx(20.0)
    assert summary(seconds).endswith("slowest: API")


def test_a_phase_that_is_over_does_not_come_back() -> None:
    phases = Phases()
    phases.read("\n".join(STARTUP), 1.0)
    phases.read("\n".join([*STARTUP, "Loading safetensors checkpoint shards: 100%"]), 2.0)
    assert phases.current == "API"


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
        raise StackError("vllm is up, but does not answer this job")

    toy = service()
    engine.start(toy)
    with pytest.raises(StackError, match="does not answer this job"):
        warmup.wait(engine, [toy], 20, Waited().console, ask=ask)


def test_a_death_during_the_first_request_is_told_with_the_cause(
    engine: ProcessEngine, service: Callable[..., Service]
) -> None:
    def ask(_: Service) -> None:
        process = engine.running("vllm")
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        engine.children["vllm"].wait(5)
        raise StackError("Connection reset by peer")

    toy = service()
    engine.start(toy)
    with pytest.raises(StackError, match="vllm ended with exit code -9 before the stack was ready"):
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
    with pytest.raises(StackError) as failure:
        warmup.wait(engine, [toy], 600, Waited().console)
    assert sum(slept) < 1.0
    assert "The cause: torch.OutOfMemoryError: CUDA out of memory" in str(failure.value)
    assert "What helps: lower `gpu-memory-utilization`" in str(failure.value)


def test_a_server_that_gave_up_is_told_before_it_ends(engine: ProcessEngine, service: Callable[..., Service]) -> None:
    """vLLM's engine says why it cannot start; its server then takes seconds to notice."""
    toy = service(
        "import time\n"
        "print('(EngineCore pid=3) ERROR 11-22 06:54:35 [core.py:1510] EngineCore failed to start.')\n"
        "print('(EngineCore pid=3) ERROR 11-22 06:54:35 [core.py:1510] torch.OutOfMemoryError: CUDA out of memory.', "
        "flush=True)\ntime.sleep(60)"
    )
    engine.start(toy)
    with pytest.raises(StackError) as failure:
        warmup.wait(engine, [toy], 50, Waited().console)
    assert engine.is_running("vllm")
    assert "vllm cannot start: it gave up before the stack was ready" in str(failure.value)
    assert "The cause: torch.OutOfMemoryError: CUDA out of memory" in str(failure.value)


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


CAUSES = {
    # As vLLM 0.32 wrote them, on this project's own wrong starts and from its source.
    "(EngineCore pid=1) ERROR 11-22 06:55:05 [core.py:1510] ValueError: To serve at least one request with the model's "
    "max seq len (1024), (0.0 GiB KV cache is needed, which is larger than the available KV cache memory (0.0 GiB).": (
        "lower `max-model-len`"
    ),
    "safetensors._safetensors_rust.SafetensorError: Error while deserializing header": "is damaged",
    "(Worker pid=1) ERROR 11-22 06:54:35 [multiproc_executor.py:953] ImportError: \n"
    "(Worker pid=1) ERROR 11-22 06:54:35 [multiproc_executor.py:953] TimmWrapperModel requires the timm library but": (
        "install timm"
    ),
    "vllm serve: error: unrecognized arguments: --max-model-length 64": "make preflight",
    "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder": "make fetch",
    "ValueError: Free memory on device (3/22 GiB) on startup is less than desired GPU memory utilization (0.9)": (
        "end what else uses the GPU"
    ),
    "OSError: [Errno 28] No space left on device: '/cache/models'": "free some disk space",
    "OSError: [Errno 30] Read-only file system: '/cache/models'": "can be written",
    "OSError: [Errno 98] Address already in use": "STACK_VLLM_PORT",
    "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
    "  Value error, User-specified max_model_len (4096) is greater than the derived": "lower `max-model-len`",
}


@pytest.mark.parametrize(("log", "remedy"), CAUSES.items(), ids=list(CAUSES.values()))
def test_a_known_cause_gets_its_remedy(log: str, remedy: str) -> None:
    after = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    cause = find_cause(f"INFO something\n{log}\n{after}")
    assert cause is not None
    assert remedy in (cause.remedy or "")
    assert "Engine core" not in cause.message


def test_an_unknown_cause_is_told_in_its_own_words() -> None:
    cause = find_cause("Traceback\nValueError: something new\nRuntimeError: Engine core initialization failed.")
    assert cause is not None
    assert (cause.message, cause.remedy) == ("ValueError: something new", None)
    assert find_cause("INFO all is well") is None


def simulated_service(simulated: Simulated, name: str) -> Service:
    """The simulated servers as a service that the wait can ask."""
    port = int(simulated.url.rsplit(":", 1)[1])
    url = f"{simulated.url}/health"
    return Service(name, "operator", (), (), port, "STACK_VLLM_PORT", url, 1.0, ())


def test_the_first_request_is_the_jobs_own(simulated: Simulated) -> None:
    first_request.ask(simulated_service(simulated, "vllm"))
    (body,) = simulated.model.bodies
    assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "text"]
    assert body["response_format"]["type"] == "json_schema"
    first_request.ask(simulated_service(simulated, "detector"))
    assert simulated.detector.requests == 1


def test_an_answer_outside_the_schema_is_not_ready(simulated: Simulated) -> None:
    simulated.answer = lambda crop, request: "Sure! It is a poodle."
    with pytest.raises(StackError, match=r"does not answer this job: .*not JSON"):
        first_request.ask(simulated_service(simulated, "vllm"))


def test_a_server_without_a_chat_template_gets_its_remedy() -> None:
    message = (
        'HTTP 400: {"error": {"message": "As of transformers v4.44, default chat template is no longer allowed, so you '
        'must provide a chat template"}}'
    )
    assert "chat-template:" in (remedy_for(message) or "")
    assert "vision-language" in (remedy_for("HTTP 400: tiny is not a multimodal model") or "")
