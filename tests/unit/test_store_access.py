"""A bucket's credentials on their way into the job's container: all that is needed, no secret to be seen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scripts.docker.job_user import User
from scripts.docker.store_access import files, variables

ME = User(os.getuid(), os.getgid(), ())


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
    seen = files(environment, tmp_path / "secrets", ME)
    assert seen == {tmp_path / "secrets" / "aws_credentials": Path("/run/aws/credentials")}
    assert variables(environment, seen) == {
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_SHARED_CREDENTIALS_FILE": "/run/aws/credentials",
    }
    written = tmp_path / "secrets" / "aws_credentials"
    assert written.stat().st_mode & 0o777 == 0o600
    assert written.read_text().split() == [
        *("[default]", "aws_access_key_id", "=", "a-key"),
        *("aws_secret_access_key", "=", "%its-secret"),
    ]
    assert files(environment, tmp_path / "secrets", ME) == seen  # again, over what is there


def test_keys_of_variables_stand_under_the_profile_that_is_asked_for(tmp_path: Path) -> None:
    """A client that is told a profile looks nowhere else in the file."""
    environment = {"AWS_PROFILE": "mine", "AWS_ACCESS_KEY_ID": "a-key", "AWS_SECRET_ACCESS_KEY": "its-secret"}
    assert variables(environment, files(environment, tmp_path / "secrets", ME))["AWS_PROFILE"] == "mine"
    assert (tmp_path / "secrets" / "aws_credentials").read_text().startswith("[mine]\n")


def test_a_profile_is_seen_where_it_is(home: Path, tmp_path: Path) -> None:
    (home / ".aws").mkdir()
    for name in ("config", "credentials"):
        (home / ".aws" / name).write_text("[profile mine]\n")
    seen = files({"AWS_PROFILE": "mine"}, tmp_path / "secrets", ME)
    assert seen == {home / ".aws" / name: Path("/run/aws", name) for name in ("credentials", "config")}
    assert variables({"AWS_PROFILE": "mine"}, seen) == {
        "AWS_PROFILE": "mine",
        "AWS_SHARED_CREDENTIALS_FILE": "/run/aws/credentials",
        "AWS_CONFIG_FILE": "/run/aws/config",
    }
    assert not (tmp_path / "secrets").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root runs the job as somebody else")
def test_what_another_user_is_to_read_is_that_users(home: Path, tmp_path: Path) -> None:
    """A job that root runs for them: of a profile as of keys."""
    (home / ".aws").mkdir()
    (home / ".aws" / "credentials").write_text("[default]\n")
    for environment in ({}, {"AWS_ACCESS_KEY_ID": "a-key"}):
        (place,) = files(environment, tmp_path / "secrets", User(1234, 4321, ()))
        status = place.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (1234, 4321, 0o600)


def test_without_any_the_machine_may_have_a_role(tmp_path: Path) -> None:
    seen = files({}, tmp_path / "secrets", ME)
    assert (seen, variables({}, seen)) == ({}, {})
