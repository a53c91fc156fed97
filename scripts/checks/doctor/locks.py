"""The lock files: in step with pyproject.toml, and the environments with them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from scripts import environments
from scripts.checks.doctor.context import Context
from scripts.environments import LOCKS, NAMES, ROOT
from scripts.findings import Finding, error, ok
from scripts.stack.services import images_of


def pins(groups: dict[str, list[str | dict[str, str]]], name: str) -> list[str]:
    """The pinned versions of a dependency group and of the groups that it includes."""
    found: list[str] = []
    for entry in groups[name]:
        found += pins(groups, entry["include-group"]) if isinstance(entry, dict) else [entry]
    return found


def normal(pin: str) -> str:
    """A pin as lock files write it: no extras, dashes, lower case."""
    name, _, version = re.sub(r"\[[^\]]*\]", "", pin).partition("==")
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"


def missing_pins(project: Path, locks: Path) -> dict[str, list[str]]:
    """The pins that are missing in a group's lock, by group."""
    groups = tomllib.loads(project.read_text())["dependency-groups"]
    missing = {}
    for name in groups:
        lock = locks / f"{name}.lock"
        if not lock.exists() and name not in ("uv", "pipeline", *NAMES):
            continue  # other groups include it
        lines = re.findall(r"^([\w.-]+)={2,3}([^\s;\\]+)", lock.read_text(), re.MULTILINE) if lock.exists() else []
        locked = {normal(f"{package}=={version}") for package, version in lines}
        if absent := [pin for pin in pins(groups, name) if "==" in pin and normal(pin) not in locked]:
            missing[name] = absent
    return missing


def check(context: Context) -> list[Finding]:
    """Every pin of pyproject.toml is in its lock; the environments belong to the present locks."""
    findings = [
        error("locks", f"images/locks/{group}.lock lacks {', '.join(absent)}", "pyproject.toml's pins", "make lock")
        for group, absent in missing_pins(ROOT / "pyproject.toml", LOCKS).items()
    ] or [ok("locks", "in step with pyproject.toml")]
    wanted = ("operator", *(image.name for image in images_of(context.settings, context.device)))
    stale = [name for name in wanted if environments.folder(name).exists() and not environments.is_current(name)]
    if stale:
        what = f"of older locks: {', '.join(stale)}; the next start makes them anew"
        findings.append(ok("environments", what))
    return findings
