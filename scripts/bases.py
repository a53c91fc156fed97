"""The images' bases: pin each, as images/Dockerfile names it, to the digest that its tag has now."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from scripts.environments import ROOT

DOCKERFILE = ROOT / "images" / "Dockerfile"

# A base as the Dockerfile names it: a name, a tag and, once a registry was reached, a digest.
BASE = re.compile(r"^ARG (\w+)=([^$@\s]+:[^$@\s]+)(?:@(sha256:[0-9a-f]{64}))?$", re.MULTILINE)


def digest(base: str) -> str | None:
    """The digest that a base's tag has at its registry; None where that cannot be reached."""
    command = ["docker", "buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}", base]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found if re.fullmatch(r"sha256:[0-9a-f]{64}", found) else None


def refresh(say: Callable[[str], None], dockerfile: Path = DOCKERFILE) -> None:
    """Say of each base what its digest was and is now; then, when all is said, write the new ones."""
    before_all = text = dockerfile.read_text()
    for match in BASE.finditer(text):
        _, base, before = match.groups()
        now = digest(base)
        if now is None:
            pinned = f"stays at {before}" if before else "stays at its tag, without a digest"
            say(f"{base}: no registry can be asked (it takes docker with buildx): {pinned}")
        elif now == before:
            say(f"{base}: {now}, as before")
        else:
            say(f"{base}: {before or 'no digest'} -> {now}")
            text = text.replace(match[0], f"ARG {match[1]}={base}@{now}")
    if text != before_all:
        dockerfile.write_text(text)
