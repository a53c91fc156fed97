"""Disk space for images and for caches, which often lie on different disks."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from scripts import environments
from scripts import minimum_versions as minimum
from scripts.checks.doctor.context import Context
from scripts.docker.host import find_engine
from scripts.docker.images import has, of_stack
from scripts.findings import Finding, error, ok, unchecked
from scripts.models.model_files import hub_cache
from scripts.stack.services import images_of


def existing(path: Path) -> Path:
    """A path, or the nearest folder above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def room(name: str, path: Path, needed_gib: float, remedy: str) -> Finding:
    """A path has so much free space."""
    try:
        free = shutil.disk_usage(existing(path)).free / minimum.GIB
    except OSError as failure:
        return unchecked(name, f"{path}: {failure.strerror}")
    found = f"{free:.{0 if free >= 10 else 2}f} GiB free at {path}"
    return ok(name, found) if free >= needed_gib else error(name, found, f"{needed_gib:g} GiB", remedy)


def check(context: Context) -> list[Finding]:
    """Room for the missing environments or images and for the caches, on this host or in the engine's volumes."""
    needed = {"disk for caches": 0.1}
    if context.options is not None and not context.has_servers_model:
        needed |= dict.fromkeys(("disk for caches", "disk for models"), minimum.CACHES_GIB[context.device])
    if context.in_containers:
        return in_engine(context, needed)
    complete = all(environments.is_current(image.name) for image in images_of(context.settings, context.device))
    gib = 0.1 if complete else minimum.ENVIRONMENTS_GIB[context.device]
    findings = [room("disk for environments", environments.STATE, gib, "free some space there")]
    places = {"disk for caches": context.settings.state / "cache", "disk for models": hub_cache(context.environment)}
    remedy = "free some space there, or move it: STACK_STATE, HF_HOME"
    return findings + [room(name, places[name], gib, remedy) for name, gib in needed.items()]


def in_engine(context: Context, caches: Mapping[str, float]) -> list[Finding]:
    """Room for the missing images and for the volumes, both below the engine's root."""
    engine, reason = find_engine()
    root = Path(engine.about.get("DockerRootDir", "?")) if engine else None
    if root is None or not root.exists():
        where = f"the engine's root {root} is not on this host" if root else reason
        return [unchecked("disk for images", where)]
    wanted = of_stack(context.settings, context.device)
    absent = [image for image in wanted if not has(image.tag)]
    images = minimum.IMAGES_GIB[context.device] * len(absent) / len(wanted) or 1.0
    remedy = "`docker system df` lists the images and volumes; `docker image prune` frees some space"
    return [room(name, root, gib, remedy) for name, gib in {"disk for images": images, **caches}.items()]
