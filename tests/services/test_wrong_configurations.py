"""Wrong configurations that only vLLM's own code, or only a start, gives away; and the right one beside them.

What options and files tell is in tests/unit/test_preflight_static.py, what the host tells in test_doctor_checks.py.
"""

from __future__ import annotations

import io
import json
import re
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from scripts.checks.preflight import full
from scripts.environments import ROOT
from scripts.findings import Finding
from scripts.settings import NotReady, ServiceDied, StackError, StackSettings
from scripts.stack import warmup
from scripts.stack.process_engine import ProcessEngine
from scripts.stack.service import Service
from scripts.stack.vllm_server import PRESETS as VLLM_PRESETS
from scripts.stack.vllm_server import vllm
from scripts.vllm.checker import in_environment
from scripts.vllm.tables import MODEL_INFOS
from tests.configurations import Configuration
from tests.ports import free_port

# In CPU seconds, which a busy machine does not change.
FULL_LIMIT_S = 20.0
# From the event in the log to the moment that the operator knows why. vLLM itself takes 3 to 5 s more to end on a quiet
# machine, and 18 s were seen on a busy one: nobody waits for that.
TOLD_WITHIN_S = 10.0
START_S = 300.0


@pytest.fixture
def configuration(tmp_path: Path) -> Configuration:
    """The CPU preset with its model and the bundled job: right, until a test spoils it."""
    return Configuration(tmp_path)


def full_check(configuration: Configuration, python: Path, record_property: Callable[[str, object], None]) -> Finding:
    """The full tier's one finding; its time is held to the limit and written into the test report."""

    def cpu_s() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before, begin = cpu_s(), time.monotonic()
    (finding,) = full.check(configuration.server, configuration.asked, ROOT, in_environment(python))
    record_property("cpu_s", round(cpu_s() - before, 1))
    record_property("wall_s", round(time.monotonic() - begin, 1))
    assert cpu_s() - before < FULL_LIMIT_S
    return finding


def test_the_right_configuration_passes_vllms_own_code(
    configuration: Configuration,
    vllm_python: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    """Also with an empty cache: vLLM takes what it is told of the model, or it would have written that anew."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    assert list(configuration.check().findings) == []
    finding = full_check(configuration, vllm_python, record_property)
    assert finding.severity == "ok", finding
    assert re.search(r"Idefics3\w+: \d+ prompt tokens, \d+ of them for the image; longest answer", finding.found)
    assert "grammar xgrammar" in finding.found
    taken = {path.name: path.read_text() for path in (tmp_path / "cache" / "modelinfos").iterdir()}
    assert taken == {path.name: path.read_text() for path in MODEL_INFOS.iterdir()}  # with the newline, which it omits


def unsupported_pattern(c: Configuration) -> None:
    twice = {"type": "string", "pattern": r"^(pug|beagle) \1$"}
    c.question(answer_schema={"type": "object", "properties": {"breed": twice}, "additionalProperties": False})


def broken_tokenizer(c: Configuration) -> None:
    (c.model() / "tokenizer.json").write_text('{"version": "1.0"}')


def short_answer(c: Configuration) -> None:
    c.question(max_tokens=7)


@pytest.mark.parametrize(
    ("spoil", "stage", "found", "remedy"),
    [
        pytest.param(unsupported_pattern, "grammar", "Backreference", "simplify the schema", id="unsupported pattern"),
        pytest.param(broken_tokenizer, "model", "added_tokens", "tokenizer files", id="broken tokenizer"),
        pytest.param(short_answer, "answer", "the longest answer takes 27 tokens", "raise max_tokens", id="answer cut"),
    ],
)
def test_what_only_vllms_own_code_knows(
    configuration: Configuration,
    vllm_python: Path,
    record_property: Callable[[str, object], None],
    spoil: Callable[[Configuration], None],
    stage: str,
    found: str,
    remedy: str,
) -> None:
    spoil(configuration)
    assert [each for each in configuration.check().findings if each.severity == "error"] == []
    finding = full_check(configuration, vllm_python, record_property)
    assert (finding.severity, finding.check) == ("error", f"vllm {stage}"), finding
    assert found in finding.found
    assert remedy in finding.remedy


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[ProcessEngine]:
    """A process engine of its own; what it started is stopped."""
    made = ProcessEngine(StackSettings(state=tmp_path / "state"))
    yield made
    made.stop("vllm", grace_s=1)  # it answers nobody


def server(configuration: Configuration, cache_dir: Path) -> Service:
    """The real vLLM with a configuration, with the caches of the tests' stack."""
    preset = configuration.server.preset
    shutil.copy(VLLM_PRESETS / "cpu.env", preset.with_suffix(".env"))
    settings = StackSettings(device="cpu", vllm_port=free_port(), state=cache_dir / "stack")
    return vllm(settings, "cpu", preset)


class Event:
    """The moment when a line first stands in a log: when it happened, whatever the machine was busy with before."""

    def __init__(self, log: Path, line: str) -> None:
        self.log, self.line = log, re.compile(line)
        self.at: float | None = None
        self.over = threading.Event()
        self.watcher = threading.Thread(target=self.watch)

    def watch(self) -> None:
        """Look for the line until it is there, or nobody waits any more."""
        while self.at is None and not self.over.wait(0.02):
            if self.log.exists() and self.line.search(self.log.read_text(errors="replace")):
                self.at = time.monotonic()

    def __enter__(self) -> Event:
        self.watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.watcher.join()


def start_and_fail(
    engine: ProcessEngine,
    service: Service,
    line: str,
    record_property: Callable[[str, object], None],
    kind: type[StackError],
) -> str:
    """What the wait says about a start that cannot end well; it says so soon after the event that `line` tells of."""
    engine.start(service)
    with Event(engine.log("vllm"), line) as event, pytest.raises(kind) as failure:
        warmup.wait(engine, [service], START_S, Console(file=io.StringIO()))
    assert event.at is not None, engine.last_lines("vllm", 40)
    told_s = time.monotonic() - event.at
    record_property("told_s", round(told_s, 2))
    assert told_s < TOLD_WITHIN_S
    return str(failure.value)


@pytest.mark.usefixtures("vllm_python")
def test_a_server_that_dies_of_its_weights_is_told_with_the_cause(
    configuration: Configuration,
    engine: ProcessEngine,
    cache_dir: Path,
    record_property: Callable[[str, object], None],
) -> None:
    vision = json.loads((configuration.model() / "config.json").read_text())["vision_config"]
    configuration.edit("config.json", vision_config=vision | {"intermediate_size": 2 * vision["intermediate_size"]})
    assert list(configuration.check().findings) == []  # nothing but a start can tell
    service = server(configuration, cache_dir)
    message = start_and_fail(engine, service, "exceeds dimension size", record_property, ServiceDied)
    assert re.search("RuntimeError: start .* exceeds dimension size", message), message
    assert "config.json" in message


@pytest.mark.usefixtures("vllm_python")
def test_a_server_that_starts_and_refuses_every_request_is_not_ready(
    configuration: Configuration,
    engine: ProcessEngine,
    cache_dir: Path,
    record_property: Callable[[str, object], None],
) -> None:
    (configuration.model() / "chat_template.jinja").unlink()
    service = server(configuration, cache_dir)
    message = start_and_fail(engine, service, r"POST /v1/chat/completions HTTP/1.1\" 400", record_property, NotReady)
    assert "tiny-vlm" in message
    assert "`chat-template:`" in message
