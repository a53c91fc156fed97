"""The images' bases: pin each, as images/Dockerfile names it, to the digest that its tag has now.

scripts/lock.py runs this with Python alone, so it asks docker itself, without the client of python-on-whales.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from scripts.environments import ROOT
from scripts.programs import ask

DOCKERFILE = ROOT / "images" / "Dockerfile"

# A base as the Dockerfile names it: a name, a tag and, once a registry was reached, a digest.
BASE = re.compile(r"^ARG (\w+)=([^$@\s]+:[^$@\s]+)(?:@(sha256:[0-9a-f]{64}))?$", re.MULTILINE)


def digest(base: str) -> tuple[str | None, str]:
    """The digest that a base's tag has at its registry; None and the reason where that does not answer."""
    found, reason = ask(
        "docker", "buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}", base, timeout_s=60
    )
    if found is not None and not re.fullmatch(r"sha256:[0-9a-f]{64}", found):
        return None, f"it says {found!r}"
    return found, reason


def refresh(say: Callable[[str], None], dockerfile: Path = DOCKERFILE) -> None:
    """Say of each base what its digest was and is now; then, when all is said, write the new ones."""
    before_all = text = dockerfile.read_text()
    buildx, without = ask("docker", "buildx", "version", timeout_s=60)
    for match in BASE.finditer(text):
        _, base, before = match.groups()
        now, reason = digest(base) if buildx else (None, without)
        if now is None:
            why = "its registry does not answer" if buildx else "not asked, for that takes docker with buildx"
            pinned = f"stays at {before}" if before else "stays at its tag, without a digest"
            say(f"{base}: {pinned}: {why} ({reason})")
        elif now == before:
            say(f"{base}: {now}, as before")
        else:
            say(f"{base}: {before or 'no digest'} -> {now}")
            text = text.replace(match[0], f"ARG {match[1]}={base}@{now}")
    if text != before_all:
        dockerfile.write_text(text)
