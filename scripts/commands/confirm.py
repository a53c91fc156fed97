"""The question before a command removes or replaces something."""

from __future__ import annotations

import sys

from rich.console import Console


def confirm(console: Console, refused: str) -> bool:
    """Whether the person at the terminal says yes; otherwise prints `refused`, which says what was left undone."""
    if not sys.stdin.isatty():
        console.print(f"{refused}: to do it without a question, YES=1")
        return False
    if console.input("go on? [y/N] ").strip().lower() in ("y", "yes"):
        return True
    console.print(refused)
    return False
