"""Where vLLM's own code runs for a full preflight."""

from pathlib import Path

import pytest

from scripts.checks.preflight import full
from scripts.checks.preflight.command import asked_of, server_of, user_job
from scripts.environments import ROOT
from scripts.stack.services import VLLM_PRESETS
from scripts.vllm.checker import Place


@pytest.mark.parametrize("command", [("sleep", "60"), ("sh", "-c", "echo '{}'")])
def test_what_a_check_leaves_behind_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    """Cut off by its time limit, or not: a container goes on without the command that started it."""
    monkeypatch.setattr(full, "TIMEOUT_S", 0.5)
    server, asked = server_of(VLLM_PRESETS / "cpu.yaml", "cpu", []), asked_of(user_job())
    place = Place(command, ending=("touch", str(tmp_path / "ended")))
    if command[0] == "sleep":
        (finding,) = full.check(server, asked, ROOT, place)
        assert "took longer than" in finding.found
    else:
        with pytest.raises(KeyError):
            full.check(server, asked, ROOT, place)
    assert (tmp_path / "ended").exists()


def test_the_name_of_one_container_is_not_what_a_check_depends_on() -> None:
    one, other = (
        Place(("docker", "run", "--name", name, "image"), ending=("docker", "rm", "--force", name)) for name in "ab"
    )
    assert one.lasting == other.lasting == ["docker", "run", "--name", "image"]
