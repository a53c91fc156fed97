"""The containers' images: their sources, whether they are current, and how they are built."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import subprocess
import time
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from python_on_whales import Image as DockerImage
from python_on_whales.exceptions import NoSuchImage
from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipeline.settings import PREFIX
from scripts.docker.client import ask, client, command
from scripts.environments import LOCKS, ROOT
from scripts.services import KINDS, PIPELINE, RAY, Image
from scripts.settings import BuildFailed, StackSettings
from scripts.stack.plain_lines import PlainLines
from scripts.stack.services import images_of
from scripts.vllm.startup_causes import remedy_for

DOCKERFILE = ROOT / "images" / "Dockerfile"
SOURCES_LABEL = "spotter.sources"
# The job's variable for where its rows are made.
RUNNER = f"{PREFIX}RUNNER"

# How often a builder's log is read.
POLL_S = 0.5

# The bases that scripts/docker/offline_base.py makes; used wherever the engine has them.
OFFLINE_BASES = {"BASE_IMAGE": "spotter-base", "BUILD_IMAGE": "spotter-build-base"}
# And in place of the first, for images that compile.
COMPILER_BASE = "spotter-cuda-base"


# All images, by name.
IMAGES = {image.name: image for kind in KINDS.values() for image in kind.images.values()}
IMAGES |= {image.name: image for image in (PIPELINE, RAY)}


def of_stack(settings: StackSettings, device: str) -> tuple[Image, ...]:
    """The images of a stack on a device, and the job's."""
    return (*images_of(settings, device), of_job(settings))


def of_job(settings: StackSettings) -> Image:
    """The job's image, by its runner."""
    return RAY if settings.user_variables(RUNNER).get(RUNNER) == "ray" else PIPELINE


