"""The job in a container: what it sees of this host, as whom it runs, and how it is told to stop."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from pydantic import ByteSize

from pipeline.errors import UsageError
from pipeline.objects import Objects
from pipeline.places import is_object
from pipeline.settings import Settings
from pipeline.sources import has_entries, list_images
from scripts import api_key, containers, store_access
from scripts.job_user import User, make_folder, owner_of, refuse_unreachable, some
from scripts.settings import StackError

# What the container has itself, with its own content: mounted over, it could not run.
SYSTEM = ("bin", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "tmp", "usr")
OF_CONTAINER = frozenset(Path("/", place) for place in ("", *SYSTEM, "spotter", "spotter/pipeline"))


@dataclass(frozen=True, slots=True)
class Told:
    """What Compose is told of one job."""

    overlay: dict[str, Any]
    """A compose file over the others: what the container sees of this host, and as whom it runs."""
    arguments: list[str]
    """Of `docker compose run`, from the variables on to the job's own options."""


def tell(settings: Settings, variables: Mapping[str, str], options: list[str], secrets: Path) -> Told:
    """Make what Compose is told of a job.

    The container sees the images (read-only) and the runs' folder at the same paths as this host, and works in the same
    folder, so that the run's rows and messages name files as they are called here. `variables` are the job's, as
    the user set them; the key is not passed on, since `docker inspect` would show it: the compose file has a secret.
    Keys of a bucket are written to the folder `secrets`, for the same reason.

    Raises:
        StackError: a service's address leads nowhere from a container.
        UsageError: images or runs' folder are not there, or cannot be for a container or its user.
    """
    arguments = []
    for name, value in sorted(api_key.without(variables).items()):
        if name.endswith("_URL"):
            refuse_loopback(name, value)
        arguments += ["--env", f"{name}={value}"]
    folders, runs = image_folders(settings), runs_folder(settings)
    user = owner_of(runs)
    mounts = [Mount(folder, folder, read_only=True) for folder in sorted(folders - {runs})]
    if (job := Path(settings.job).expanduser().absolute()).is_file():
        mounts.append(Mount(job, job, read_only=True))
    mounts.append(Mount(runs, runs, read_only=False))
    for mount in mounts:
        refuse_mount(mount.here)
    if os.getuid() == 0:
        seen_by_job = [mount.here for mount in mounts if mount.read_only]
        refuse_unreachable(user, runs, seen_by_job, [] if is_object(settings.images) else some(settings.images))
    if uses_store(settings):
        refuse_loopback("the S3 server's address", settings.endpoint or "")
        seen = store_access.files(os.environ, secrets, user)
        arguments += [f"--env={name}={value}" for name, value in store_access.variables(os.environ, seen).items()]
        mounts += [Mount(here, there, read_only=True) for here, there in seen.items()]
    # The last of an option counts; `~` would be another folder in the container.
    places: list[str] = []
    for name in ("job", "work", "images", "output"):
        given = str(getattr(settings, name))
        places += [f"--{name}", given if is_object(given) else str(Path(given).expanduser())]
    return Told(overlay(user, Path.cwd(), mounts), [*arguments, "pipeline", *options, *places])


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder or file of this host, and where the container has it."""

    here: Path
    there: Path
    read_only: bool


def overlay(user: User, folder: Path, mounts: list[Mount]) -> dict[str, Any]:
    """A compose file for the job's container, for `folder` as its working folder."""
    volumes = [
        {
            "type": "bind",
            "source": verbatim(mount.here),
            "target": verbatim(mount.there),
            "read_only": mount.read_only,
            "bind": {"create_host_path": False},
        }
        for mount in mounts
    ]
    told: dict[str, Any] = {"user": f"{user.uid}:{user.gid}", "working_dir": verbatim(folder), "volumes": volumes}
    if user.groups:
        told["group_add"] = [str(group) for group in user.groups]
    return {"services": {"pipeline": told}}


def verbatim(path: Path) -> str:
    """A path as a compose file has it, where `$` begins a variable."""
    return str(path).replace("$", "$$")


def refuse_mount(place: Path) -> None:
    """See that a container can have a place of this host.

    Raises:
        UsageError: it has one of its own there, or Docker does not take the name.
    """
    if Path(os.path.normpath(place)) in OF_CONTAINER:
        raise UsageError(
            f"{place}: the job's container has a {place} of its own: give a folder in it, or set STACK_ENGINE=process"
        )
    try:
        str(place).encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{os.fsencode(place)!r}: Docker takes no name that is not UTF-8: rename it, or set STACK_ENGINE=process"
        ) from error


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
    named = set() if is_object(settings.images) else {place_to_mount(settings.images)}
    if has_entries(settings.images):
        sources = list_images(settings.images, settings.column, Objects(settings.endpoint))
        files = (os.fsdecode(source.path) for source in sources if source.row is None)
        folders = {Path(file).parent.absolute() for file in files if not is_object(file)}
        named |= {folder for folder in folders if folder.is_dir()}  # what is not there fails by itself
    return {folder for folder in named if not named & set(folder.parents)}


def runs_folder(settings: Settings) -> Path:
    """The folder for the runs, which has to be there before a container can see it.

    Raises:
        UsageError: it cannot be made.
    """
    folder = settings.runs.absolute()
    try:
        make_folder(folder)
    except OSError as error:
        raise UsageError(
            f"output: {folder} cannot be made: {error.strerror}: give a folder of yours with OUTPUT=... or --output"
        ) from error
    return folder


def place_to_mount(source: str) -> Path:
    """What a container has to see for a folder, a file or a glob: for a glob, the folder before its first wildcard.

    For a file that is its folder, which a list's entries are in; but one of the container's own stays hidden.

    Raises:
        UsageError: there is nothing there.
    """
    place = Path(source).expanduser().absolute()
    if place.is_dir():
        return place
    if place.exists():
        return place if place.parent in OF_CONTAINER else place.parent
    while re.search(r"[*?\[]", str(place)):
        place = place.parent
    if not place.is_dir():
        list_images(source)  # says so, as in a process
    return place


def run(compose: list[str], name: str, arguments: list[str], memory: ByteSize) -> int:
    """Run the job's container, under this name, to its end, and return its exit code.

    If it was killed for using more than `memory`, the limit, that is said.
    """
    begun = datetime.now(UTC)
    command = [*compose, "--progress", "quiet", "run", "--rm", "--no-deps", "--name", name]
    code = follow(command, name, arguments)
    if code == containers.KILLED and containers.events(name, "oom", begun, containers.LATE_S):
        print(
            f"error: the job was killed for using more than {memory.human_readable()} of memory: lower "
            "SPOTTER_BYTES_IN_FLIGHT or SPOTTER_MODEL_CONCURRENCY, or raise STACK_PIPELINE_MEMORY; the same command "
            "goes on from what was done",
            file=sys.stderr,
        )
    return code


def follow(command: list[str], name: str, arguments: list[str]) -> int:
    """Run a container to its end; its exit code.

    In a terminal the container has it, and so Ctrl-C. Elsewhere Compose would leave at a signal while the job goes on:
    there the signal goes to the container, and this process waits until the job has written what it has.
    """
    if sys.stdin.isatty() and sys.stdout.isatty():
        return subprocess.run([*command, *arguments]).returncode
    child = subprocess.Popen([*command, "-T", *arguments], stdin=subprocess.DEVNULL, start_new_session=True)

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
