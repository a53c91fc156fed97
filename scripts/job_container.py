"""The job in a container: what it sees of this host, as whom it runs, and how it is told to stop."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

from pipeline.errors import UsageError
from pipeline.settings import Settings
from scripts.settings import StackError

# Where the image's entry point looks for the model server's key: a variable would be shown by `docker inspect`.
KEY_FILE = "/run/secrets/api_key"
KEY_VARIABLE = "SPOTTER_API_KEY"


def arguments(settings: Settings, variables: Mapping[str, str], options: list[str], key_file: Path) -> list[str]:
    """What `docker compose run` is told, from `--user` on to the job's own options.

    The container sees the images (read-only) and the runs' folder at the same paths as this host, and works in the same
    folder, so that the run's rows and messages name files as they are called here. `variables` are the job's, as
    the user set them; `key_file` is where the key is written to, if there is one.

    Raises:
        StackError: a service's address leads nowhere from a container.
        UsageError: the runs' folder cannot be made.
    """
    told = ["--user", f"{os.getuid()}:{os.getgid()}", "--workdir", str(Path.cwd())]
    for name, value in sorted(variables.items()):
        if name.endswith("_URL") and urlsplit(value).hostname in ("localhost", "127.0.0.1", "::1"):
            raise StackError(
                f"{name}={value}: from a container that is the container itself: give this host's address in its "
                "network, or set STACK_ENGINE=process"
            )
        if name != KEY_VARIABLE:
            told += ["--env", f"{name}={value}"]
    mounts = {folder_to_mount(settings.images): "ro"}
    if (job := Path(settings.job).expanduser()).is_file():
        mounts[job.absolute()] = "ro"
    mounts[runs_folder(settings)] = "rw"
    for place, mode in mounts.items():
        told += ["--volume", f"{place}:{place}:{mode}"]
    if settings.api_key:
        with os.fdopen(os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as handle:
            handle.write(settings.api_key.get_secret_value())
        told += ["--volume", f"{key_file.absolute()}:{KEY_FILE}:ro"]
    # The last of an option counts; `~` would be another folder in the container.
    places = ["--images", str(Path(settings.images).expanduser()), "--output", str(settings.output.expanduser())]
    return [*told, "pipeline", *options, *places]


def runs_folder(settings: Settings) -> Path:
    """The folder for the runs, which has to be there before a container can see it.

    Raises:
        UsageError: it cannot be made.
    """
    folder = settings.output.expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"output: {folder} cannot be made: {error.strerror}: give a folder of yours with OUTPUT=... or --output"
        ) from error
    return folder


def folder_to_mount(source: str) -> Path:
    """The folder that a container has to see for a folder, a file or a glob: for a glob, up to its first wildcard."""
    place = Path(source).expanduser().absolute()
    if place.is_dir():
        return place
    while not place.is_dir() or re.search(r"[*?\[]", str(place)):
        place = place.parent
    return place


def run(compose: list[str], told: list[str]) -> int:
    """Run the job's container to its end, and return its exit code.

    In a terminal the container has it, and so Ctrl-C. Elsewhere Compose would leave at a signal while the job goes on:
    there the signal goes to the container, and this process waits until the job has written what it has.
    """
    name = f"spotter-job-{uuid.uuid4().hex[:12]}"
    command = [*compose, "--progress", "quiet", "run", "--rm", "--no-deps", "--name", name]
    if sys.stdin.isatty() and sys.stdout.isatty():
        return subprocess.run([*command, *told]).returncode
    child = subprocess.Popen([*command, "-T", *told], stdin=subprocess.DEVNULL, start_new_session=True)

    def pass_on(signum: int, frame: FrameType | None) -> None:
        sent = subprocess.run(["docker", "kill", "--signal", str(signum), name], capture_output=True)
        if sent.returncode:  # not there yet, or no more
            child.send_signal(signum)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
