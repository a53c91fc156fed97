"""How many requests may be at a server: what it refuses, and the queue that it tells of, bound them below the limit."""

from __future__ import annotations

import asyncio
import io
import random
import statistics
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import settings
from pipeline.clients import server_load
from pipeline.clients.limiter import LEAST_IN_QUEUE, AdaptiveLimiter
from pipeline.metrics.profile import Profile
from pipeline.run import run
from tests.doubles.capacity import Capacity, Limited
from tests.doubles.faults import grid
from tests.doubles.simulated import serve
from tests.pictures import encoded, gradient


def rounds(slots: AdaptiveLimiter, number: int, refused: float = 0.0) -> list[float]:
    """The limit after each answer of so many rounds in which all slots are used and a share of the requests refused."""
    drawn, limits = random.Random(0), []

    async def request() -> None:
        await slots.take()
        sent_in = slots.round
        await asyncio.sleep(0)
        if drawn.random() < refused:
            slots.refused(sent_in)
        else:
            slots.answered()
        limits.append(slots.limit)
        slots.give_back()

    async def main() -> None:
        for _ in range(number):
            await asyncio.gather(*(request() for _ in range(int(slots.limit))))

    asyncio.run(main())
    return limits


def test_a_burst_of_refusals_is_one_refusal() -> None:
    """What was at the server together was refused for one reason: its queue was full at that moment."""

    async def main() -> None:
        slots = AdaptiveLimiter(256)
        for _ in range(256):
            await slots.take()
        sent_in = slots.round
        for _ in range(20):
            slots.refused(sent_in)
        assert slots.limit == pytest.approx(256 * 0.7)

    asyncio.run(main())


def test_a_server_that_goes_on_refusing_gets_less_with_each_round() -> None:
    slots = AdaptiveLimiter(100)
    rounds(slots, 5, refused=1.0)
    assert 16 < slots.limit < 17
    rounds(slots, 20, refused=1.0)
    assert slots.limit == 1


def test_a_server_that_refuses_few_keeps_a_few_busy() -> None:
    """A twentieth of the requests, however few there are: neither one at a time nor as if nothing were."""
    later = rounds(AdaptiveLimiter(256), 1000, refused=0.05)[2000:]
    assert 8 < statistics.mean(later) < 32
    assert min(later) > 2


def test_a_server_that_refuses_no_more_gets_as_much_as_before_in_some_rounds() -> None:
    slots = AdaptiveLimiter(256)
    rounds(slots, 20, refused=1.0)
    assert slots.limit == 1
    limits = rounds(slots, 20)
    assert limits == sorted(limits)
    assert limits[-1] < 256
    assert rounds(slots, 10)[-1] == 256


def test_after_a_death_few_are_sent_and_soon_as_many_as_before() -> None:
    """One of the requests in flight may be why: it must not take the others' attempts with it."""
    slots = AdaptiveLimiter(64)
    slots.died()
    assert slots.limit == 8
    for _ in range(56):
        slots.answered()
    assert slots.limit == 64
    slots.died()
    slots.refused(sent_in=0)  # now it is too many that it says
    low = slots.limit
    slots.answered()
    assert slots.limit < low + 1


def look(slots: AdaptiveLimiter, *, in_flight: int, running: float, waiting: float) -> float:
    """The limit after a look at the server's queue."""
    slots.in_flight = in_flight
    slots.queue(running, waiting)
    return slots.limit


def test_a_long_queue_is_brought_down_to_a_short_one() -> None:
    """Also while it is worked off, which takes longer than until the next look: the limit is not cut again for it."""
    slots = AdaptiveLimiter(256)
    for in_flight in (256, 256, 240, 200, 100, 60):
        look(slots, in_flight=in_flight, running=20, waiting=in_flight - 20)
    assert slots.limit == pytest.approx(40)


def test_a_short_queue_changes_nothing() -> None:
    slots = AdaptiveLimiter(64)
    for _ in range(10):
        assert look(slots, in_flight=64, running=32, waiting=32) == 64
        assert look(slots, in_flight=3, running=2, waiting=0) == 64  # hardly any rows: the bound stays


