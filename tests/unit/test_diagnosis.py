"""What is made of a run's evidence: each lever where it helps, and only there."""

from collections.abc import Mapping
from typing import Any

import pytest

from pipeline.metrics.diagnosis import diagnose
from pipeline.metrics.evidence import Evidence
from pipeline.metrics.profile import Advice, Concurrency, Machine, Percentiles, Stage
from pipeline.metrics.stage import STAGES
from pipeline.metrics.traces import TracedStep


def stage(name: str, **said: Any) -> Stage:
    """A stage that did little, but for what is said."""
    limit, mean = said.pop("limit", 2), said.pop("mean", 0.1)
    latency = said.pop("latency_s", 0.01)
    values = {"rows": 100, "failed": 0, "first_s": 1.0, "last_s": 9.0, "busy_s": 1.0, "work_s": 0.1, "waiting_s": 0.0}
    values |= {"queue_peak": 0, "bytes_in": 1_000_000, "bytes_out": 1_000_000, "cpu_s": 0.05}
    return Stage(
        name=name,
        concurrency=Concurrency(limit=limit, mean=mean, peak=limit),
        latency_s=Percentiles(p50=latency, p90=latency, p99=latency, max=latency),
        **(values | said),
    )


def evidence(
    cost_s: Mapping[str, float],
    stages: Mapping[str, Stage] | None = None,
    services: Mapping[str, Mapping[str, float]] | None = None,
    **said: Any,
) -> Evidence:
    """A run of 10 s on two cores, 9 of them in the flow, whose other time is blamed as given."""
    return Evidence(
        wall_s=10.0,
        cost_s={"probe": 1.0, **cost_s},
        stages={name: (stages or {}).get(name) or stage(name) for name in STAGES},
        services=services or {},
        settings={
            "SPOTTER_DETECTOR_CONCURRENCY": 16,
            "crop.max_side": 512,
            "max_tokens": 64,
            **said.pop("settings", {}),
        },
        machine=Machine(cpus=2, memory_bytes=2**34, gpus=said.pop("gpus", [])),
        steps=said.pop("steps", []),
        servers=said.pop("servers", {}),
        pipeline_cpu=said.pop("pipeline_cpu", 0.1),
        host_cpu=said.pop("host_cpu", 0.5),
    )


def lever(seen: Evidence, setting: str) -> Advice | None:
    return next((advice for advice in diagnose(seen).advice if advice.setting == setting), None)


ASKING = {"ask": 8.0, "read": 1.0}
FOUR_AT_ONCE = {"ask": stage("ask", limit=4, mean=3.9, work_s=32.0, rows=320, latency_s=0.1, cpu_s=None)}


def test_the_bottleneck_is_what_costs_most_and_is_explained() -> None:
    said = diagnose(evidence(ASKING, FOUR_AT_ONCE))
    assert (said.bottleneck, said.explained) == ("ask", 1.0)
    assert said.evidence[0] == "ask is to blame for 8.0 of 10.0 s (80%)"
    assert "3.9 requests at once (4 allowed), 0.1 s each" in said.evidence[1]


def test_what_is_done_once_can_be_the_bottleneck() -> None:
    said = diagnose(evidence({"report": 6.0, "ask": 1.0}))
    assert said.bottleneck == "report"
    assert [advice.setting for advice in said.advice] == ["SPOTTER_IMAGES"]


def test_nothing_measured_is_no_error() -> None:
    said = diagnose(evidence({}))
    assert said.bottleneck == "probe"
    assert said.explained == pytest.approx(0.1)


def test_more_requests_at_once_where_all_were_in_use() -> None:
    """320 rows of 0.1 s by fours took 8 s; the read's second stays, and the least time of the others is 0.45 s."""
    advice = lever(evidence(ASKING, FOUR_AT_ONCE), "SPOTTER_MODEL_CONCURRENCY")
    assert advice is not None
    assert (advice.now, advice.to) == ("4", "128")
    assert advice.seconds_saved == pytest.approx(8.0 - 8.0 * 4 / 128)


