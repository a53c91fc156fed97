"""`bundle`: write one folder from which Spotter installs on a host without a network."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tarfile
import time
import zipfile
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal

from pipeline.errors import InvalidSetting, NotFound, Unwritable
from pipeline.version import version
from scripts import environments, minimum_versions
from scripts.checks.doctor.disk import existing
from scripts.commands import fetch
from scripts.commands.engines import one_at_a_time
from scripts.docker import host as docker_host
from scripts.docker import images
from scripts.docker.engine import ComposeEngine, why_not
from scripts.environments import LOCKS, ROOT
from scripts.programs import ask, dotted
from scripts.release import archives, install
from scripts.services import Image
from scripts.settings import BuildFailed, StackSettings
from scripts.stack import devices
from scripts.stack.engine import Engine
from scripts.stack.process_engine import ProcessEngine
from scripts.stack.service import Service
from scripts.stack.services import make_stack
from scripts.stack.vllm_server import PRESETS

HERE = Path(__file__).parent
ENGINES = ("process", "compose", "both")
# Room for an environment's wheels before they are there: measured 0.8 GB for the CPU, 3.5 GB for CUDA.
WHEELS_BYTES = {"cpu": 1_000_000_000, "cuda": 5_000_000_000}
# The oldest versions that take the images.
DOCKER = {"engine": dotted(minimum_versions.DOCKER_ENGINE), "compose": dotted(minimum_versions.COMPOSE)}
# The way of an environment to its size on disk: compiled modules beside the wheels' content.
COMPILED = 1.3


@dataclass(frozen=True)
class Contents:
    """What a bundle brings."""

    engines: tuple[Engine, ...]
    presets: tuple[str, ...]
    services: tuple[tuple[Engine, Service], ...]
    """On each engine, without repetition."""
    images: tuple[Image, ...]
    device: str
    """`cuda` if any preset needs a GPU."""

    @property
    def environments(self) -> list[str]:
        """The environments whose wheels are needed; the commands' own comes first."""
        services = [service.environment for engine, service in self.services if engine.name == "process"]
        return list(dict.fromkeys(["uv", "operator", *services]))

    @property
    def models(self) -> list[tuple[Engine, Service]]:
        """The services whose models come from the hub, each model once."""
        found = {each.model: (engine, each) for engine, each in self.services if fetch.from_hub(each)}
        return list(found.values())


