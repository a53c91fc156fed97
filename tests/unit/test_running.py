"""Measurements reach the running stack as the job does: at its ports, with its key, unless the user says otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ServiceUnreachable
from scripts.bench import running
from tests.doubles.simulated import Simulated


@pytest.fixture(autouse=True)
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state of a stack with ports and a key of its own."""
    (tmp_path / "api_key").write_text("s3cret")
    monkeypatch.setenv("STACK_STATE", str(tmp_path))
    monkeypatch.setenv("STACK_VLLM_PORT", "9001")
    monkeypatch.setenv("STACK_DETECTOR_PORT", "9002")
    return tmp_path


def test_the_stacks_own_ports_and_key_are_used() -> None:
    found = running.settings()
    assert (str(found.model_url), str(found.detector_url)) == ("http://127.0.0.1:9001/v1", "http://127.0.0.1:9002/")
    assert running.key_variable(found) == {"SPOTTER_API_KEY": "s3cret"}


def test_a_stack_that_never_started_gets_no_key(stack: Path) -> None:
    (stack / "api_key").unlink()
    assert running.key_variable(running.settings()) == {}
    assert not (stack / "api_key").exists()


def test_a_server_elsewhere_does_not_get_the_stacks_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPOTTER_MODEL_URL", "http://elsewhere.example/v1")
    found = running.settings()
    assert str(found.model_url) == "http://elsewhere.example/v1"
    assert running.key_variable(found) == {}


def test_a_stack_that_is_not_up_says_what_to_do(simulated: Simulated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPOTTER_DETECTOR_URL", simulated.url)
    with pytest.raises(ServiceUnreachable, match=r"127\.0\.0\.1:9001.*make up"):
        running.find(running.settings())
    monkeypatch.setenv("SPOTTER_MODEL_URL", f"{simulated.url}/v1")
    assert running.find(running.settings()).model == "simulated"