def test_the_gain_ends_where_the_next_stage_begins_to_limit() -> None:
    """Detecting needs 5 s at its limit: of the flow's 9 s no more than 4 can go."""
    stages = FOUR_AT_ONCE | {"detect": stage("detect", limit=16, work_s=80.0, cpu_s=None)}
    advice = lever(evidence(ASKING, stages), "SPOTTER_MODEL_CONCURRENCY")
    assert advice is not None
    assert advice.seconds_saved == pytest.approx(4.0)
    assert int(advice.to) == 8  # that is enough for it


def test_no_more_requests_for_a_server_that_lets_them_wait() -> None:
    model = {"running_mean": 32.0, "running_peak": 32.0, "waiting_mean": 30.0, "kv_cache_peak": 0.3}
    seen = evidence(ASKING, FOUR_AT_ONCE, {"model": model})
    assert lever(seen, "SPOTTER_MODEL_CONCURRENCY") is None
    advice = lever(seen, "max-num-seqs")
    assert advice is not None
    assert (advice.now, advice.to, advice.seconds_saved) == ("32", "64", None)
    assert lever(evidence(ASKING, FOUR_AT_ONCE, {"model": model | {"kv_cache_peak": 0.9}}), "max-num-seqs") is None


def test_no_more_requests_than_were_needed() -> None:
    few = {"ask": stage("ask", limit=64, mean=10, work_s=80.0, cpu_s=None)}
    assert lever(evidence(ASKING, few), "SPOTTER_MODEL_CONCURRENCY") is None


DETECTING = {"detect": 8.0, "read": 1.0}
SIXTEEN_AT_ONCE = {"detect": stage("detect", limit=16, mean=15.5, work_s=128.0, rows=80, latency_s=1.6, cpu_s=None)}
ONE_BY_ONE = {"detector": {"batch_size": 1.0, "pass_s": 0.1, "pass_total_s": 8.0}}


def test_batches_where_images_pass_one_by_one() -> None:
    advice = lever(evidence(DETECTING, SIXTEEN_AT_ONCE, ONE_BY_ONE, gpus=["L4"]), "DETECTOR_MAX_BATCH")
    assert advice is not None
    assert (advice.now, advice.to) == ("1", "8")
    assert advice.seconds_saved == pytest.approx(7.0)
    assert lever(evidence(DETECTING, SIXTEEN_AT_ONCE, ONE_BY_ONE, gpus=["L4"]), "SPOTTER_DETECTOR_CONCURRENCY") is None
    on_cpu = lever(evidence(DETECTING, SIXTEEN_AT_ONCE, ONE_BY_ONE), "DETECTOR_MAX_BATCH")
    assert on_cpu is not None
    assert on_cpu.seconds_saved is None
    batched = {"detector": {"batch_size": 6.0, "pass_s": 0.1, "pass_total_s": 2.0}}
    assert lever(evidence(DETECTING, SIXTEEN_AT_ONCE, batched, gpus=["L4"]), "DETECTOR_MAX_BATCH") is None


def test_more_images_at_the_detector_only_as_far_as_its_model_is_idle() -> None:
    two = {"detect": stage("detect", limit=2, mean=1.9, work_s=16.0, rows=80, latency_s=0.2, cpu_s=None)}
    idle = {"detector": {"batch_size": 2.0, "pass_s": 0.02, "pass_total_s": 2.0}}
    advice = lever(evidence(DETECTING, two, idle), "SPOTTER_DETECTOR_CONCURRENCY")
    assert advice is not None
    assert advice.seconds_saved == pytest.approx(6.0)
    busy = {"detector": {"batch_size": 2.0, "pass_s": 0.1, "pass_total_s": 7.9}}
    assert lever(evidence(DETECTING, two, busy), "SPOTTER_DETECTOR_CONCURRENCY") is None


def asked(slope: float, noise: float = 0.0) -> list[TracedStep]:
    """Crops of 200 to 1,000 pixels a side, and a latency that grows by so much a megapixel."""
    sides = [200 + 20 * number for number in range(41)]
    return [
        TracedStep("ask", f"{side}", 1.0, 1.1 + slope * side * side / 1e6 + noise * (number % 7), 0.0, (side, side))
        for number, side in enumerate(sides)
    ]