def test_a_queue_that_is_gone_at_the_next_look_was_none() -> None:
    """A start, or a wave of requests that end together."""
    slots = AdaptiveLimiter(64)
    for _ in range(5):
        assert look(slots, in_flight=64, running=1, waiting=63) == 64
        assert look(slots, in_flight=64, running=64, waiting=0) == 64


def test_a_server_that_runs_nothing_yet_tells_nothing() -> None:
    slots = AdaptiveLimiter(64)
    for _ in range(5):
        assert look(slots, in_flight=64, running=0, waiting=64) == 64


def test_when_the_queue_is_short_again_so_is_the_way_back() -> None:
    slots = AdaptiveLimiter(256)
    for _ in range(2):
        look(slots, in_flight=256, running=8, waiting=248)
    assert slots.limit == 16
    limits = [look(slots, in_flight=int(slots.limit), running=slots.limit, waiting=0) for _ in range(4)]
    assert limits == [32, 64, 128, 256]


def test_others_in_the_queue_are_met_with_the_same_factor_and_never_leave_nothing() -> None:
    """50 of 100 that run and 900 that wait are ours: all who do the same come to 100 that wait."""
    slots = AdaptiveLimiter(64)
    for _ in range(2):
        look(slots, in_flight=50, running=100, waiting=900)
    assert slots.limit == pytest.approx(10)
    for _ in range(10):  # the others do not do it
        look(slots, in_flight=int(slots.limit), running=100, waiting=900)
    assert slots.limit == LEAST_IN_QUEUE


def test_a_bound_below_what_is_never_a_long_queue_stays() -> None:
    slots = AdaptiveLimiter(4)
    for _ in range(3):
        assert look(slots, in_flight=4, running=1, waiting=300) == 4


def test_refusals_and_the_queue_are_one_limit() -> None:
    slots = AdaptiveLimiter(64)
    for _ in range(2):
        look(slots, in_flight=64, running=20, waiting=44)
    assert slots.limit == pytest.approx(40)
    slots.refused(sent_in=0)
    assert slots.limit == pytest.approx(28)
    for _ in range(1000):
        slots.answered()
    assert slots.limit == pytest.approx(40)


AT_ONCE, IMAGES, BOXES = 8, 40, 5
ROWS = IMAGES * BOXES


@pytest.mark.parametrize(("told", "measure"), [(True, True), (False, True), (True, False)])
def test_a_run_keeps_the_servers_queue_short_and_the_server_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool, measure: bool
) -> None:
    """A server that works on 8 requests at once, and a bound of 64; without metrics the bound alone counts."""
    monkeypatch.setattr(server_load, "POLL_S", 0.05)
    images = tmp_path / "images"
    images.mkdir()
    for number in range(IMAGES):
        (images / f"{number}.jpg").write_bytes(encoded(gradient(400 + number, 60)))
    # 40 rows a second, which a third of a core can send; in steps, so that after a pause of the host there is time to.
    capacity = Capacity(0.2, AT_ONCE, steps=10)
    limited = Limited(keep_bodies=False, model_capacity=capacity, boxes=lambda image: grid(BOXES))
    waiting: list[int] = []
    limited.model_fault = lambda number: waiting.append(limited.waiting - 1)  # without the one that has just been done
    limited.metrics = limited.gauges if told else None
    with serve(limited):
        for name, value in limited.settings.items():
            monkeypatch.setenv(name, value)
        arguments = ["--images", str(images), "--output", str(tmp_path / "runs"), "--model-concurrency", "64"]
        done = run(settings.load(arguments), Console(file=io.StringIO()), measure=measure)
    assert done.manifest["counts"]["detections"] == {"total": ROWS, "answered": ROWS, "failed": 0}
    # What the server has no room for is no reason to look for who holds the run up elsewhere.
    if measure:
        profile = Profile.of(done.folder)
        ask = next(stage for stage in profile.stages if stage.name == "ask")
        assert profile.diagnosis.bottleneck == "ask"
        assert (ask.concurrency.room < 64) is told
    # After the first looks, and before there are too few rows left to wait.
    meanwhile = waiting[ROWS // 3 : -64]
    assert statistics.median(meanwhile) == pytest.approx(AT_ONCE if told else 64 - AT_ONCE, abs=AT_ONCE / 2)
    # Each time when the server had done a request, the next one was there.
    assert sum(left > 0 for left in meanwhile) >= 0.95 * len(meanwhile)
