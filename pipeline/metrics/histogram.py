"""Durations of any number of rows in little memory."""

from __future__ import annotations

import math
from collections import Counter

from pipeline.metrics.profile import Percentiles

# Durations are counted in buckets, each this much wider than the one before: percentiles are right to 2.5%.
BUCKET_GROWTH = 1.05
COUNTED_AT_ONCE = 64


class Histogram:
    """Durations in seconds, counted in logarithmic buckets."""

    _SCALE = 1 / math.log(BUCKET_GROWTH)
    _LEAST_S = 1e-9

    def __init__(self) -> None:
        self.buckets: Counter[int] = Counter()
        self.max = 0.0

    def add(self, seconds: list[float]) -> None:
        """Count durations; of very many at once every n-th stands for n."""
        step = 1 + len(seconds) // COUNTED_AT_ONCE
        scale, least, log = self._SCALE, self._LEAST_S, math.log
        for value in seconds[::step]:
            self.buckets[int(log(max(value, least)) * scale // 1)] += step
        self.max = max(self.max, *seconds) if seconds else self.max

    def quantile(self, share: float) -> float:
        """The duration that this share of all stays below (the middle of its bucket); 0 without durations."""
        left = share * self.buckets.total()
        for bucket in sorted(self.buckets):
            left -= self.buckets[bucket]
            if left <= 0:
                return min(math.exp((bucket + 0.5) / self._SCALE), self.max)
        return self.max

    def percentiles(self) -> Percentiles:
        """The percentiles that a profile shows."""
        return Percentiles(p50=self.quantile(0.5), p90=self.quantile(0.9), p99=self.quantile(0.99), max=self.max)
