"""Who holds a run up, in situations that are easy to judge."""

import pytest

from pipeline.metrics.bottleneck import Attribution, Moment, limiting
from pipeline.metrics.stage import STAGES

LIMITS = {"read": 2, "detect": 16, "crop": 2, "ask": 64, "store": 2, "collect": 1}


def at(**working: float) -> dict[str, Moment]:
    """Stages with so many rows in work; the others rest."""
    return {name: Moment(rows, 0.0, min(rows, 1.0)) for name, rows in working.items()}


@pytest.mark.parametrize(
    ("situation", "to_blame"),
    [
        (at(ask=64), {"ask": 1.0}),
        (at(read=2, detect=16, ask=64), {"ask": 1.0}),  # reading and detecting fill queues
        (at(read=1, detect=16, ask=20), {"detect": 1.0}),  # asking starves
        (at(detect=16, crop=2, ask=5), {"crop": 1.0}),
        (at(read=2, ask=10), {"read": 1.0}),
        (at(read=1.5, crop=0.5, ask=10), {"read": 0.75, "crop": 0.25}),  # they share the threads
        (at(read=0.2, store=1.8, ask=64), {"read": pytest.approx(0.1), "store": pytest.approx(0.9)}),
        (at(ask=64, collect=1), {"collect": 1.0}),
        (at(ask=3), {"ask": 1.0}),  # the last answers
        (at(detect=1, ask=10), {"detect": 1.0}),  # few images: the detector's have the longest way to go
        (at(read=0.25, detect=0.5, ask=3), {"read": 0.25, "detect": 0.5, "ask": 0.25}),  # the first ones
        ({"ask": Moment(0, 5, 0), "read": Moment(0, 9, 0)}, {"ask": 1.0}),  # an outage
        ({"read": Moment(0, 9, 0)}, {"read": 1.0}),  # a store that sends
        ({}, {}),
    ],
)
def test_who_is_to_blame(situation: dict[str, Moment], to_blame: dict[str, float]) -> None:
    assert limiting(situation, LIMITS) == to_blame


def test_blame_adds_up_to_the_time_in_which_somebody_worked() -> None:
    blame = Attribution(LIMITS)
    blame.add(2.0, at(ask=64))
    blame.add(1.0, at(read=1.5, crop=0.5))
    blame.add(0.5, at(read=0.5))
    blame.add(3.0, {})
    assert blame.cost_s == {"ask": 2.0, "read": 0.75 + 0.25, "crop": 0.25}
    assert set(blame.cost_s) <= set(STAGES)
