"""The containers' images: what each is made from, whether it is current, how it is built."""

from __future__ import annotations

import hashlib
import re
import subprocess
import time
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rich.console import Console

from scripts.environments import LOCKS, ROOT
from scripts.settings import StackError

DOCKERFILE = ROOT / "images" / "Dockerfile"
SOURCES_LABEL = "spotter.sources"

# What scripts/offline_base.py makes; used wherever the engine has them.
OFFLINE_BASES = {"BASE_IMAGE": "spotter-base", "BUILD_IMAGE": "spotter-build-base"}


@dataclass(frozen=True, slots=True)
class Image:
    """One image: a target of images/Dockerfile."""

    name: str
    target: str
    title: str
    environment: str | None
    """The locked environment in it; none where the base brings all."""
    sources: tuple[str, ...]
    """What is copied into it beside the environment: files and folders, relative to the repository's root."""

    @property
    def tag(self) -> str:
        """The name that the compose files use."""
        return f"spotter-{self.name}:local"

    def fingerprint(self) -> str:
        """Changes when the image has to be built anew."""
        files = [DOCKERFILE]
        if self.environment:
            files += [LOCKS / f"{self.environment}.lock", LOCKS / "uv.lock", ROOT / "scripts" / "environments.py"]
        for source in self.sources:
            place = ROOT / source
            inside = sorted(path for path in place.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
            files += inside if place.is_dir() else [place]
        digest = hashlib.sha256()
        for path in files:
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()


_DETECTOR = ("services/__init__.py", "services/detector", "samples/models/tiny-detector", "images/health.py")

IMAGES = {
    image.name: image
    for image in (
        Image("pipeline", "pipeline", "the job", "pipeline", ("pipeline",)),
        Image("detector-cpu", "detector", "the detector service on a CPU", "detector-cpu", _DETECTOR),
        Image("detector-cuda", "detector", "the detector service on a GPU", "detector-cuda", _DETECTOR),
        Image("vllm-cpu", "vllm-cpu", "vLLM on a CPU", "vllm-cpu", ("samples/models/tiny-vlm", "images/health.py")),
        Image("vllm", "vllm", "vLLM on a GPU", None, ("images/health.py",)),
    )
}

# The images of a stack, by device.
OF_DEVICE = {"cpu": ("detector-cpu", "vllm-cpu", "pipeline"), "cuda": ("detector-cuda", "vllm", "pipeline")}


def docker(*arguments: str, timeout_s: float | None = None) -> str | None:
    """What a docker command prints; None where it fails, or docker is not there."""
    try:
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def feed(command: list[str], text: str) -> tuple[int, str]:
    """Run a command with a text as its input; its exit code, and what it printed."""
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def base_image() -> str:
    """The base that images/Dockerfile names."""
    match = re.search(r"^ARG BASE_IMAGE=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    if match is None:
        raise StackError(f"{DOCKERFILE.relative_to(ROOT)} names no BASE_IMAGE")
    return match[1]


def has(tag: str) -> bool:
    """Whether the engine has an image."""
    return docker("image", "inspect", tag) is not None


def is_current(image: Image) -> bool:
    """Whether the engine has the image, made from the files as they are now."""
    label = docker("image", "inspect", "--format", f'{{{{index .Config.Labels "{SOURCES_LABEL}"}}}}', image.tag)
    return label == image.fingerprint()


@cache
def why_not_buildable() -> str | None:
    """Why the images cannot be built here, as far as one can tell beforehand; None where they can."""
    if has(OFFLINE_BASES["BASE_IMAGE"]) or has(base_image()):
        return None
    if docker("manifest", "inspect", base_image(), timeout_s=15) is not None:
        return None
    return f"no container registry can be reached for {base_image()}, and scripts/offline_base.py has made no base"


def labels(image: Image) -> dict[str, str]:
    """An image's labels."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        revision = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # a bundle without its history
        revision = "unknown"
    return {
        "org.opencontainers.image.title": f"Spotter: {image.title}",
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.revision": revision,
        SOURCES_LABEL: image.fingerprint(),
    }


def build(image: Image, logs: Path, console: Console) -> None:
    """Build an image; what the builder says goes to a file in `logs`.

    Raises:
        StackError: it cannot be built; names the step, and the log.
    """
    command = ["docker", "build", "--file", str(DOCKERFILE), "--target", image.target, "--tag", image.tag]
    if image.environment:
        command += ["--build-arg", f"ENVIRONMENT={image.environment}"]
    if has(OFFLINE_BASES["BASE_IMAGE"]):
        for name, base in OFFLINE_BASES.items():
            command += ["--build-arg", f"{name}={base}"]
    for name, value in labels(image).items():
        command += ["--label", f"{name}={value}"]
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"build-{image.name}.log"
    console.print(f"building image {image.name} ...", highlight=False)
    started = time.monotonic()
    with log.open("wb") as output:
        done = subprocess.run([*command, str(ROOT)], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise StackError(
            f"image {image.name} cannot be built. The builder's last lines:\n{end}\nWhole log: {log}\nWhere no "
            "container registry can be reached, scripts/offline_base.py makes the base"
        )
    console.print(f"image {image.name}: {size(image)}, {time.monotonic() - started:.0f} s", highlight=False)


def size(image: Image) -> str:
    """An image's size, for people."""
    found = docker("image", "inspect", "--format", "{{.Size}}", image.tag)
    return f"{int(found) / 1e6:,.0f} MB" if found else "not built"


def ensure(names: list[str], logs: Path, console: Console) -> None:
    """Build the images that are missing, or older than what they are made from.

    Raises:
        StackError: one cannot be built.
    """
    for name in names:
        if not is_current(IMAGES[name]):
            build(IMAGES[name], logs, console)
