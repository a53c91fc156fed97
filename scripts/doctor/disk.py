"""Disk: for images and for caches, which often lie on different ones; only for what is not there yet."""

from __future__ import annotations

import shutil
from pathlib import Path

from scripts import environments
from scripts.doctor import floors
from scripts.doctor.context import Context, ask
from scripts.environments import ROOT
from scripts.findings import Finding
from scripts.images import IMAGES, OF_DEVICE
from scripts.preflight.model_files import hub_cache, locate


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
    """Room for environments or images, and for caches."""
    findings = []
    missing = [
        name for name in (f"vllm-{context.device}", f"detector-{context.device}") if not environments.is_current(name)
    ]
    root, _ = (
        ask("docker", "info", "--format", "{{.DockerRootDir}}") if context.settings.engine != "process" else ("", "")
    )
    if root:
        findings.append(images(context, Path(root)))
    if not root or context.settings.engine == "auto":
        needed = floors.ENVIRONMENTS_GIB[context.device] if missing and not root else 0.1
        findings.append(room("disk for environments", environments.STATE, needed, "free some space there"))
    caches = [("disk for caches", context.settings.state / "cache")]
    needed = 0.1
    if context.options is not None:
        model, _ = locate(context.options, ROOT)
        if model is None or model.folder is None:
            needed = floors.CACHES_GIB[context.device]
            caches.append(("disk for models", hub_cache(context.environment)))
    findings += [
        room(name, path, needed, "free some space there, or move it: STACK_STATE, HF_HOME") for name, path in caches
    ]
    return findings


def images(context: Context, root: Path) -> Finding:
    """Room for the images that are not built yet."""
    names = OF_DEVICE[context.device]
    absent = [
        each for each in names if ask("docker", "image", "inspect", "--format", "{{.Id}}", IMAGES[each].tag)[0] is None
    ]
    needed = floors.IMAGES_GIB[context.device] * len(absent) / len(names) or 1.0
    if not root.exists():
        return Finding("disk for images", "unchecked", f"the engine's root {root} is not on this host")
    return room(
        "disk for images", root, needed, "`docker system df` shows what takes it; `docker image prune` frees some"
    )
