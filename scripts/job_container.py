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
from pipeline.objects import Objects
from pipeline.places import is_object
from pipeline.settings import Settings
from pipeline.sources import has_entries, list_images
from scripts import api_key, store_access
from scripts.settings import StackError


def arguments(settings: Settings, variables: Mapping[str, str], options: list[str], secrets: Path) -> list[str]:
    """What `docker compose run` is told, from `--user` on to the job's own options.

    The container sees the images (read-only) and the runs' folder at the same paths as this host, and works in the same
    folder, so that the run's rows and messages name files as they are called here. `variables` are the job's, as
    the user set them; the key is not passed on, since `docker inspect` would show it: the compose file has a secret.
    Keys of a bucket are written to the folder `secrets`, for the same reason.

    Raises:
        StackError: a service's address leads nowhere from a container.
        UsageError: the runs' folder cannot be made.
    """
    told = ["--user", f"{os.getuid()}:{os.getgid()}", "--workdir", str(Path.cwd())]
    for name, value in sorted(api_key.without(variables).items()):
        if name.endswith("_URL"):
            refuse_loopback(name, value)
        told += ["--env", f"{name}={value}"]
    if uses_store(settings):
        refuse_loopback("the S3 server's address", settings.endpoint or "")
        told += store_access.arguments(os.environ, secrets)
    mounts = dict.fromkeys(image_folders(settings), "ro")
    if (job := Path(settings.job).expanduser()).is_file():
        mounts[job.absolute()] = "ro"
    mounts[runs_folder(settings)] = "rw"
    for place, mode in mounts.items():
        told += ["--volume", f"{place}:{place}:{mode}"]
    # The last of an option counts; `~` would be another folder in the container.
    places: list[str] = []
    for name in ("job", "work", "images", "output"):
        given = str(getattr(settings, name))
        places += [f"--{name}", given if is_object(given) else str(Path(given).expanduser())]
    return [*told, "pipeline", *options, *places]


def refuse_loopback(name: str, address: str) -> None:
    """See that an address leads out of a container.

    Raises:
        StackError: it is the host's own.
    """
    if urlsplit(address).hostname in ("localhost", "127.0.0.1", "::1"):
        raise StackError(
            f"{name}={address}: from a container that is the container itself: give this host's address in its "
            "network, or set STACK_ENGINE=process"
        )


def uses_store(settings: Settings) -> bool:
    """Whether the job reads or writes objects, or may: nobody has read the list of its images yet."""
    return is_object(settings.images) or is_object(settings.output) or has_entries(settings.images)


def image_folders(settings: Settings) -> set[Path]:
    """The folders that a container has to see for the job's images; those that a list names are looked up in it."""
    named = set() if is_object(settings.images) else {folder_to_mount(settings.images)}
    if has_entries(settings.images):
        sources = list_images(settings.images, settings.column, Objects(settings.endpoint))
        files = (os.fsdecode(source.path) for source in sources if source.row is None)
        named |= {folder_to_mount(str(Path(file).parent)) for file in files if not is_object(file)}
    return {folder for folder in named if not named & set(folder.parents)}


def runs_folder(settings: Settings) -> Path:
    """The folder for the runs, which has to be there before a container can see it.

    Raises:
        UsageError: it cannot be made.
    """
    folder = settings.runs.absolute()
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
