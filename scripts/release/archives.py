"""Images and models as files of a bundle: saved here, loaded on the other host."""

from __future__ import annotations

import gzip
import re
import shlex
import subprocess
import tarfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal

from scripts.commands import fetch
from scripts.docker import images
from scripts.docker.client import ask, command
from scripts.services import Image
from scripts.settings import BuildFailed, StackSettings
from scripts.stack.engine import Engine
from scripts.stack.service import Service

IMAGES = "images.tar.gz"
# gzip, because every Docker engine loads it without a further program: images shrink to 0.37 of their size, with zstd
# to 0.31 and at less than half the CPU time. Level 6 saves another tenth, and takes 2.6 times as long.
GZIP_LEVEL = 1
CHUNK = 2**20


def save_images(
    folder: Path, wanted: Sequence[Image], settings: StackSettings, console: Console
) -> list[dict[str, Any]]:
    """Save the images into one archive, in which they share their layers.

    Raises:
        BuildFailed: Docker cannot.
    """
    if not wanted:
        return []
    images.ensure(wanted, settings.state / "logs", console, offline=settings.offline)
    found = [(image, each) for image in wanted if (each := images.find(image.tag))]
    total, begun = sum(each.size for _, each in found), time.monotonic()
    save = subprocess.Popen(command("save", *(image.tag for image in wanted)), stdout=subprocess.PIPE)
    assert save.stdout
    try:
        with (
            fetch.Display("images", console, "saving") as display,
            gzip.open(folder / IMAGES, "wb", compresslevel=GZIP_LEVEL) as archive,
        ):
            display.show({"event": "plan", "bytes": total, "present": 0})
            written = 0
            while chunk := save.stdout.read(CHUNK):
                written += archive.write(chunk)
                display.show({"event": "progress", "bytes": written})
    finally:
        save.terminate()
        save.wait()
    if save.returncode:
        raise BuildFailed(f"docker save ended with {save.returncode}: is the engine up, and its disk readable?")
    size = (folder / IMAGES).stat().st_size
    console.print(f"images: {decimal(written)} as {decimal(size)}, {time.monotonic() - begun:.0f} s")
    return [{"tag": image.tag, "id": each.id, "bytes": each.size} for image, each in found]


def load_images(bundle: Path, wanted: Iterable[dict[str, Any]], console: Console) -> None:
    """Load the images of a bundle; those that the engine has already only get their names.

    Raises:
        BuildFailed: Docker cannot, or has other images afterwards.
    """
    missing = [each for each in wanted if ask("image", "inspect", each["id"])[0] is None]
    archive = bundle / IMAGES
    if missing:
        if not archive.exists():
            names = ", ".join(each["tag"] for each in missing)
            raise BuildFailed(f"{names}: the engine has them no longer, and {bundle} has no {IMAGES}")
        begun = time.monotonic()
        load = subprocess.Popen(command("load", "--quiet"), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert load.stdin
        with fetch.Display("images", console, "loading") as display, archive.open("rb") as file:
            display.show({"event": "plan", "bytes": archive.stat().st_size, "present": 0})
            while chunk := file.read(CHUNK):
                load.stdin.write(chunk)
                display.show({"event": "progress", "bytes": file.tell()})
            load.stdin.close()
        if load.wait():
            raise BuildFailed(f"docker load ended with {load.returncode}: `docker system df` shows the engine's disk")
        console.print(f"images: loaded in {time.monotonic() - begun:.0f} s")
    for each in wanted:
        if ask("image", "tag", each["id"], each["tag"])[0] is None:
            raise BuildFailed(f"{each['tag']}: the engine has no image {each['id']} after the load")


def cache_name(model: str) -> str:
    """A model's folder in the hub's cache."""
    return f"models--{model.replace('/', '--')}"


def save_model(
    folder: Path, engine: Engine, service: Service, settings: StackSettings, console: Console
) -> dict[str, Any]:
    """Write a model of the hub from the user's own cache, where it is fetched to if it is missing.

    Raises:
        StackError: it cannot be had.
    """
    engine.prepare([service])
    fetch.ensure(engine, [service], console, offline=settings.offline)
    name, revision = cache_name(service.model), service.revision or "main"
    archive = folder / "models" / f"{name}.tar"
    archive.parent.mkdir(exist_ok=True)
    commit = f"$(cat {name}/refs/{shlex.quote(revision)} 2>/dev/null || echo {shlex.quote(revision)})"
    listed = f"ls -d {name}/refs {name}/snapshots/$commit {name}/trees/$commit.json 2>/dev/null"
    with archive.open("wb") as file:  # -h: the cache has links to blobs, which a disk for carrying may not know
        # Of what is listed, some may be absent; tar refuses when all are.
        script = f"commit={commit}; tar -ch $({listed})"
        done = subprocess.run(engine.in_models(script), stdout=file, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise BuildFailed(f"{service.model} cannot be read from the cache: {done.stderr.strip()[-300:]}")
    licence, files, gated = licence_of(archive)
    console.print(f"{service.model}@{revision[:12]}: {decimal(archive.stat().st_size)}, licence {licence} ({files})")
    if gated:
        console.print(
            f"{service.model} is gated: it comes from your own cache, by the licence that you accepted; whoever gets "
            "the bundle must accept it too",
            soft_wrap=True,
        )
    return {
        "name": service.model,
        "revision": revision,
        "licence": licence,
        "gated": gated,
        "file": f"models/{archive.name}",
        "bytes": archive.stat().st_size,
    }


def licence_of(archive: Path) -> tuple[str, str, bool]:
    """A model's licence by its card, the names of its licence files, and whether the hub gives it on conditions."""
    card, files = "", []
    with tarfile.open(archive) as packed:
        for member in packed:
            name = Path(member.name).name
            if re.match(r"(?i)(licen[cs]e|notice|use_policy)", name):
                files.append(name)
            if name == "README.md" and (file := packed.extractfile(member)):
                card = file.read().decode(errors="replace").partition("---")[2].partition("\n---")[0]
    named = re.search(r"^license: *(\S+)", card, re.MULTILINE)
    return named[1] if named else "unknown", ", ".join(files) or "no licence file", "extra_gated" in card


def load_models(bundle: Path, wanted: Sequence[dict[str, Any]], engine: Engine, console: Console) -> None:
    """Put the models of a bundle into the cache of an engine's services.

    Raises:
        BuildFailed: they cannot be written.
    """
    for each in wanted:
        with (bundle / each["file"]).open("rb") as file:
            done = subprocess.run(engine.in_models("tar -x"), stdin=file, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise BuildFailed(f"{each['name']} cannot be written to the cache: {done.stderr.strip()[-300:]}")
        console.print(f"{each['name']}: {decimal(each['bytes'])} in the cache of the {engine.name} engine")
