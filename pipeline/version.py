"""Spotter's version. pyproject.toml holds it, here and in the job's image."""

from __future__ import annotations

import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def version() -> str:
    """The version, such as 0.1.0."""
    return str(tomllib.loads(PROJECT.read_text())["project"]["version"])
