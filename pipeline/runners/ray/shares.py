"""The bounds on requests in flight, shared out among the workers."""

from __future__ import annotations

from collections.abc import Iterable

# After a worker has died, its requests may still be at the servers, which end or drop them in this time.
GRACE_S = 2.0


class Bound:
    """The bound of one service: what all workers hold together is never above it.

    A worker holds its share until it has said that it holds less, or is gone; only then can others hold more.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.held: dict[str, int] = {}
        """By worker: the largest number that it may have in flight."""
        self._gone: list[tuple[float, int]] = []

    def targets(self, workers: Iterable[str]) -> dict[str, int]:
        """Equal shares for these workers, and none for the others that hold some."""
        names = sorted(set(workers))
        shares = {name: self.most // len(names) + (at < self.most % len(names)) for at, name in enumerate(names)}
        return dict.fromkeys(self.held, 0) | shares

    def next(self, workers: Iterable[str], now: float) -> dict[str, int]:
        """What each of these workers may be told to hold now, where it holds something else."""
        self._gone = [(until, share) for until, share in self._gone if until > now]
        free = self.most - sum(self.held.values()) - sum(share for _, share in self._gone)
        changes = {}
        for name, target in self.targets(workers).items():
            held = self.held.get(name, 0)
            share = min(target, held + max(free, 0))
            free -= max(share - held, 0)
            if share != held:
                changes[name] = share
        return changes

    def told(self, name: str, share: int) -> None:
        """A worker gets a new share; until it confirms by `holds`, the larger of the old and the new one counts."""
        self.held[name] = max(self.held.get(name, 0), share)

    def holds(self, name: str, share: int) -> None:
        """A worker says that it holds no more than so many."""
        if name in self.held:
            self.held[name] = share

    def gone(self, name: str, now: float) -> None:
        """A worker is gone."""
        if share := self.held.pop(name, 0):
            self._gone.append((now + GRACE_S, share))
