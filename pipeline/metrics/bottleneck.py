"""Bottleneck attribution: which stage limits the run, moment by moment.

At each moment one resource limits the flow. Stages hold each other back: rows pile up before the one that limits, the
stages after it starve, and those before it fill the space between and then stand still. So a moment is attributed

1. to the most downstream stage that works on as many rows as it may. An earlier busy stage only fills queues.
   Synchronous stages share a pool of threads: when the pool is full, each counts by the threads that it takes.
2. when there is none (the first rows, the last ones, few rows): to the most upstream stage that works, because its
   rows have the longest way to go, and to the next stage for the part of the time in which that one rests.
3. when nobody works: to the service before which rows wait, for an outage to end or a retry to be due; otherwise to
   reading, while there are images left: a store is sending them.
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
    """Which stages limit the flow: their shares of a moment. They add up to 1, or to less where no stage limits it."""
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
    left, shares = 1.0, {}
    for name in STAGES:
        if taken := min(left, stages.get(name, IDLE).active):
            shares[name] = taken
            left -= taken
    for name in (ASK, DETECT, READ):
        if not shares and stages.get(name, IDLE).waiting > 0:
            return {name: 1.0}
    return shares


@dataclass
class Attribution:
    """Wall time by the stage that limits the run in it."""

    limits: Mapping[str, float]
    """The rows that each may work on now."""
    cost_s: dict[str, float] = field(default_factory=dict)

    def add(self, seconds: float, stages: Mapping[str, Moment]) -> None:
        """Attribute some seconds."""
        for name, share in limiting(stages, self.limits).items():
            self.cost_s[name] = self.cost_s.get(name, 0.0) + share * seconds
