"""The key of the stack's own model server: where it comes from, who can read it, where it does not go."""

from __future__ import annotations

import contextlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scripts.docker import files as compose_files
from scripts.environments import ROOT
from scripts.settings import InvalidStackSetting, StackSettings
from scripts.stack import api_key
from scripts.stack.process_engine import environment_of
from scripts.stack.service import Service
from scripts.stack.services import make_stack


def stored(state: Path) -> str:
    return api_key.file_in(state).read_text()


def server(state: Path) -> Service:
    """The stack's model server."""
    return next(
        service for service in make_stack(StackSettings(state=state), "cpu", "cpu", {}).services if service.key_file
    )


def test_a_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        api_key.settle(StackSettings(state=tmp_path / "state"))
    finally:
        os.umask(before)
    key = stored(tmp_path / "state")
    assert len(key) >= 32
    assert api_key.file_in(tmp_path / "state").stat().st_mode & 0o777 == 0o600
    api_key.settle(StackSettings(state=tmp_path / "state"))
    assert stored(tmp_path / "state") == key
    api_key.settle(StackSettings(state=tmp_path / "other"))
    assert stored(tmp_path / "other") != key


@pytest.mark.parametrize("variable", [api_key.JOB_VARIABLE, api_key.SERVER_VARIABLE])
def test_the_users_own_key_is_taken_and_kept_when_it_is_unset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    api_key.settle(StackSettings(state=tmp_path))
    made = server(tmp_path).fingerprint
    monkeypatch.setenv(variable, "sesame")
    api_key.settle(StackSettings(state=tmp_path))
    assert stored(tmp_path) == "sesame"
    assert server(tmp_path).fingerprint != made  # a server with another key has to start anew
    known = server(tmp_path).fingerprint
    monkeypatch.delenv(variable)
    api_key.settle(StackSettings(state=tmp_path))
    assert (stored(tmp_path), server(tmp_path).fingerprint) == ("sesame", known)


def test_a_file_that_others_could_read_is_closed(tmp_path: Path) -> None:
    api_key.settle(StackSettings(state=tmp_path))
    api_key.file_in(tmp_path).chmod(0o644)
    api_key.settle(StackSettings(state=tmp_path))
    assert api_key.file_in(tmp_path).stat().st_mode & 0o777 == 0o600


def test_two_keys_and_one_that_cannot_be_sent_are_refused_without_being_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPOTTER_API_KEY", "sesame")
    monkeypatch.setenv("VLLM_API_KEY", "barley")
    with pytest.raises(InvalidStackSetting, match="SPOTTER_API_KEY and VLLM_API_KEY") as refused:
        api_key.settle(StackSettings(state=tmp_path))
    monkeypatch.setenv("SPOTTER_API_KEY", "open sesame")
    monkeypatch.delenv("VLLM_API_KEY")
    with pytest.raises(InvalidStackSetting, match="SPOTTER_API_KEY or VLLM_API_KEY") as unsendable:
        api_key.settle(StackSettings(state=tmp_path))
    assert not any(word in f"{refused.value}{unsendable.value}" for word in ("sesame", "barley"))
    assert not api_key.file_in(tmp_path).exists()


