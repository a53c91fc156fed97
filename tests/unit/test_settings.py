"""Settings: where they come from, and what is said of wrong ones."""

import os
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.errors import InvalidSetting, Unreadable
from scripts.settings import StackSettings
from scripts.settings import load as load_stack_settings


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without an .env of the developer's."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("SPOTTER_", "STACK_"))]:
        monkeypatch.delenv(name)  # tests/conftest.py has emptied those of the developer's .env
    return tmp_path


def test_command_line_beats_environment_beats_file(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (elsewhere / ".env").write_text("SPOTTER_JOB=file\nSPOTTER_IMAGES=file\nSPOTTER_MODEL=file\n")
    monkeypatch.setenv("SPOTTER_JOB", "environment")
    monkeypatch.setenv("SPOTTER_IMAGES", "environment")
    loaded = settings.load(["--job", "argument"])
    assert (loaded.job, loaded.images, loaded.model) == ("argument", "environment", "file")


def test_an_empty_variable_is_not_set_also_over_the_files(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("SPOTTER_ATTEMPTS", "SPOTTER_MODEL", "SPOTTER_MODEL_URL", "STACK_VLLM_PORT", "STACK_PUBLISH")
    (elsewhere / ".env").write_text(
        "SPOTTER_ATTEMPTS=9\nSPOTTER_MODEL=x\nSPOTTER_MODEL_URL=http://x/v1\nSTACK_VLLM_PORT=9\nSTACK_PUBLISH=1\n"
    )
    assert settings.load([]).attempts == 9
    for name in names:
        monkeypatch.setenv(name, "")
    monkeypatch.setitem(StackSettings.model_config, "env_file", elsewhere / ".env")
    assert settings.load([]) == settings.Settings.model_construct()
    assert StackSettings() == StackSettings.model_construct()


def test_by_default_rows_without_an_answer_fail_before_the_run_counts_as_stalled() -> None:
    """All attempts of the first rows, each after another row's: a stage holds twice what it asks about at once."""
    usual = settings.load([])
    assert 2 * usual.attempts * usual.request_timeout_s <= usual.stall_limit_s


@pytest.mark.parametrize(
    ("arguments", "environment", "file", "message"),
    [
        (["--model-concurrency", "0"], {}, "", "^--model-concurrency: '0' .* 1$"),
        ([], {"SPOTTER_MODEL_URL": "localhost"}, "", "^SPOTTER_MODEL_URL in the environment: 'localhost' "),
        ([], {}, "SPOTTER_ATTEMPTS=many", r"^SPOTTER_ATTEMPTS in \.env: 'many' "),
        ([], {"SPOTTER_MODEL_CONCURENCY": "3"}, "", "SPOTTER_MODEL_CONCURENCY .*SPOTTER_MODEL_CONCURRENCY"),
        ([], {}, "SPOTTER_JOBB=x", r"SPOTTER_JOBB .*SPOTTER_JOB\b"),
        (["--retry-faild"], {}, "", "^unknown option --retry-faild: did you mean --retry-failed"),
        (["--image=x"], {}, "", "^unknown option --image: did you mean --images"),
        (["--images", ""], {}, "", "^--images: '' is invalid: it is empty"),
        (["--annotated", "some"], {}, "", "'all' or 'none'; or: .* integer"),
        (["--api-key", "s3cret"], {}, "", "^--api-key: .*SPOTTER_API_KEY"),
        (["--api-key=s3cret"], {}, "", "^--api-key: .*SPOTTER_API_KEY"),
        (["--model-url=https://me:s3cret@x/v1"], {}, "", r"^--model-url: \(hidden\) .*password"),
        ([], {"SPOTTER_S3_ENDPOINT": "https://s3cret@x"}, "", r"^SPOTTER_S3_ENDPOINT in .*: \(hidden\) "),
    ],
)
def test_a_wrong_value_is_named_with_its_place(
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
    file: str,
    message: str,
) -> None:
    (elsewhere / ".env").write_text(file)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSetting, match=message) as refused:
        settings.load(arguments)
    assert "s3cret" not in str(refused.value)


def test_the_key_is_not_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPOTTER_API_KEY", "s3cret")
    loaded = settings.load([])
    assert "s3cret" not in f"{loaded!r} {loaded.public()}"
    assert loaded.public()["api_key"] == "set"


ENTRIES = "# Köln\nSPOTTER_JOB=cars\nSTACK_VLLM_PORT=8123\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_in_the_file_is_no_part_of_a_name(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    first = ENTRIES.partition("\n")[2]  # the mark would stick to the first variable's name
    (elsewhere / ".env").write_text(first, encoding=encoding)
    assert settings.load([]).job == "cars"
    monkeypatch.setitem(StackSettings.model_config, "env_file", elsewhere / ".env")
    assert StackSettings().port("vllm") == 8123


@pytest.mark.parametrize(
    ("encoding", "reason"),
    [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16"), ("latin-1", "line 1")],
)
def test_a_file_in_another_encoding_is_one_line(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, reason: str
) -> None:
    (elsewhere / ".env").write_text(ENTRIES, encoding=encoding)
    with pytest.raises(Unreadable, match=rf"^\.env .*{reason}.* UTF-8$"):
        settings.load([])
    monkeypatch.setattr("scripts.settings.ENV_FILE", elsewhere / ".env")
    with pytest.raises(Unreadable, match=reason):
        load_stack_settings()


def test_a_file_that_cannot_be_read_is_one_line(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (elsewhere / ".env").write_text(ENTRIES)

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(Unreadable, match=r"^\.env .*Permission denied$"):
        settings.load([])


@pytest.mark.parametrize("name", ["images", "output"])
def test_an_address_of_images_holds_no_password(name: str) -> None:
    with pytest.raises(InvalidSetting) as told:
        settings.load([f"--{name}", "s3://user:pa55@bucket/photos"])
    assert f"--{name}" in str(told.value)
    assert "pa55" not in str(told.value)
