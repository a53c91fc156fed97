"""How long earlier starts took on this host, so that the next can be estimated and a slower one is seen."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

# As many earlier starts decide the estimate.
RECENT = 5
# A start that takes this much longer than usual is told, if it is also longer by some seconds: on two shared cores
# starts of 45 to 50 s took up to 90 s when others worked.
SLOWER = 1.5
SLOWER_S = 5.0
# Lines that the file keeps at most.
KEPT = 500


@dataclass(frozen=True, slots=True)
class Start:
    """One start that came to be ready."""

    at: str
    key: str
    """What was started on which engine: only like is compared with like."""
    fingerprint: str
    """Of all that the service depends on; a change of it may explain a change of time."""
    ready_s: float
    phases: dict[str, float]


class StartHistory:
    """The starts in `state`/starts.jsonl, oldest first."""

    def __init__(self, state: Path) -> None:
        self.file = state / "starts.jsonl"

    def read(self, key: str) -> list[Start]:
        """The starts of one kind; lines that cannot be read are passed over."""
        try:
            lines = self.file.read_text().splitlines()
        except OSError:
            return []
        starts = []
        for line in lines:
            try:
                start = Start(**json.loads(line))
            except (ValueError, TypeError):
                continue
            if start.key == key:
                starts.append(start)
        return starts

    def usual_s(self, key: str) -> float | None:
        """What a start of this kind usually takes: the median of the last ones; None before the first."""
        recent = [start.ready_s for start in self.read(key)[-RECENT:]]
        return statistics.median(recent) if recent else None

    def add(self, key: str, fingerprint: str, ready_s: float, phases: dict[str, float]) -> str | None:
        """Write a start down; the sentence to show when it was slower than usual."""
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
    """The phase that takes the largest part in a slower start, in words; nothing where none is known."""
    usual = {name: statistics.median(start.phases.get(name, 0.0) for start in recent) for name in phases}
    if not usual:
        return ""
    name = max(phases, key=lambda each: phases[each] - usual[each])
    return f", most of it in phase {name}: {phases[name]:.0f} s, usually {usual[name]:.0f} s"