def add_arguments(parser: ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("--engine", choices=ENGINES, help="what the other host runs; default: what this one would")
    parser.add_argument("--presets", nargs="+", help="presets whose models it brings; default: that of this host")
    parser.add_argument("--output", help="the folder to make (spotter-bundle-VERSION-MACHINE)")


def run(
    settings: StackSettings, console: Console, engine: str | None, presets: list[str] | None, output: str | None
) -> None:
    """Write the bundle; an interrupted or failed one leaves nothing.

    Raises:
        UsageError: the folder exists already, the disk is too full, or this is no git clone.
        StackError: a part cannot be made.
    """
    folder = Path(output or ROOT / f"spotter-bundle-{version()}-{platform.machine()}").absolute()
    if folder.exists():
        raise InvalidSetting(f"{folder} exists: remove it, or give another folder with OUTPUT=")
    partial = folder.with_name(f"{folder.name}.partial")
    names = tracked(exclude=(folder, partial))
    with one_at_a_time(settings, console):
        contents = choose(settings, engine, presets)
        console.print(
            f"bundle for {', '.join(each.name for each in contents.engines)} on {contents.device}, presets "
            f"{', '.join(contents.presets)}: {folder}"
        )
        refuse_full(folder, contents)
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir(parents=True)
        begun = time.monotonic()
        try:
            manifest = fill(partial, names, settings, contents, console)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    size = install.total_bytes(manifest)
    digest = hashlib.sha256((folder / install.MANIFEST).read_bytes()).hexdigest()
    console.print(f"{folder}: {decimal(size)} in {time.monotonic() - begun:.0f} s, manifest {digest}", soft_wrap=True)
    console.print(f"next: carry it over; there: sh {folder.name}/install.sh spotter")


def choose(settings: StackSettings, engine: str | None, presets: Sequence[str] | None) -> Contents:
    """What the bundle brings, from the command's arguments and the settings."""
    engines: list[Engine] = []
    services: dict[tuple[str, str, str], tuple[Engine, Service]] = {}
    wanted: dict[str, Image] = {}
    chosen, used = [], []
    for given in presets or (None,):
        device, preset = device_of(settings, given)
        stack = make_stack(settings, device, preset, {})
        chosen.append(stack.preset)
        used.append(device)
        if engine is None:
            engine = (
                settings.engine if settings.engine != "auto" else "process" if why_not(settings, device) else "compose"
            )
        made: list[Engine] = []
        if engine in ("process", "both"):
            made.append(ProcessEngine(settings, device))
        if engine in ("compose", "both"):
            docker_host.client_config()
            made.append(ComposeEngine(settings, device, preset))
            wanted |= {image.name: image for image in images.of_stack(settings, device)}
        engines += made
        services |= {(each.name, s.environment, s.model): (each, s) for each in made for s in stack.services}
    named = {each.name: each for each in engines}
    return Contents(
        tuple(named.values()),
        tuple(chosen),
        tuple(services.values()),
        tuple(wanted.values()),
        "cuda" if "cuda" in used else "cpu",
    )


def device_of(settings: StackSettings, preset: str | None) -> tuple[str, str]:
    """The device and preset of the other host: as this host's, unless a preset or device is named."""
    if preset is None and settings.preset == "auto":
        return devices.choose(settings, devices.find_gpus(settings))[:2]
    name = preset or settings.preset
    if settings.device != "auto":
        return settings.device, name
    bundled = (PRESETS / f"{name}.yaml").exists()  # a user's own preset is for this host's device
    return "cuda" if name != "cpu" and (bundled or devices.find_gpus(settings)) else "cpu", name


def refuse_full(folder: Path, contents: Contents) -> None:
    """Check that the disk has room for the bundle.

    Raises:
        Unwritable: it has not.
    """
    sizes = [found.size for image in contents.images if (found := images.find(image.tag))]
    process = any(engine.name == "process" for engine in contents.engines)
    needed = sum(sizes) // 2 + (WHEELS_BYTES[contents.device] if process else WHEELS_BYTES["cpu"] // 4)
    needed += minimum_versions.CACHES_GIB["cuda"] * minimum_versions.GIB if contents.models else 0
    free = shutil.disk_usage(existing(folder)).free
    if free < needed:
        raise Unwritable(
            f"{decimal(free)} are free at {existing(folder)}, expected about {decimal(needed)}: give OUTPUT="
        )


def tracked(exclude: Sequence[Path]) -> list[str]:
    """The files of this working tree, tracked or new, without what git ignores.

    Raises:
        NotFound: this is no git clone.
    """
    listed = images.git("ls-files", "--cached", "--others", "--exclude-standard")
    if not listed:
        raise NotFound(f"{ROOT} is no git clone, which `make bundle` needs to list its files")
    files = [name for name in listed.splitlines() if (ROOT / name).is_file()]
    return [name for name in files if not any(place in (ROOT / name).parents for place in exclude)]


def revision() -> str:
    """The commit of the checkout; with `-dirty` where files differ from it."""
    return images.git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*") or "unknown"


def fill(
    folder: Path, names: Sequence[str], settings: StackSettings, contents: Contents, console: Console
) -> install.Manifest:
    """Write all parts and the manifest; returns the manifest."""
    said = revision()
    new = len((images.git("ls-files", "--others", "--exclude-standard") or "").splitlines())
    console.print(
        f"checkout: the working tree at {said}, {len(names)} files" + (f", {new} not committed" if new else "")
    )
    pack(folder / install.CHECKOUT, names)
    for name in ("install.py", "install.sh"):
        shutil.copyfile(HERE / name, folder / name)
    logs = settings.state / "logs"
    download_wheels(folder / "wheels", contents.environments, logs, console)
    python = bring_python(folder)
    console.print(f"Python {environments.PYTHON}: {python or 'not in the bundle; the other host needs it, with venv'}")
    brought = archives.save_images(folder, contents.images, settings, console)
    models = [archives.save_model(folder, engine, service, settings, console) for engine, service in contents.models]
    wheels = sorted((folder / "wheels").iterdir())
    unpacked = sum(info.file_size for wheel in wheels for info in zipfile.ZipFile(wheel).infolist())
    manifest = {
        "format": install.FORMAT,
        "version": version(),
        "revision": said,
        "engines": [engine.name for engine in contents.engines],
        "presets": contents.presets,
        "host": {
            "system": platform.system(),
            "machine": platform.machine(),
            "python": environments.PYTHON,
            "glibc": glibc_of([wheel.name for wheel in wheels]),
        },
        "docker": DOCKER,
        "python": python,
        "images": brought,
        "models": models,
        "disk": {
            "folder": sum(wheel.stat().st_size for wheel in wheels) + int(unpacked * COMPILED),
            "images": sum(each["bytes"] for each in brought),
            "models": sum(each["bytes"] for each in models),
        },
        "files": {str(path.relative_to(folder)): about(path) for path in sorted(folder.rglob("*")) if path.is_file()},
    }
    (folder / install.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def glibc_of(wheels: Sequence[str]) -> str:
    """The glibc that wheels need, by their names; 2.17 is the oldest that Python's tags of today mean."""
    numbers = [min(map(int, found)) for name in wheels if (found := re.findall(r"manylinux_2_(\d+)", name))]
    return f"2.{max([17, *numbers])}"


def about(path: Path) -> dict[str, Any]:
    """A file's size and hash."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def pack(archive: Path, names: Sequence[str]) -> None:
    """Write files of this checkout into an archive, as nobody's."""

    def anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        return info

    with tarfile.open(archive, "w:gz", compresslevel=6) as packed:
        for name in sorted(names):
            packed.add(ROOT / name, name, recursive=False, filter=anonymous)


def download_wheels(folder: Path, names: Sequence[str], logs: Path, console: Console) -> None:
    """Download the wheels of environments; pip verifies the locks' hashes.

    Raises:
        BuildFailed: they cannot be had.
    """
    environments.ensure_uv()
    pip = [str(environments.uv().with_name("python")), "-m", "pip", "download", "--no-deps", "--require-hashes"]
    pip += ["--only-binary=:all:", f"--python-version={environments.PYTHON}", "--dest", str(folder)]
    logs.mkdir(parents=True, exist_ok=True)
    for name in names:
        log, begun = logs / f"wheels-{name}.log", time.monotonic()
        with log.open("wb") as output:
            child = subprocess.Popen(
                [*pip, *index_of_torch(name), "-r", str(LOCKS / f"{name}.lock")],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                images.follow(child, log, f"wheels of {name}", console)
            finally:
                child.terminate()
                child.wait()
        if child.returncode:
            end = "\n".join(images.lines_of(log)[-5:])
            raise BuildFailed(f"the wheels of {name} cannot be downloaded:\n{end}\nWhole log: {log}")
        size = sum(wheel.stat().st_size for wheel in folder.iterdir())
        console.print(f"wheels of {name}: {decimal(size)} in all, {time.monotonic() - begun:.0f} s")


def index_of_torch(name: str) -> list[str]:
    """pip's option for the index of an environment's `+cpu` build; none where a folder of wheels holds it.

    uv knows that index by a name, and says its address.
    """
    env = environments.uv_environment()
    backend = environments.torch_arguments(name, env)
    if not backend:
        return []
    pinned = re.search(r"^torch==\S+", (LOCKS / f"{name}.lock").read_text(), re.MULTILINE)
    options = ["--quiet", "--no-deps", "--no-header", "--emit-index-annotation", *backend, "-"]
    done = subprocess.run(
        [environments.uv(), "pip", "compile", *options],
        input=pinned[0] if pinned else "torch",
        env=env,
        capture_output=True,
        text=True,
    )
    address = re.search(r"# from (\S+)", done.stdout)
    if address is None:
        raise BuildFailed(f"PyTorch's index for {name} cannot be reached: {done.stderr.strip()[-300:]}")
    return [f"--extra-index-url={address[1]}"]


def bring_python(folder: Path) -> str | None:
    """Pack the Python that uv has fetched for itself; its name in the bundle, None where uv has none and gets none.

    A Python of this host's own is linked to this host's libraries, so it cannot go along.
    """
    environments.ensure_uv()
    environment = {"UV_PYTHON_INSTALL_DIR": str(environments.STATE / "python-builds"), "PATH": os.environ["PATH"]}
    find = ("env", *(f"{n}={v}" for n, v in environment.items()), str(environments.uv()), "python")
    if ask(*find, "find", "--managed-python", environments.PYTHON)[0] is None and not os.environ.get("UV_OFFLINE"):
        ask(*find, "install", "--no-bin", environments.PYTHON, timeout_s=600)
    found, _ = ask(*find, "find", "--managed-python", environments.PYTHON)
    if found is None:
        return None
    home = Path(found).resolve().parent.parent
    name = f"python/{home.name}.tar.gz"
    (folder / name).parent.mkdir()
    with tarfile.open(folder / name, "w:gz", compresslevel=1) as packed:
        packed.add(home, "python")
    return name
