"""The parts of the Ray runner that need no Ray: shards, shares of the bounds, measures."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from typing import Any, get_args

import pytest

from pipeline.errors import ClusterUnusable
from pipeline.metrics.stage import ASK, READ, RunMetrics
from pipeline.metrics.traces import TracedStep
from pipeline.runners import RUNNERS
from pipeline.runners.ray import checks
from pipeline.runners.ray.measures import Measures
from pipeline.runners.ray.shards import DEATHS, MOST, SUSPECTS, Shards, alone
from pipeline.runners.ray.shares import GRACE_S, Bound
from pipeline.runners.ray.worker import Facts, reaches, shares_folder, versions
from pipeline.settings import Settings
from pipeline.sources.listing import Source


def sources(number: int) -> list[Source]:
    return [Source(f"/{at}.jpg".encode(), "1-1") for at in range(number)]


def row(source: Source, index: int | None = None, detections: int | None = None) -> dict[str, Any]:
    return {"path": source.path, "index": index, "detections": detections}


def finish(shards: Shards, number: int, done: list[Source]) -> list[bytes]:
    ended = [each["path"] for source in done for each in shards.add(number, [row(source)])]
    assert shards.end(number) == 0
    return ended


def test_every_runner_is_a_value_of_the_setting() -> None:
    assert set(get_args(Settings.model_fields["runner"].annotation)) == set(RUNNERS)


def test_each_source_ends_once_whatever_dies() -> None:
    """Workers die at random places, one image kills each of its workers: it fails alone, the others end."""
    everything, ended, failed = sources(1500), list[bytes](), list[bytes]()
    shards, poison = Shards(everything), everything[700].path
    deaths = 0
    for turn in itertools.count():
        worker = f"w{turn % 3}"
        while shards.next(worker, 3) is not None:
            pass
        if not shards.left:
            break
        begun = [(number, shard) for number, shard in shards.begun.items() if shard.worker == worker]
        for number, shard in begun:
            mine = list(shard.sources.values())
            if any(source.path == poison for source in mine):
                before = list(itertools.takewhile(lambda source: source.path != poison, mine))
                ended += [each["path"] for source in before[::2] for each in shards.add(number, [row(source)])]
                failed += [each["path"] for each in shards.lost(worker, suspect=True)]
                deaths += 1
                break
            ended += finish(shards, number, mine)
    assert failed == [poison]
    assert deaths == DEATHS
    assert sorted([*ended, *failed]) == sorted(source.path for source in everything)


def test_a_suspect_is_alone_at_its_last_death() -> None:
    shards = Shards(sources(200))
    for deaths in range(DEATHS):
        begun = shards.next("w0", 1)
        assert begun is not None
        together = len(shards.begun[begun[0]].sources)
        assert together == (50, SUSPECTS, 1)[deaths]
        assert (shards.next("w0", 1) is None) == bool(deaths), "nothing else is beside a suspect"
        list(shards.lost("w0", suspect=True))
    assert list(shards.deaths.values()).count(DEATHS) == 1


def test_a_worker_that_was_stopped_with_the_driver_makes_no_suspects() -> None:
    shards = Shards(sources(10))
    assert shards.next("w0", 1) is not None
    assert list(shards.lost("w0", suspect=False)) == []
    assert not shards.deaths
    assert len(shards.todo) == 10


def test_rows_of_an_image_come_together_and_a_dead_workers_half_is_dropped() -> None:
    shards = Shards(sources(1))
    number, (source,) = shards.next("w0", 1) or (0, [])
    assert list(shards.add(number, [row(source, 0, 2)])) == []
    list(shards.lost("w0", suspect=True))
    number, _ = shards.next("w1", 1) or (0, [])
    both = [row(source, 1, 2), row(source, 0, 2)]
    assert list(shards.add(number, both)) == both


def test_a_shard_that_ends_without_rows_says_so() -> None:
    shards = Shards(sources(3))
    number, _ = shards.next("w0", 1) or (0, [])
    assert shards.end(number) == 3


def test_shards_are_smaller_near_the_end() -> None:
    shards = Shards(sources(5000))
    sizes = [len(begun[1]) for at in range(40) if (begun := shards.next(f"w{at}", 2))]
    assert sizes[0] == MOST
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == 5000


def test_only_a_file_of_its_own_size_is_known_to_be_new() -> None:
    sizes = {b"a": 1, b"b": 2, b"copy of b": 2, b"c": None, b"d": None, b"e": 3}
    listed = [Source(path, f"1-{size}" if size else None) for path, size in sizes.items()]
    assert alone(listed) == {b"a", b"e"}


@pytest.mark.parametrize("most", [1, 16, 64])
def test_shares_never_exceed_the_bound(most: int) -> None:
    """Workers join, leave and die in turn; each gives back late."""
    bound, told = Bound(most), dict[str, int]()
    members, now = list[str](), 0.0
    for turn in range(200):
        now += 0.5
        if turn % 5 == 0 and turn < 40:
            members.append(f"w{turn}")
        if turn % 30 == 29 and members:
            bound.gone(name := members.pop(0), now)
            told.pop(name, None)
        for name, share in bound.next(members, now).items():
            before = bound.held.get(name, 0)
            bound.told(name, share)
            told[name] = share
            assert bound.held[name] == max(before, share)
        assert sum(bound.held.values()) <= most
        if turn % 2:
            for name, share in told.items():
                bound.holds(name, share)
    assert sum(bound.held.values()) == most, "all of it is used in the end"


def test_the_share_of_a_dead_worker_is_free_after_its_requests() -> None:
    bound = Bound(10)
    for name, share in bound.next(["a", "b"], 0.0).items():
        bound.told(name, share)
    bound.gone("a", 1.0)
    assert bound.next(["b"], 1.0) == {}
    assert bound.next(["b"], 1.1 + GRACE_S) == {"b": 10}


def test_measures_of_workers_with_other_clocks_are_one_runs() -> None:
    """Two workers ask at the same time for a second each, with clocks that are hours apart."""
    run, here = RunMetrics.of(16, 64, 2), time.perf_counter()
    measures = Measures(run)
    assert abs(measures.clock() - here) < 1
    for name, skew in (("w0", 5000.0), ("w1", -3000.0)):
        own = RunMetrics.of(16, 64, 2)
        measures.joins(name, "node", RunMetrics.of(16, 64, 2))
        clock = time.perf_counter() + skew
        stage = own.stages[ASK]
        stage._arrived.append((clock - 2.0, 1))
        stage._worked.extend([clock - 1.5, (clock - 1.5, clock - 0.5, 10, 20)])
        stage.count(1, 1)
        own.traces.add("a", TracedStep(ASK, "a-0", clock - 1.5, clock - 0.5))
        measures.add(name, {each: it.drain() for each, it in own.stages.items()}, own.traces.drain(), clock)
        assert not stage._worked
    now = measures.clock()
    assert now <= time.perf_counter()
    run.stages[ASK].aggregate(now)
    run.traces.aggregate()
    measured = run.stages[ASK].result(0.0)
    assert (measured.rows, measured.failed, measured.concurrency.peak) == (2, 2, 2)
    assert measured.work_s == pytest.approx(2.0, abs=0.01)
    assert measured.busy_s == pytest.approx(1.0, abs=0.2)
    assert [step.began for step in run.traces.steps()] == pytest.approx([now - 1.5] * 2, abs=0.5)
    measures.end()
    for profile in measures.profiles(0.0):
        assert [(stage.name, stage.rows) for stage in profile.stages] == [(ASK, 1)]
        assert profile.stages[0].work_s == pytest.approx(1.0, abs=0.01)
    assert READ not in [stage.name for profile in measures.profiles(0.0) for stage in profile.stages]


def test_a_token_tells_the_run_s_own_folder(tmp_path: Any) -> None:
    token = tmp_path / "token"
    token.write_text("one")
    assert shares_folder(str(token), "one")
    assert not shares_folder(str(token), "another")
    assert not shares_folder(str(tmp_path / "nothing"), "one")
    assert [path.name for path in tmp_path.iterdir()] == ["token"]


def test_a_service_is_reached_when_anybody_answers(simulated: Any) -> None:
    assert reaches(f"{simulated.url}/v1")
    assert reaches(f"{simulated.url}/")
    assert not reaches("http://127.0.0.1:1/v1")


def test_versions_name_what_is_missing() -> None:
    assert versions()["python"].count(".") == 1
    assert versions()["daft"] != "none"


FACTS = Facts("node", versions(), 2, [], [])


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (FACTS, None),
        (replace(FACTS, versions=versions() | {"daft": "0.7.25"}), "daft 0.7.25, here"),
        (replace(FACTS, versions=versions() | {"pillow": "none"}), "pillow none, here"),
        (replace(FACTS, missing=["/data/a.jpg"]), "does not see /data/a.jpg: mount it"),
        (replace(FACTS, unreachable=[("detector", "http://127.0.0.1:1")]), "cannot reach the detector at http://127"),
    ],
)
def test_a_node_that_lacks_something_says_what(facts: Facts, said: str | None) -> None:
    found = checks.fault(facts)
    assert found is None if said is None else said in str(found)


@pytest.mark.parametrize("address", ["ray://host:10001", "host", "host:many", "http://host:6379", ":6379"])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(ClusterUnusable, match="give HOST:PORT"):
        checks.see(address)


def test_an_address_where_nobody_listens_is_refused() -> None:
    with pytest.raises(ClusterUnusable, match=r"no cluster answers at RAY_ADDRESS=127\.0\.0\.1:1"):
        checks.see("127.0.0.1:1")
