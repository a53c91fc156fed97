"""A bucket's credentials on their way into the job's container: all that is needed, no secret to be seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.store_access import arguments


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_keys_travel_in_a_file_of_the_user(tmp_path: Path) -> None:
    environment = {
        "AWS_ACCESS_KEY_ID": "a-key",
        "AWS_SECRET_ACCESS_KEY": "%its-secret",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "UNRELATED": "x",
    }
    told = arguments(environment, tmp_path / "secrets")
    assert told == [
        "--env=AWS_DEFAULT_REGION=eu-central-1",
        "--env=AWS_SHARED_CREDENTIALS_FILE=/run/aws/credentials",
        f"--volume={tmp_path}/secrets/aws_credentials:/run/aws/credentials:ro",
    ]
    written = tmp_path / "secrets" / "aws_credentials"
    assert written.stat().st_mode & 0o777 == 0o600
    assert written.read_text().split() == [
        *("[default]", "aws_access_key_id", "=", "a-key"),
        *("aws_secret_access_key", "=", "%its-secret"),
    ]
    assert arguments(environment, tmp_path / "secrets") == told  # again, over what is there


def test_keys_of_variables_stand_under_the_profile_that_is_asked_for(tmp_path: Path) -> None:
    """A client that is told a profile looks nowhere else in the file."""
    environment = {"AWS_PROFILE": "mine", "AWS_ACCESS_KEY_ID": "a-key", "AWS_SECRET_ACCESS_KEY": "its-secret"}
    assert "--env=AWS_PROFILE=mine" in arguments(environment, tmp_path / "secrets")
    assert (tmp_path / "secrets" / "aws_credentials").read_text().startswith("[mine]\n")


def test_a_profile_is_seen_where_it_is(home: Path, tmp_path: Path) -> None:
    (home / ".aws").mkdir()
    for name in ("config", "credentials"):
        (home / ".aws" / name).write_text("[profile mine]\n")
    assert arguments({"AWS_PROFILE": "mine"}, tmp_path / "secrets") == [
        "--env=AWS_PROFILE=mine",
        "--env=AWS_SHARED_CREDENTIALS_FILE=/run/aws/credentials",
        "--env=AWS_CONFIG_FILE=/run/aws/config",
        f"--volume={home}/.aws/credentials:/run/aws/credentials:ro",
        f"--volume={home}/.aws/config:/run/aws/config:ro",
    ]
    assert not (tmp_path / "secrets").exists()


def test_without_any_the_machine_may_have_a_role(tmp_path: Path) -> None:
    assert arguments({}, tmp_path / "secrets") == []
