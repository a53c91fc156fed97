"""Which stage holds a run up, moment by moment.

At each moment one resource limits the flow. Stages hold each other back: rows pile up before the one that limits, the
ones after it starve, and those before it fill the space between and then stand still. So the blame goes

1. to the most downstream stage that has all the work it may have. An earlier one that is busy, too, only fills queues.
   Synchronous stages share a pool of threads: when the pool is full they are to blame by the threads that they take.
2. when there is none (the first rows, the last ones, few rows): to the most upstream stage that works, because its
   rows have the longest way to go, and to the next one for the part of the time in which that one rests.
3. when nobody works: to the service before which rows wait, for an outage to end or until a try may be repeated; or
   else to reading, while there are images left: a store is sending them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.metrics.stage import ASK, DETECT, POOLED, READ, STAGES

# A stage has all the work that it may have at this share of its limit. Less than all, because rows come in batches: a
# slot stays free for a moment when a batch ends.
FULL = 0.7

# A stage stands for the whole pool of threads when it takes at least this share of it.
MOST_OF_POOL = 0.5


@dataclass(frozen=True, slots=True)
class Moment:
    """A stage over a short time, means."""

    working: float
    """Rows worked on at once."""
    waiting: float
    """Rows that had come and were not worked on."""
    active: float
    """Share of the time in which at least one row was worked on."""


IDLE = Moment(0.0, 0.0, 0.0)


def limiting(stages: Mapping[str, Moment], limits: Mapping[str, float]) -> dict[str, float]:
    """Who limits the flow: shares of the blame by stage. They add up to 1, or to less where nobody is to blame."""
    pool = {name: stages.get(name, IDLE).working for name in POOLED}
    in_pool = sum(pool.values())
    pool_full = in_pool >= FULL * limits[POOLED[0]]
    by_threads = {name: working / in_pool for name, working in pool.items() if working > 0} if in_pool else {}
    for name in reversed(STAGES):
        if name in pool:
            if pool_full and pool[name] >= MOST_OF_POOL * in_pool:
                return by_threads
        elif stages.get(name, IDLE).working >= FULL * limits[name]:
            return {name: 1.0}
    if pool_full:
        return by_threads
    left, blamed = 1.0, {}
    for name in STAGES:
        if taken := min(left, stages.get(name, IDLE).active):
            blamed[name] = taken
            left -= taken
    for name in (ASK, DETECT, READ):
        if not blamed and stages.get(name, IDLE).waiting > 0:
            return {name: 1.0}
    return blamed


@dataclass
class Blame:
    """Wall time by the stage that is to blame for it."""

    limits: Mapping[str, float]
    """The work that each may have, now."""
    cost_s: dict[str, float] = field(default_factory=dict)

    def add(self, seconds: float, stages: Mapping[str, Moment]) -> None:
        """Blame someone for some seconds."""
        for name, share in limiting(stages, self.limits).items():
            self.cost_s[name] = self.cost_s.get(name, 0.0) + share * seconds
