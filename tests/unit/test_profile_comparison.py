"""Two profiles side by side, and figures as people read them."""

from __future__ import annotations

import pytest

from scripts.profile import units
from scripts.profile.comparison import Comparison, parts
from tests.profiles import make_profile

SLOW, FAST = make_profile("before", model_slots=8), make_profile("after", model_slots=32)


def test_costs_are_compared_part_by_part() -> None:
    lines = {line.name: line for line in Comparison(SLOW, FAST).lines}
    assert lines["ask"].ratio == pytest.approx(FAST.diagnosis.cost_s["ask"] / SLOW.diagnosis.cost_s["ask"])
    assert (lines["ask"].ratio or 1) < 0.5
    assert lines["probe"].ratio == 1
    assert lines["probe"].before is None
    assert lines["crop"].ratio is None  # it cost nothing before


def test_settings_that_differ_are_named_and_no_others() -> None:
    changes = Comparison(SLOW, FAST).changes
    assert [(each.setting, each.before, each.after) for each in changes] == [("SPOTTER_MODEL_CONCURRENCY", "8", "32")]


def test_a_setting_that_only_one_run_has_differs() -> None:
    other = FAST.model_copy(update={"settings": SLOW.settings | {"max_tokens": None}})
    assert [(each.setting, each.before, each.after) for each in Comparison(SLOW, other).changes] == [
        ("max_tokens", None, "None")
    ]


@pytest.mark.parametrize(
    ("factor", "verdict"), [(0.5, "2.00x faster"), (2.0, "2.00x slower"), (1.01, "as fast"), (0.99, "as fast")]
)
def test_the_verdict_says_which_run_was_faster(factor: float, verdict: str) -> None:
    other = SLOW.model_copy(update={"wall_s": SLOW.wall_s * factor})
    assert Comparison(SLOW, other).verdict == verdict


def test_another_machine_and_other_work_are_said() -> None:
    assert Comparison(SLOW, FAST).caveats == []
    elsewhere = FAST.model_copy(
        update={
            "machine": FAST.machine.model_copy(update={"cpus": 64}),
            "stages": [stage.model_copy(update={"rows": stage.rows * 2}) for stage in FAST.stages],
        }
    )
    assert Comparison(SLOW, elsewhere).caveats == [
        "the runs took place on different machines",
        "the runs had different work: 360 rows, then 720",
    ]


def test_parts_come_in_the_order_of_the_run_with_the_stages_where_the_flow_is() -> None:
    stages = ["read", "detect", "crop", "ask", "store", "collect"]
    assert parts(SLOW) == ["list", "probe", *stages, "write", "report"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 s"),
        (0.00002, "0.02 ms"),
        (0.0042, "4.2 ms"),
        (0.0999, "100 ms"),
        (0.9996, "1.0 s"),
        (18.94, "18.9 s"),
        (99.96, "100 s"),
        (2100, "35 min 0 s"),
        (7384, "2 h 3 min"),
    ],
)
def test_seconds_have_the_unit_that_suits(value: float, text: str) -> None:
    assert units.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_600, "1.0 MB"), (25.8e9, "25.8 GB"), (3e15, "3000.0 TB")],
)
def test_sizes_have_the_unit_that_suits(value: float, text: str) -> None:
    assert units.size(value) == text


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("time_to_first_token_s", 0.61, "time to first token: 610 ms"),
        ("prompt_tokens_per_s", 11800.0, "prompt tokens: 11,800/s"),
        ("prefix_cache_hit_rate", 0.12, "prefix cache hit rate: 12%"),
        ("batch_size", 3.4, "batch size: 3.4"),
    ],
)
def test_metrics_are_shown_in_the_unit_that_their_names_say(name: str, value: float, shown: str) -> None:
    assert f"{units.title(name)}: {units.measure(name, value)}" == shown
