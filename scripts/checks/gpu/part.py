"""A part of the check: its figures, as a table for a page and as JSON that `make doctor` shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scripts import files as whole_file
from scripts.environments import STATE

FOLDER = STATE / "gpu-check"


@dataclass(frozen=True, slots=True)
class Host:
    """Where a part runs: on a GPU, or its rehearsal on a CPU."""

    device: str
    """`cuda`, or `cpu` for the rehearsal."""
    name: str
    """Of the card or the rehearsal."""
    memory_mib: int
    port: int
    """The first of three free ports."""
    presets: tuple[str, ...]
    """Those to measure; on a GPU by default the largest that fits."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a part found."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    figures: dict[str, Any]
    """For machines."""
    wrong: Sequence[str] = ()
    """What does not hold, one sentence each."""


Part = Callable[[Host], Result]


def markdown(result: Result) -> str:
    """The rows as a table for the README."""
    shown = [[f"{cell:,.1f}" if isinstance(cell, float) else str(cell) for cell in row] for row in result.rows]
    lines = [list(result.columns), ["---"] * len(result.columns), *shown]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def file_of(name: str, device: str) -> Path:
    """Where a part's figures are kept."""
    return FOLDER / f"{name}-{device}.json"


def keep(name: str, host: Host, result: Result, seconds: float) -> Path:
    """Write a part's figures; the file that holds them."""
    place = file_of(name, host.device)
    content = {"part": name, "at": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(seconds)}
    content |= {"host": asdict(host), "wrong": list(result.wrong), "figures": result.figures}
    place.parent.mkdir(parents=True, exist_ok=True)
    whole_file.write(place, (json.dumps(content, indent=1) + "\n").encode(), 0o644)
    return place


def kept() -> list[dict[str, Any]]:
    """The figures of all parts that ran on this host."""
    found = []
    for place in sorted(FOLDER.glob("*-c*.json")):
        try:
            found.append(json.loads(place.read_text()))
        except (OSError, ValueError):
            continue
    return found
