"""Wrong configurations that only vLLM's own code, or only a start, gives away; and the right one beside them.

What options and files tell is in tests/unit/test_preflight_static.py, what the host tells in test_doctor_checks.py.
"""

from __future__ import annotations

import io
import json
import re
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from rich.console import Console

from scripts import warmup
from scripts.environments import ROOT
from scripts.findings import Finding
from scripts.preflight import full
from scripts.process_engine import ProcessEngine
from scripts.services import VLLM_PRESETS, Service, vllm
from scripts.settings import StackError, StackSettings
from tests.configurations import Configuration
from tests.stack.conftest import free_port

# In CPU seconds, which a busy machine does not change.
FULL_LIMIT_S = 20.0
# From vLLM's error line to the moment that the operator knows why: 3 to 5 s on a quiet machine, most of it vLLM's own
# time to end; 18 s were seen at a load of 13. The bound is for the wait that would sit out its limit.
TOLD_WITHIN_S = 60.0
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
    (finding,) = full.check(configuration.server, configuration.asked, ROOT, python)
    record_property("cpu_s", round(cpu_s() - before, 1))
    record_property("wall_s", round(time.monotonic() - begin, 1))
    assert cpu_s() - before < FULL_LIMIT_S
    return finding


def test_the_right_configuration_passes_vllms_own_code(
    configuration: Configuration, vllm_python: Path, record_property: Callable[[str, object], None]
) -> None:
    assert list(configuration.check().findings) == []
    finding = full_check(configuration, vllm_python, record_property)
    assert finding.severity == "ok", finding
    assert re.search(r"Idefics3\w+: \d+ prompt tokens, \d+ of them for the picture; longest answer", finding.found)
    assert "grammar xgrammar" in finding.found


def unsupported_schema(c: Configuration) -> None:
    breeds = {"type": "array", "items": {"enum": ["pug", "beagle"]}, "maxItems": 2, "uniqueItems": True}
    c.ask(schema={"type": "object", "properties": {"breeds": breeds}, "additionalProperties": False})


def broken_tokenizer(c: Configuration) -> None:
    (c.model() / "tokenizer.json").write_text('{"version": "1.0"}')


def short_answer(c: Configuration) -> None:
    c.ask(max_tokens=7)


@pytest.mark.parametrize(
    ("spoil", "stage", "found", "remedy"),
    [
        pytest.param(unsupported_schema, "grammar", "not supported", "simplify the schema", id="unsupported schema"),
        pytest.param(broken_tokenizer, "model", "added_tokens", "tokenizer files", id="broken tokenizer"),
        pytest.param(short_answer, "answer", "the longest answer takes 8 tokens", "raise max_tokens", id="answer cut"),
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
    made = ProcessEngine(tmp_path / "state")
    yield made
    made.stop("vllm", grace_s=10)


def server(configuration: Configuration, cache_dir: Path) -> Service:
    """The real vLLM with a configuration, with the caches of the tests' stack."""
    preset = configuration.server.preset
    shutil.copy(VLLM_PRESETS / "cpu.env", preset.with_suffix(".env"))
    settings = StackSettings(device="cpu", vllm_port=free_port(), state=cache_dir / "stack")
    return vllm(settings, "cpu", preset)


def start_and_fail(engine: ProcessEngine, service: Service) -> tuple[str, datetime]:
    """What the wait says about a start that cannot end well, and when it did."""
    engine.start(service)
    with pytest.raises(StackError) as failure:
        warmup.wait(engine, [service], START_S, Console(file=io.StringIO()))
    return str(failure.value), datetime.now()


def logged_at(log: str, line: str) -> datetime:
    """The time of a line of vLLM's log, which writes no year."""
    match = re.search(rf" (\d\d-\d\d \d\d:\d\d:\d\d) \[[^\]]+\] .*{line}", log)
    assert match, log[-3000:]
    return datetime.strptime(f"{datetime.now().year}-{match[1]}", "%Y-%m-%d %H:%M:%S")


@pytest.mark.usefixtures("vllm_python")
def test_a_server_that_dies_of_its_weights_is_told_with_the_cause(
    configuration: Configuration, engine: ProcessEngine, cache_dir: Path
) -> None:
    vision = json.loads((configuration.model() / "config.json").read_text())["vision_config"]
    configuration.edit("config.json", vision_config=vision | {"intermediate_size": 2 * vision["intermediate_size"]})
    assert list(configuration.check().findings) == []  # nothing but a start can tell
    service = server(configuration, cache_dir)
    message, told = start_and_fail(engine, service)
    assert re.search(r"The cause: RuntimeError: start .* exceeds dimension size", message), message
    assert "What helps: config.json and weights are of different models" in message
    died = logged_at(engine.log("vllm").read_text(), "exceeds dimension size")
    assert (told - died).total_seconds() < TOLD_WITHIN_S


@pytest.mark.usefixtures("vllm_python")
def test_a_server_that_starts_and_refuses_every_request_is_not_ready(
    configuration: Configuration, engine: ProcessEngine, cache_dir: Path
) -> None:
    (configuration.model() / "chat_template.jinja").unlink()
    service = server(configuration, cache_dir)
    message, told = start_and_fail(engine, service)
    assert "vllm is up, but does not answer this job: model tiny-vlm refuses the requests" in message
    assert "-> set `chat-template:` in the preset" in message
    up = logged_at(engine.log("vllm").read_text(), "Starting vLLM server")
    assert (told - up).total_seconds() < TOLD_WITHIN_S
