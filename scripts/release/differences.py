"""What differs between two versions of Spotter, read from their files alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline import version
from scripts import lock
from scripts.docker import images
from scripts.services import Image

# Environments that only people who work on Spotter have.
OF_DEVELOPERS = ("dev", "bench", "gemma3n-test")
# Packages of one lock that are listed; of more, the number is.
LISTED = 6


def text(tree: Path, name: str) -> str:
    """A file of a version; empty where it has none."""
    try:
        return (tree / name).read_text()
    except FileNotFoundError:
        return ""


def table_format(tree: Path) -> str:
    """The format of a version's runs."""
    found = re.search(r'^FORMAT = "(.+)"$', text(tree, "pipeline/tables.py"), re.MULTILINE)
    return found[1] if found else "unknown"


def packages(old: Path, new: Path) -> Iterator[str]:
    """The packages that change, by environment."""
    names = {path.name for tree in (old, new) for path in (tree / "images" / "locks").glob("*.lock")}
    for name in sorted(names):
        changes = lock.difference(text(old, f"images/locks/{name}"), text(new, f"images/locks/{name}"))
        if changes and Path(name).stem not in OF_DEVELOPERS:
            more = f" and {len(changes) - LISTED} more" if len(changes) > LISTED else ""
            yield f"packages of {Path(name).stem}: {', '.join(changes[:LISTED])}{more}"


def changed_images(old: Path, new: Path) -> list[str]:
    """The images that are not the same in both versions."""
    return [name for name, image in images.IMAGES.items() if fingerprint(image, old) != fingerprint(image, new)]


def fingerprint(image: Image, tree: Path) -> str | None:
    """An image's fingerprint in a version; None where it is made of other files there."""
    try:
        return images.fingerprint(image, tree)
    except FileNotFoundError:
        return None


def models(tree: Path) -> dict[str, str]:
    """The model and revision of each preset of a version."""
    found = {}
    for path in sorted((tree / "services").glob("*/presets/*")):
        named = re.search(r"^(?:model: |DETECTOR_MODEL=)(\S+)", path.read_text(), re.MULTILINE)
        pinned = re.search(r"^(?:revision: |DETECTOR_REVISION=)(\S+)", path.read_text(), re.MULTILINE)
        if named:
            service = path.parent.parent.name
            found[f"{service} preset {path.stem}"] = named[1] + (f"@{pinned[1][:12]}" if pinned else "")
    return found


def settings(tree: Path) -> dict[str, tuple[str, str]]:
    """A version's settings, each with its default and its explanation, from .env.example."""
    found: dict[str, tuple[str, str]] = {}
    explanation: list[str] = []
    named = False
    for line in text(tree, ".env.example").splitlines():
        if setting := re.match(r"#([A-Z0-9_]+)=(.*)$", line):
            found[setting[1]] = setting[2], " ".join(explanation)
            named = True
        else:  # the comment above the first of several settings is for all of them
            explanation = ([] if named else explanation) + [line.removeprefix("# ")]
            named = False
    return found


def changed_settings(old: Path, new: Path, own: Mapping[str, str]) -> Iterator[str]:
    """The settings that come, go, get another default or another explanation; `own`: those that the user has set."""
    before, after = settings(old), settings(new)
    for name in sorted(before.keys() | after.keys()):
        yours = f"; you set it to {own[name]!r}" if name in own and "KEY" not in name and "TOKEN" not in name else ""
        if name not in before:
            yield f"setting {name}: new, by default {after[name][0] or 'empty'}"
        elif name not in after:
            yield f"setting {name}: gone{yours}{': remove it, or it is an error' if name in own else ''}"
        elif before[name][0] != after[name][0]:
            yield f"setting {name}: default {before[name][0] or 'empty'} -> {after[name][0] or 'empty'}{yours}"
        elif before[name][1] != after[name][1] and name in own:
            yield f"setting {name}: explained in other words, see .env.example{yours}"


def differences(old: Path, new: Path, own: Mapping[str, str]) -> list[str]:
    """All that an upgrade changes for the user, a line each."""
    lines = [f"version: {version.version(old)} -> {version.version(new)}", *packages(old, new)]
    if changed := changed_images(old, new):
        lines.append(f"images that are made or loaded anew: {', '.join(changed)}")
    before, after = models(old), models(new)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            lines.append(f"model of {name}: {before.get(name, 'none')} -> {after.get(name, 'none')}")
    lines += changed_settings(old, new, own)
    formats = table_format(old), table_format(new)
    if formats[0] != formats[1]:
        lines.append(
            f"format of runs: {formats[0]} -> {formats[1]}: the new version neither continues nor reads runs of the "
            "old one; finish and export them first"
        )
    else:
        lines.append(f"format of runs: {formats[0]}, as before: runs are continued and read")
    return lines
