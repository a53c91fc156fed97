"""Disk: for images and for caches, which often lie on different ones; only for what is not there yet."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from scripts import environments
from scripts import minimum_versions as floors
from scripts.checks.doctor.context import Context
from scripts.docker.host import find_engine
from scripts.docker.images import IMAGES, OF_DEVICE, has
from scripts.findings import Finding
from scripts.models.model_files import hub_cache


def existing(path: Path) -> Path:
    """A path, or the nearest folder above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def room(name: str, path: Path, needed_gib: float, remedy: str) -> Finding:
    """The free space at a path against what is needed there."""
    try:
        free = shutil.disk_usage(existing(path)).free / floors.GIB
    except OSError as error:
        return Finding(name, "unchecked", f"{path}: {error.strerror}")
    found = f"{free:.{0 if free >= 10 else 2}f} GiB free at {path}"
    if free >= needed_gib:
        return Finding(name, "ok", found)
    return Finding(name, "error", found, f"{needed_gib:g} GiB for what is still to come", remedy)


def check(context: Context) -> list[Finding]:
    """Room for environments or images, and for caches: on this host, or in the engine's volumes."""
    needed = {"disk for caches": 0.1}
    if context.options is not None and not context.has_servers_model:
        needed |= dict.fromkeys(("disk for caches", "disk for models"), floors.CACHES_GIB[context.device])
    if context.in_containers:
        return in_engine(context, needed)
    names = (f"vllm-{context.device}", f"detector-{context.device}")
    missing = not all(environments.is_current(name) for name in names)
    findings = [
        room(
            "disk for environments",
            environments.STATE,
            floors.ENVIRONMENTS_GIB[context.device] if missing else 0.1,
            "free some space there",
        )
    ]
    places = {"disk for caches": context.settings.state / "cache", "disk for models": hub_cache(context.environment)}
    remedy = "free some space there, or move it: STACK_STATE, HF_HOME"
    return findings + [room(name, places[name], gib, remedy) for name, gib in needed.items()]


def in_engine(context: Context, caches: Mapping[str, float]) -> list[Finding]:
    """Room for the images that are not built yet, and for what goes into volumes: all below the engine's root."""
    engine, reason = find_engine()
    root = Path(engine.about.get("DockerRootDir", "?")) if engine else None
    if root is None or not root.exists():
        where = f"the engine's root {root} is not on this host" if root else reason
        return [Finding("disk for images", "unchecked", where)]
    names = OF_DEVICE[context.device]
    absent = [each for each in names if not has(IMAGES[each].tag)]
    images = floors.IMAGES_GIB[context.device] * len(absent) / len(names) or 1.0
    remedy = "`docker system df` shows what takes it; `docker image prune` frees some"
    return [room(name, root, gib, remedy) for name, gib in {"disk for images": images, **caches}.items()]
