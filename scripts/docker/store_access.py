"""The user's access to a bucket, for the job's container, without a secret that `docker inspect` would show."""

from __future__ import annotations

import os
from collections.abc import Mapping
from configparser import ConfigParser
from io import StringIO
from pathlib import Path

from scripts.docker.job_user import User

# Passed on as variables.
VARIABLES = ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")

# Written into a file, under these names.
SECRETS = {
    "AWS_ACCESS_KEY_ID": "aws_access_key_id",
    "AWS_SECRET_ACCESS_KEY": "aws_secret_access_key",
    "AWS_SESSION_TOKEN": "aws_session_token",
}

# The container's copies of the files that these variables name on this host.
FILES = {"AWS_SHARED_CREDENTIALS_FILE": "credentials", "AWS_CONFIG_FILE": "config"}
INSIDE = Path("/run/aws")


def files(environment: Mapping[str, str], secrets: Path, user: User) -> dict[Path, Path]:
    """The files that the container sees, by their paths here and there: keys of variables, or else ~/.aws.

    The keys are written to the folder `secrets`, for the container's user alone; so are copies of ~/.aws, where that
    user is not the current one.

    Raises:
        OSError: they cannot be written.
    """
    keys = {SECRETS[name]: environment[name] for name in SECRETS if environment.get(name)}
    if keys:
        written, content = ConfigParser(interpolation=None), StringIO()
        # Under the name that the container's clients look for; "default" without one.
        written[environment.get("AWS_PROFILE") or "default"] = keys
        written.write(content)
        place = write(secrets / "aws_credentials", content.getvalue(), user)
        return {place: INSIDE / FILES["AWS_SHARED_CREDENTIALS_FILE"]}
    there = {}
    for variable, name in FILES.items():
        place = Path(environment.get(variable) or Path("~/.aws", name)).expanduser().absolute()
        if place.is_file():
            own = user.uid == os.getuid()
            there[place if own else write(secrets / f"aws_{name}", place.read_text(), user)] = INSIDE / name
    return there


def write(place: Path, content: str, user: User) -> Path:
    """Write a file that only one user can read; its absolute path."""
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    place.unlink(missing_ok=True)
    with os.fdopen(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(content)
        if user.uid != os.getuid():
            os.fchown(handle.fileno(), user.uid, user.gid)
    return place.absolute()


def variables(environment: Mapping[str, str], seen: Mapping[Path, Path]) -> dict[str, str]:
    """The container's variables for its access; `seen` is the result of `files`."""
    told = {name: environment[name] for name in sorted(VARIABLES) if environment.get(name)}
    return told | {name: str(INSIDE / file) for name, file in FILES.items() if INSIDE / file in seen.values()}