def test_smaller_crops_where_large_ones_take_longer() -> None:
    settings = {"crop.max_side": 1024}
    advice = lever(evidence(ASKING, FOUR_AT_ONCE, settings=settings, steps=asked(1.0)), "crop.max_side")
    assert advice is not None
    assert (advice.now, advice.to) == ("1024", "512")
    sides = [200 + 20 * number for number in range(41)]
    before = sum(0.1 + side**2 / 1e6 for side in sides)
    after = sum(0.1 + min(side, 512) ** 2 / 1e6 for side in sides)
    assert advice.seconds_saved == pytest.approx(8.0 * (1 - after / before))
    assert lever(evidence(ASKING, FOUR_AT_ONCE, settings=settings, steps=asked(0.0, 0.1)), "crop.max_side") is None


def test_the_cache_where_it_is_full() -> None:
    model = {"kv_cache_peak": 0.99, "preemptions": 7.0}
    assert lever(evidence(ASKING, FOUR_AT_ONCE, {"model": model}), "gpu-memory-utilization") is not None
    assert lever(evidence(ASKING, FOUR_AT_ONCE, {"model": {"kv_cache_peak": 0.4}}), "gpu-memory-utilization") is None


def test_caches_that_find_nothing() -> None:
    model = {"requests": 500.0, "prefix_cache_hit_rate": 0.0, "image_cache_hit_rate": 0.0}
    assert lever(evidence(ASKING, services={"model": model}), "mm-processor-cache-gb") is not None
    assert lever(evidence(ASKING, services={"model": model}), "enable-prefix-caching") is not None
    found = {"requests": 500.0, "prefix_cache_hit_rate": 0.2, "image_cache_hit_rate": 0.1}
    assert lever(evidence(ASKING, services={"model": found}), "mm-processor-cache-gb") is None
    assert lever(evidence(ASKING, services={"model": found}), "enable-prefix-caching") is None


def test_answers_that_were_cut() -> None:
    advice = lever(evidence(ASKING, services={"model": {"cut_at_max_tokens": 3.0}}), "max_tokens")
    assert advice is not None
    assert (advice.now, advice.to) == ("64", "128")
    assert lever(evidence(ASKING, services={"model": {"cut_at_max_tokens": 0.0}}), "max_tokens") is None


def test_room_for_questions_where_they_take_longer_than_answers() -> None:
    model = {"running_mean": 8.0, "waiting_mean": 20.0, "prefill_s": 2.0, "decode_s": 0.5}
    assert lever(evidence(ASKING, FOUR_AT_ONCE, {"model": model}), "max-num-batched-tokens") is not None
    model |= {"prefill_s": 0.1}
    assert lever(evidence(ASKING, FOUR_AT_ONCE, {"model": model}), "max-num-batched-tokens") is None


def test_cores_where_decoding_keeps_them_busy_and_a_disk_where_it_does_not() -> None:
    cost = {"read": 8.0, "ask": 1.0}
    decoding = {"read": stage("read", mean=2.0, work_s=16.0, busy_s=8.0, cpu_s=15.0)}
    advice = lever(evidence(cost, decoding, pipeline_cpu=1.9, host_cpu=1.95), "CPU cores")
    assert advice is not None
    assert advice.to == "4"
    assert advice.seconds_saved == pytest.approx(4.0)
    waiting = {"read": stage("read", mean=2.0, work_s=16.0, busy_s=8.0, cpu_s=1.0)}
    assert lever(evidence(cost, waiting), "SPOTTER_IMAGES") is not None
    crowded = lever(evidence(cost, waiting, pipeline_cpu=0.3, host_cpu=1.95), "CPU cores")
    assert crowded is not None
    assert crowded.seconds_saved is None


@pytest.mark.parametrize(("seconds", "named"), [((0.2, 0.25, 1.0), "c"), ((0.2, 0.25, 0.5), None), ((1.0,), None)])
def test_an_address_that_is_far_slower_than_the_others_is_named(seconds: tuple[float, ...], named: str | None) -> None:
    served = [
        {"address": name, "answers": 9, "mean_latency_s": each} for name, each in zip("abc", seconds, strict=False)
    ]
    advice = lever(evidence(ASKING, FOUR_AT_ONCE, servers={"model server": served}), "SPOTTER_MODEL_URL")
    assert (advice and advice.now) == named