def fingerprint(image: Image, root: Path = ROOT) -> str:
    """Changes when the image must be built anew; `root`: the checkout of which it is made."""
    files = [root / DOCKERFILE.relative_to(ROOT)]
    if not image.brings_environment:
        locks = root / LOCKS.relative_to(ROOT)
        files += [locks / f"{image.name}.lock", locks / "uv.lock", root / "scripts" / "environments.py"]
    for source in image.sources:
        place = root / source
        inside = sorted(path for path in place.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        files += inside if place.is_dir() else [place]
    digest = hashlib.sha256()
    for path in files:
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def base_image(argument: str = "BASE_IMAGE") -> str:
    """The base that images/Dockerfile names in an argument."""
    match = re.search(rf"^ARG {argument}=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    if match is None:
        raise BuildFailed(f"{DOCKERFILE.relative_to(ROOT)} names no {argument}")
    return match[1]


def find(tag: str) -> DockerImage | None:
    """An image of the engine; None where it has none of that name."""
    try:
        return client().image.inspect(tag)
    except NoSuchImage:
        return None


def has(tag: str) -> bool:
    """Whether the engine has an image."""
    return find(tag) is not None


def is_current(image: Image) -> bool:
    """Whether the engine has the image, built from the files as they are now."""
    found = find(image.tag)
    return found is not None and (found.config.labels or {}).get(SOURCES_LABEL) == fingerprint(image)


def left_over() -> list[str]:
    """The ids of images without a name that builds left: older versions, and stages of Docker's classic builder."""
    found, _ = ask("image", "ls", "--quiet", "--filter", "dangling=true", "--filter", f"label={SOURCES_LABEL}")
    return (found or "").split()


def size(image: Image) -> str:
    """An image's size, for people."""
    found = find(image.tag)
    return f"{found.size / 1e6:,.0f} MB" if found else "not built"


@cache
def at_registry(base: str) -> bool:
    """Whether a registry answers for a base."""
    return ask("manifest", "inspect", base, timeout_s=15)[0] is not None


def substitutes() -> dict[str, str]:
    """This host's images that replace bases of images/Dockerfile, by argument.

    They are the bases of offline_base.py and, where no registry answers, a base's tag without its digest, which
    `docker load` does not keep.
    """
    found = dict(OFFLINE_BASES) if has(OFFLINE_BASES["BASE_IMAGE"]) else {}
    for argument in dict.fromkeys(image.base for image in IMAGES.values()):
        named = base_image(argument)
        tag = named.partition("@")[0]
        if argument not in found and tag != named and has(tag) and not has(named) and not at_registry(named):
            found[argument] = tag
    return found


def bases_for(image: Image) -> dict[str, str]:
    """The substitutes for an image's bases."""
    found = substitutes()
    if image.compiles and found.get("BASE_IMAGE") == OFFLINE_BASES["BASE_IMAGE"]:
        found["BASE_IMAGE"] = COMPILER_BASE
    return found


@cache
def why_not_buildable(images: tuple[Image, ...]) -> str | None:
    """Why images cannot be built here, as far as can be told beforehand; None where they can."""
    for image in images:
        base = bases_for(image).get(image.base, base_image(image.base))
        if not (is_current(image) or has(base) or at_registry(base)):
            return f"no container registry can be reached for {base}; {way_without_registry(image)}"
    return None


def way_without_registry(image: Image) -> str:
    """How to get an image's base where no container registry can be reached."""
    base = base_image(image.base)
    load = f"`docker pull {base}` and `docker save` on a host that reaches one, `docker load` here"
    make = f"scripts/docker/offline_base.py{' --cuda' if image.compiles else ''} makes a base"
    return f"{make}, or {load}" if image.base in OFFLINE_BASES else load


def git(*arguments: str) -> str | None:
    """The output of git in this repository; None without its history, or without git."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def public_address(remote: str) -> str | None:
    """A git remote's public address, without credentials; None for a path or a private host."""
    if "://" not in remote and ":" in remote.partition("/")[0]:  # git@github.com:owner/name.git
        remote = "ssh://" + remote.replace(":", "/", 1)
    parts = urlsplit(remote)
    if parts.scheme not in ("https", "http", "ssh", "git") or "." not in (parts.hostname or ""):
        return None
    try:
        if not ipaddress.ip_address(parts.hostname or "").is_global:
            return None
    except ValueError:  # a name
        pass
    return f"https://{parts.hostname}{parts.path.removesuffix('/').removesuffix('.git')}"


def labels(image: Image) -> dict[str, str]:
    """An image's labels: those of the Open Containers Initiative, and the fingerprint for `is_current`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    source = public_address(git("remote", "get-url", "origin") or "")
    return {
        "org.opencontainers.image.title": f"Spotter: {image.title}",
        "org.opencontainers.image.description": project["description"],
        "org.opencontainers.image.licenses": project["license"],
        "org.opencontainers.image.version": project["version"],
        "org.opencontainers.image.revision": git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
        or "unknown",
        **({"org.opencontainers.image.source": source} if source else {}),
        SOURCES_LABEL: fingerprint(image),
    }


def build(image: Image, logs: Path, console: Console) -> None:
    """Build an image; the builder's log goes to a file in `logs`.

    Raises:
        BuildFailed: it cannot be built; shows the log's last lines.
    """
    # --force-rm: a step that failed or was interrupted leaves no container.
    # python-on-whales builds with buildx alone, which a host may lack.
    build = command("build", "--force-rm", "--file", str(DOCKERFILE), "--target", image.target, "--tag", image.tag)
    found = bases_for(image)
    # Docker's classic builder makes every stage before its target, so also the environment that vLLM's own image does
    # not need: the smallest one will do. BuildKit leaves it out.
    for name, base in {"ENVIRONMENT": PIPELINE.name if image.brings_environment else image.name, **found}.items():
        build += ["--build-arg", f"{name}={base}"]
    for name, value in labels(image).items():
        build += ["--label", f"{name}={value}"]
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"build-{image.name}.log"
    stands_on = f" on {found[image.base]}, not on {base_image(image.base)}" if image.base in found else ""
    console.print(f"building image {image.name}{stands_on} ...")
    started = time.monotonic()
    with log.open("wb") as output:
        builder = subprocess.Popen(
            [*build, str(ROOT)], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            follow(builder, log, f"image {image.name}", console)
        finally:
            builder.terminate()  # after an interrupt; to one that has ended it does nothing
            builder.wait()
    if builder.returncode:
        end = "\n".join(lines_of(log)[-15:])
        without_registry = f"where no container registry can be reached: {way_without_registry(image)}"
        raise BuildFailed(
            f"image {image.name} cannot be built. The builder's last lines:\n{end}\nWhole log: {log}\n"
            f"What helps: {remedy_for(end) or without_registry}"
        )
    console.print(f"image {image.name}: {size(image)}, {time.monotonic() - started:.0f} s")


def lines_of(log: Path) -> list[str]:
    """The lines of a builder's log that show something, without the colours of Docker's classic builder."""
    return [line for line in Text.from_ansi(log.read_text(errors="replace")).plain.splitlines() if line.strip()]


def follow(child: subprocess.Popen[bytes], log: Path, title: str, console: Console) -> None:
    """Show the last line of a program's log, and for how long it runs, until it ends."""
    begin, lines = time.monotonic(), PlainLines(console)
    with Live(console=console, refresh_per_second=2, transient=True) as live:
        while child.poll() is None:
            shown = f"{title}, {time.monotonic() - begin:.0f} s  {' '.join(lines_of(log)[-1:])}"
            if console.is_terminal:
                live.update(Text(shown[: console.width - 1], style="dim"))
            elif lines.due():
                console.print(shown, markup=False)
            time.sleep(POLL_S)


def ensure(images: Sequence[Image], logs: Path, console: Console, *, offline: bool = False) -> None:
    """Build the images that are missing, or older than their sources.

    Raises:
        BuildFailed: one cannot be built, or must be and `offline` forbids the network.
    """
    old = [image for image in images if not is_current(image)]
    if old and offline:
        raise BuildFailed(
            f"{', '.join(image.tag for image in old)}: not built from the current files, and STACK_OFFLINE forbids "
            "the network: run `make build` where there is a network, or set STACK_ENGINE=process"
        )
    for image in old:
        build(image, logs, console)
