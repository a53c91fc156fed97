"""The job in a container: what it sees of this host, as which user it runs, and how signals reach it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import ByteSize

from pipeline.errors import InvalidSetting, Unreadable, Unwritable
from pipeline.locations import is_object
from pipeline.settings import PREFIX, Settings
from pipeline.sources.listing import has_entries, list_images
from pipeline.sources.objects import Objects
from scripts import foreground
from scripts.docker import containers, store_access
from scripts.docker.client import PROXIES, ask
from scripts.docker.job_user import User, files, make_folder, owner_of, refuse_unreachable, some
from scripts.settings import InvalidStackSetting, JobCommand
from scripts.stack import api_key

# Links that lead to links are followed this far, as Linux does.
MOST_LINKS = 40
# Up to this many folders that links lead to are mounted one by one; instead of more, as an annex has them, the folder
# around them all.
MOST_FOLDERS = 16

# A job that was left behind gets this long to write what it has, before it is killed.
END_S = 60

# The container's own folders: with a mount over one of them it could not run.
SYSTEM = ("bin", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "tmp", "usr")
OF_CONTAINER = frozenset(Path("/", place) for place in ("", *SYSTEM, "spotter", "spotter/imaging", "spotter/pipeline"))


@dataclass(frozen=True, slots=True)
class Told:
    """What Compose is told of one job."""

    overlay: dict[str, Any]
    """A compose file over the others: what the container sees of this host, and as which user it runs."""
    arguments: list[str]
    """Of `docker compose run`, from the variables on to the job's own options."""
    access: dict[str, str]
    """Variables by which a Ray worker, too, reaches images: those of proxies and of a bucket."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder or file of this host, and its path in the container."""

    here: Path
    there: Path
    read_only: bool


LOOPBACK = ("localhost", "127.0.0.1", "::1")


def tell(job: JobCommand, environment: Mapping[str, str], secrets: Path) -> Told:
    """Make what Compose is told of a job.

    The container sees the images (read-only) and the runs' folder under the same paths as this host, and works in the
    same folder, so that rows and messages name files as this host does. `environment` holds the user's variables for
    job and bucket. The key is not passed on, since `docker inspect` would show it: the compose file has a secret. For
    the same reason the keys of a bucket go into files in the folder `secrets`.

    Raises:
        InvalidStackSetting: a service's address leads nowhere from a container, or the job needs what its image lacks.
        UsageError: images or runs' folder do not exist, or a container or its user cannot reach them.
    """
    settings, arguments, access = job.settings, list[str](), dict[str, str]()
    if settings.every is not None:
        raise InvalidStackSetting(
            f"SPOTTER_EVERY={settings.every}: the job's image has no PyAV: set STACK_ENGINE=process (docs/videos.md)"
        )
    variables = {name: value for name, value in environment.items() if name.startswith(PREFIX) and value}
    for name, value in sorted(api_key.without(variables).items()):
        if name.endswith("_URL"):
            for address in value.split(","):
                refuse_loopback(name, address)
        arguments += ["--env", f"{name}={value}"]
    for name, value in sorted(environment.items()):
        # A proxy at the host's own loopback address cannot be reached from a container.
        if name.upper() in PROXIES and value and urlsplit(value).hostname not in LOOPBACK:
            access[name.upper()] = value
    folders, runs = image_folders(settings), runs_folder(settings)
    user = owner_of(runs)
    mounts = [Mount(folder, folder, read_only=True) for folder in sorted(folders - {runs})]
    for single in (settings.job, settings.ca_file):
        if single and (file := Path(single).expanduser().absolute()).is_file():
            mounts.append(Mount(file, file, read_only=True))
    mounts.append(Mount(runs, runs, read_only=False))
    for named in filter(None, (settings.boxes, settings.truth, settings.from_run)):
        place = Path(named).expanduser().absolute()
        if place.exists() and not {place, *place.parents} & {mount.here for mount in mounts}:
            mounts.append(Mount(place, place, read_only=True))
    for mount in mounts:
        refuse_mount(mount.here)
    if os.getuid() == 0:
        seen_by_job = [mount.here for mount in mounts if mount.read_only]
        refuse_unreachable(user, runs, seen_by_job, [] if is_object(settings.images) else some(settings.images))
    # A list of images, which nobody has read yet, may name objects as well.
    places_read = filter(None, (settings.images, settings.output, settings.boxes, settings.truth))
    if any(map(is_object, places_read)) or has_entries(settings.images):
        refuse_loopback("the S3 server's address", settings.endpoint or "")
        seen = store_access.files(environment, secrets, user)
        access |= store_access.variables(environment, seen)
        mounts += [Mount(here, there, read_only=True) for here, there in seen.items()]
    arguments += [f"--env={name}={value}" for name, value in access.items()]
    # The last of an option counts; `~` would be another folder in the container.
    places: list[str] = []
    for name in ("job", "work", "images", "output"):
        given = str(getattr(settings, name))
        places += [f"--{name}", given if is_object(given) else str(Path(given).expanduser())]
    for name in ("ca_file", "boxes", "truth", "from_run"):
        if given := str(getattr(settings, name) or ""):
            places += [f"--{name.replace('_', '-')}", given if is_object(given) else str(Path(given).expanduser())]
    return Told(overlay(user, Path.cwd(), mounts), [*arguments, "pipeline", *job.options, *places], access)


