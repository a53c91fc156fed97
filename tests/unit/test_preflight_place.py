"""Where vLLM's own code runs for a full preflight."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts.checks.preflight import full
from scripts.checks.preflight.command import asked_of, server_of, user_job
from scripts.docker import host as docker_host
from scripts.docker import images
from scripts.docker.engine import ComposeEngine
from scripts.environments import ROOT
from scripts.settings import StackSettings
from scripts.stack.vllm_server import PRESETS as VLLM_PRESETS
from scripts.vllm.checker import Place


@pytest.mark.parametrize("command", [("sleep", "60"), ("sh", "-c", "echo '{}'")])
def test_what_a_check_leaves_behind_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    """Cut off by its time limit, or not: a container goes on without the command that started it."""
    monkeypatch.setattr(full, "TIMEOUT_S", 0.5)
    server, asked = server_of(VLLM_PRESETS / "cpu.yaml", "cpu", []), asked_of(user_job(StackSettings()), {})
    place = Place(command, ending=("touch", str(tmp_path / "ended")))
    if command[0] == "sleep":
        (finding,) = full.check(server, asked, ROOT, place)
        assert "took longer than" in finding.found
    else:
        with pytest.raises(KeyError):
            full.check(server, asked, ROOT, place)
    assert (tmp_path / "ended").exists()


def test_a_check_in_a_container_depends_on_image_and_variables_and_not_on_the_containers_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_host, "client_config", lambda: None)
    monkeypatch.setattr(images, "has", lambda tag: True)
    monkeypatch.setattr("scripts.docker.client.client", lambda: SimpleNamespace(docker_cmd=["docker"]))

    def place() -> Place:
        return ComposeEngine(StackSettings(state=tmp_path), "cpu", "cpu").preflight_place()

    one, other = place(), place()
    assert one.command != other.command
    assert one.fingerprint == other.fingerprint
    assert one.command[-1] == "preflight"
    assert one.ending == ("docker", "rm", "--force", one.command[one.command.index("--name") + 1])
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    assert place().fingerprint != one.fingerprint
