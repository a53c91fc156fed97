"""Spotter's version. pyproject.toml holds it, here and in the job's image."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def version(root: Path = ROOT) -> str:
    """The version of a checkout, such as 0.1.0."""
    return str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])