def overlay(user: User, folder: Path, mounts: list[Mount]) -> dict[str, Any]:
    """A compose file for the job's container, with `folder` as its working folder."""
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
    """Raise InvalidSetting where the container has its own folder at a path, Unreadable if Docker refuses it."""
    if Path(os.path.normpath(place)) in OF_CONTAINER:
        raise InvalidSetting(
            f"{place}: the job's container has a {place} of its own: give a folder in it, or set STACK_ENGINE=process"
        )
    try:
        str(place).encode()
    except UnicodeEncodeError as error:
        raise Unreadable(
            f"{os.fsencode(place)!r}: Docker takes only names in UTF-8: rename it, or set STACK_ENGINE=process"
        ) from error


def refuse_loopback(name: str, address: str) -> None:
    """Raise InvalidStackSetting where an address is the host's own, which a container cannot reach."""
    if urlsplit(address).hostname in LOOPBACK:
        raise InvalidStackSetting(
            f"{name}={address}: from a container that is the container itself: give this host's address in its "
            "network, or set STACK_ENGINE=process"
        )


def image_folders(settings: Settings) -> set[Path]:
    """The folders that the container must see for the job's images, also those of a list's entries and of links.

    Raises:
        UsageError: there are no images, or a container cannot have their folder.
    """
    named = set() if is_object(settings.images) else {place_to_mount(settings.images)}
    for place in named:
        refuse_mount(place)  # before all of it is searched
    names: Iterable[str] = [] if is_object(settings.images) else files(settings.images)
    if has_entries(settings.images):
        sources = list_images(settings.images, settings.column, Objects(settings.endpoint)).sources
        listed = (os.fsdecode(source.path) for source in sources if source.row is None)
        names = [name for name in listed if not is_object(name)]
        folders = {Path(name).parent.absolute() for name in names}
        named |= {folder for folder in folders if folder.is_dir()}  # a missing file becomes a failed row
    named |= behind_links(names, named)
    return {folder for folder in named if not named & set(folder.parents)}


def behind_links(names: Iterable[str], seen: set[Path]) -> set[Path]:
    """The folders outside of `seen` that links among some files lead to: a hub's cache is made of links.

    Where that folder is one of the container's own, the file alone.
    """
    found: set[Path] = set()
    for name in names:
        for _ in range(MOST_LINKS):
            if not os.path.islink(name):  # noqa: PTH114 100,000 of them
                break
            name = os.path.normpath(os.path.join(os.path.dirname(name), os.readlink(name)))  # noqa: PTH115 PTH118 PTH120
            place = Path(name) if Path(name).parent in OF_CONTAINER else Path(name).parent
            if place not in found and not {place, *place.parents} & seen and (place.is_dir() or place.is_file()):
                found.add(place)
    return found if len(found) <= MOST_FOLDERS else {Path(os.path.commonpath(found))}


def runs_folder(settings: Settings) -> Path:
    """The folder for the runs, which must exist before a container can see it.

    Raises:
        Unwritable: it cannot be made, or written.
    """
    folder = settings.runs.absolute()
    try:
        make_folder(folder)
    except OSError as error:
        raise Unwritable(
            f"output: {folder} cannot be made: {error.strerror}: give a folder of yours with OUTPUT=... or --output"
        ) from error
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise Unwritable(f"output: {folder} cannot be written: give a folder of yours with OUTPUT=... or --output")
    return folder


def place_to_mount(source: str) -> Path:
    """What the container must see for a folder, a file or a glob: for a glob, the folder before its first wildcard.

    For a file it is the file's folder, which a list's entries are in; where that is one of the container's own, the
    file alone.

    Raises:
        NotFound: there is nothing.
    """
    place = Path(source).expanduser().absolute()
    if place.is_dir():
        return place
    if place.exists():
        return place if place.parent in OF_CONTAINER else place.parent
    while re.search(r"[*?\[]", str(place)):
        place = place.parent
    if not place.is_dir():
        list_images(source)  # raises the error of a job without a container
    return place


def run(compose: list[str], name: str, arguments: list[str], memory: ByteSize) -> int:
    """Run the job's container under a name to its end; its exit code.

    Says so where the container was killed for using more than `memory`, its limit.
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

    In a terminal Ctrl-C reaches the container, and Compose before the container is there. Any other signal would end
    Compose while the job goes on: it is sent to the container, and this process waits until the job has written what
    it has. Compose may end with its terminal: then the container is stopped.
    """
    in_terminal = foreground.has_terminal() and sys.stdout.isatty()

    def send(signum: int) -> bool:
        """Send a signal to the container; whether there is one."""
        return ask("kill", "--signal", str(signum), name)[0] is not None

    try:
        return foreground.run(
            [*command, *([] if in_terminal else ["-T"]), *arguments], in_terminal=in_terminal, send=send
        )
    finally:
        if ask("stop", "--time", str(END_S), name)[0] is not None:
            ask("rm", "--force", name)
