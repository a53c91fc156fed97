"""Access to a bucket for the job's container: the user's own, without a secret that `docker inspect` would show."""

from __future__ import annotations

import os
from collections.abc import Mapping
from configparser import ConfigParser
from pathlib import Path

# Told as they are.
VARIABLES = ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")

# Written into a file, by their names there.
SECRETS = {
    "AWS_ACCESS_KEY_ID": "aws_access_key_id",
    "AWS_SECRET_ACCESS_KEY": "aws_secret_access_key",
    "AWS_SESSION_TOKEN": "aws_session_token",
}

# Where the container finds the files that the variables of the same names say on this host.
FILES = {"AWS_SHARED_CREDENTIALS_FILE": "credentials", "AWS_CONFIG_FILE": "config"}
INSIDE = Path("/run/aws")


def chosen(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that the container is told."""
    return {name: environment[name] for name in VARIABLES if environment.get(name)}


def files(environment: Mapping[str, str], secrets: Path) -> dict[Path, Path]:
    """The files that the container sees, as here and as there: keys that are set as variables, or else ~/.aws.

    The keys are written to the folder `secrets`, readable for this user alone.

    Raises:
        OSError: they cannot be written.
    """
    keys = {SECRETS[name]: environment[name] for name in SECRETS if environment.get(name)}
    if keys:
        written = ConfigParser(interpolation=None)
        # Under the name that the container's clients look for; "default" without one.
        written[environment.get("AWS_PROFILE") or "default"] = keys
        secrets.mkdir(parents=True, exist_ok=True, mode=0o700)
        place = secrets / "aws_credentials"
        place.unlink(missing_ok=True)
        with os.fdopen(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
            written.write(handle)
        return {place.absolute(): INSIDE / FILES["AWS_SHARED_CREDENTIALS_FILE"]}
    there = {}
    for variable, name in FILES.items():
        place = Path(environment.get(variable) or Path("~/.aws", name)).expanduser()
        if place.is_file():
            there[place.absolute()] = INSIDE / name
    return there


def arguments(environment: Mapping[str, str], secrets: Path) -> list[str]:
    """What `docker compose run` is told, so that the job can use the buckets that this user can.

    Raises:
        OSError: the keys cannot be written.
    """
    told = [f"--env={name}={value}" for name, value in sorted(chosen(environment).items())]
    seen = files(environment, secrets)
    told += [f"--env={name}={INSIDE / file}" for name, file in FILES.items() if INSIDE / file in seen.values()]
    return [*told, *(f"--volume={here}:{there}:ro" for here, there in seen.items())]
