"""The history of starts on this host: estimates the next one, and reports a slower one."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

# The number of earlier starts that decide the estimate.
RECENT = 5
# A start is reported as slower from this factor and this many seconds on: on two shared cores, starts of 45 to 50 s
# took up to 90 s beside other work.
SLOWER = 1.5
SLOWER_S = 5.0
# The most lines that the file keeps.
KEPT = 500


@dataclass(frozen=True, slots=True)
class Start:
    """One start that became ready."""

    at: str
    key: str
    """What was started on which engine: only starts of the same key are compared."""
    fingerprint: str
    """Of all that the service depends on; its change may explain a change of time."""
    ready_s: float
    phases: dict[str, float]


class StartHistory:
    """The starts in `state`/starts.jsonl, oldest first."""

    def __init__(self, state: Path) -> None:
        self.file = state / "starts.jsonl"

    def read(self, key: str) -> list[Start]:
        """The starts of one key."""
        return [start for start in self.all() if start.key == key]

    def fingerprints(self, engine: str) -> set[str]:
        """The fingerprints of the services that an engine has started."""
        return {start.fingerprint for start in self.all() if start.key.startswith(f"{engine}/")}

    def all(self) -> list[Start]:
        """All starts; skips unreadable lines."""
        try:
            lines = self.file.read_text().splitlines()
        except OSError:
            return []
        starts = []
        for line in lines:
            try:
                starts.append(Start(**json.loads(line)))
            except (ValueError, TypeError):
                continue
        return starts

    def usual_s(self, key: str) -> float | None:
        """The median of the last starts of a key; None before the first."""
        recent = [start.ready_s for start in self.read(key)[-RECENT:]]
        return statistics.median(recent) if recent else None

    def add(self, key: str, fingerprint: str, ready_s: float, phases: dict[str, float]) -> str | None:
        """Record a start; a sentence to show where it was slower than usual."""
        usual_s, recent = self.usual_s(key), self.read(key)[-RECENT:]
        rounded = {name: round(seconds, 2) for name, seconds in phases.items()}
        start = Start(datetime.now(UTC).isoformat(timespec="seconds"), key, fingerprint, round(ready_s, 2), rounded)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        kept = self.file.read_text().splitlines()[-KEPT + 1 :] if self.file.exists() else []
        partial = self.file.with_suffix(".partial")
        partial.write_text("\n".join([*kept, json.dumps(asdict(start))]) + "\n")
        partial.replace(self.file)
        if usual_s is None or ready_s < usual_s * SLOWER or ready_s < usual_s + SLOWER_S:
            return None
        most = slowed_most(recent, phases)
        return f"slower than usual ({usual_s:.0f} s){most}: {self.file} has the earlier starts by phase"


def slowed_most(recent: Sequence[Start], phases: Mapping[str, float]) -> str:
    """The phase with the largest delay, in words; empty where no phase is known."""
    usual = {name: statistics.median(start.phases.get(name, 0.0) for start in recent) for name in phases}
    if not usual:
        return ""
    name = max(phases, key=lambda each: phases[each] - usual[each])
    return f", most of it in phase {name}: {phases[name]:.0f} s, usually {usual[name]:.0f} s"