def test_a_key_in_a_preset_is_refused(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("model: samples/models/tiny-vlm\napi-key: sesame\n")
    with pytest.raises(InvalidStackSetting, match=r"mine\.yaml .*`api-key`.*SPOTTER_API_KEY") as refused:
        make_stack(StackSettings(state=tmp_path), "cpu", str(preset), {})
    assert "sesame" not in str(refused.value)


@pytest.mark.parametrize(
    ("variable", "remedy"),
    [("VLLM_API_KEY", "SPOTTER_API_KEY"), ("SPOTTER_API_KEY", "SPOTTER_API_KEY"), ("HF_TOKEN", "HF_TOKEN where")],
)
def test_a_secret_among_a_presets_variables_is_refused(tmp_path: Path, variable: str, remedy: str) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("model: samples/models/tiny-vlm\n")
    preset.with_suffix(".env").write_text(f"VLLM_LOGGING_LEVEL=INFO\n{variable}=sesame\n")
    with pytest.raises(InvalidStackSetting, match=rf"mine\.env .*{variable}.*{remedy}") as refused:
        make_stack(StackSettings(state=tmp_path), "cpu", str(preset), {})
    assert "sesame" not in str(refused.value)


@pytest.mark.parametrize("content", ["", "- model\n"])
def test_a_preset_without_options_is_refused(tmp_path: Path, content: str) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text(content)
    with pytest.raises(InvalidStackSetting, match=r"mine\.yaml .*`name: value`"):
        make_stack(StackSettings(state=tmp_path), "cpu", str(preset), {})


@pytest.mark.parametrize(("revision", "refused"), [(None, True), ("main", True), ("0123456789" * 4, False)])
def test_a_models_own_code_runs_only_at_a_pinned_revision(tmp_path: Path, revision: str | None, refused: bool) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text(
        "model: owner/model\ntrust-remote-code: true\n" + (f"revision: '{revision}'\n" if revision else "")
    )
    with pytest.raises(InvalidStackSetting, match="`revision:`") if refused else contextlib.nullcontext():
        make_stack(StackSettings(state=tmp_path), "cpu", str(preset), {})


def test_a_server_elsewhere_has_no_key_of_ours(tmp_path: Path) -> None:
    stack = make_stack(StackSettings(state=tmp_path), "cpu", "cpu", {"SPOTTER_MODEL_URL": "https://models.example/v1"})
    assert stack.key_file is None


def test_on_processes_only_the_model_server_has_it_and_in_its_environment_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (api_key.JOB_VARIABLE, api_key.SERVER_VARIABLE):
        monkeypatch.setenv(name, "sesame")
    api_key.settle(StackSettings(state=tmp_path))
    for service in make_stack(StackSettings(state=tmp_path), "cpu", "cpu", {}).services:
        held = {name for name, value in environment_of(service).items() if "sesame" in value}
        assert held == ({api_key.SERVER_VARIABLE} if service.name == "vllm" else set())
        assert "sesame" not in repr(service)


def test_what_a_container_gets_is_closed_to_other_users_of_the_host(tmp_path: Path) -> None:
    """Readable for the container's user, who is nobody here; behind a folder that only its owner may enter."""
    place = tmp_path / "secrets" / "api_key"
    compose_files.hand_over("sesame", place)
    compose_files.hand_over("barley", place)  # also over one that is there
    assert place.read_text() == "barley"
    assert place.stat().st_mode & 0o777 == 0o444
    assert place.parent.stat().st_mode & 0o777 == 0o700
    before = place.stat().st_ino
    compose_files.hand_over("barley", place)  # the same: a container that has it keeps seeing this file
    assert place.stat().st_ino == before


def test_two_commands_may_hand_over_at_the_same_time(tmp_path: Path) -> None:
    place = tmp_path / "secrets" / "api_key"
    keys = [str(number) * 1000 for number in range(10)]
    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(lambda key: compose_files.hand_over(key, place), keys * 5))
    assert place.read_text() in keys
    assert [path.name for path in place.parent.iterdir()] == ["api_key"]


def test_files_for_a_container_are_readable_for_its_user_under_a_strict_umask(tmp_path: Path) -> None:
    preset = tmp_path / "mine.yaml"
    preset.write_text("model: samples/models/tiny-vlm\n")
    preset.chmod(0o600)
    before = os.umask(0o077)
    try:
        engine = compose_files.ComposeFiles(StackSettings(state=tmp_path / "state"), "cpu", str(preset))
        engine.write()
    finally:
        os.umask(before)
    given = [Path(engine.variables()[name]) for name in ("VLLM_PRESET", "HUB_DOWNLOAD")]
    assert [path.read_text() for path in given] == [preset.read_text(), compose_files.HUB_DOWNLOAD.read_text()]
    assert [path.stat().st_mode & 0o777 for path in given] == [0o444, 0o444]
    assert (tmp_path / "state" / "containers" / "vllm.env").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("content", "seen"), [("sesame", "sesame"), ("sesame\n", "sesame"), ("", "unset"), (None, "unset")]
)
def test_the_entry_point_makes_a_variable_of_the_secret(tmp_path: Path, content: str | None, seen: str) -> None:
    done = entry_point(tmp_path, content)
    assert (done.returncode, done.stdout.strip()) == (0, f"{seen} a b"), done.stderr


def test_the_entry_point_ends_where_it_cannot_read_the_secret(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    done = entry_point(tmp_path, None)
    assert done.returncode != 0
    assert not done.stdout


def test_the_entry_point_starts_no_server_with_an_empty_key(tmp_path: Path) -> None:
    done = entry_point(tmp_path, "\n", "VLLM_API_KEY")
    assert (done.returncode, done.stdout) == (1, "")
    assert "empty" in done.stderr


def entry_point(folder: Path, content: str | None, variable: str = "THE_KEY") -> subprocess.CompletedProcess[str]:
    """The images' entry point, with the secret in this folder."""
    script = (ROOT / "images" / "with_key.sh").read_text()
    secret = folder / "secret"
    if content is not None:
        secret.write_text(content)
    assert "/run/secrets/api_key" in script
    command = ["sh", "-c", script.replace("/run/secrets/api_key", str(secret)), "with_key.sh"]
    command += [variable, "sh", "-c", f'echo "${{{variable}:-unset}} $*"', "sh", "a", "b"]
    return subprocess.run(command, capture_output=True, text=True)
