"""The timeline's curves: where they are, where they stop, and that no series is lost."""

from __future__ import annotations

import re

import pytest

from pipeline.metrics.profile import Samples
from scripts.profile.page import ticks
from scripts.profile.timeline import MOST_POINTS, path, thin, timeline
from tests.profiles import make_profile


def test_a_curve_is_scaled_to_its_top_and_the_span() -> None:
    assert path([0, 5, 10], [0, 1, 2], span_s=10, top=2, filled=False) == "M0.0,100.0 L500.0,50.0 L1000.0,0.0"


def test_a_filled_curve_stands_on_the_ground() -> None:
    assert path([0, 10], [1, 2], span_s=10, top=2, filled=True) == "M0.0,100 L0.0,50.0 L1000.0,0.0 L1000.0,100Z"


def test_a_curve_stops_where_nothing_was_measured() -> None:
    drawn = path([0, 1, 2, 3, 4], [1, 1, None, 1, 1], span_s=4, top=1, filled=False)
    assert drawn == "M0.0,0.0 L250.0,0.0M750.0,0.0 L1000.0,0.0"


def test_values_above_the_top_stay_within_the_plot() -> None:
    assert path([0, 1], [5, -5], span_s=1, top=1, filled=False) == "M0.0,0.0 L1000.0,100.0"


def test_thinning_takes_means_and_knows_gaps() -> None:
    assert thin([1, 3, None, 5, None, None], 3) == [2, 5, None]
    assert thin([1, None], 3) == [1, None]


@pytest.mark.slow
def test_a_long_run_is_drawn_with_as_many_points_as_a_screen_shows() -> None:
    drawn = timeline(make_profile(samples_per_s=100))
    assert len(drawn.t_s) == MOST_POINTS
    assert all(len(curve.values) == MOST_POINTS for panel in drawn.panels + drawn.stages for curve in panel.curves)


@pytest.mark.parametrize("gpu", [False, True])
def test_every_series_is_in_a_panel(gpu: bool) -> None:
    profile = make_profile(gpu=gpu)
    strange = {"tape.speed": [1.0 for _ in profile.samples.t_s]}
    profile = profile.model_copy(
        update={"samples": Samples(t_s=profile.samples.t_s, series=profile.samples.series | strange)}
    )
    drawn = timeline(profile)
    shown = {curve.series for panel in drawn.panels + drawn.stages for curve in panel.curves}
    assert shown >= set(profile.samples.series)


def test_what_was_never_measured_takes_no_room() -> None:
    profile = make_profile()
    empty: list[float | None] = [None for _ in profile.samples.t_s]
    series = profile.samples.series | {"gpu.utilisation": empty, "model.kv_cache": empty}
    drawn = timeline(profile.model_copy(update={"samples": Samples(t_s=profile.samples.t_s, series=series)}))
    assert [panel.title for panel in drawn.panels] == ["pipeline", "detector", "model", "memory"]


@pytest.mark.parametrize(("told", "filled"), [(True, "running there"), (False, "in flight")])
def test_a_service_that_never_told_of_running_requests_is_not_shown_idle(told: bool, filled: str) -> None:
    profile = make_profile()
    series = dict(profile.samples.series)
    if not told:
        series["model.running"] = [0.0 for _ in profile.samples.t_s]
    drawn = timeline(profile.model_copy(update={"samples": Samples(t_s=profile.samples.t_s, series=series)}))
    model = next(panel for panel in drawn.panels if panel.title == "model")
    assert (
        next(curve.label for curve in model.curves if curve.filled and max(filter(None, curve.values), default=0))
        == filled
    )


def test_each_stage_has_a_panel_with_its_work_and_its_queue() -> None:
    drawn = timeline(make_profile())
    assert [panel.title for panel in drawn.stages] == ["read", "detect", "crop", "ask", "store", "collect"]
    for panel in drawn.stages:
        assert [curve.label for curve in panel.curves] == ["at work", "waiting"]
        assert all(re.fullmatch(r"M[\d., LMZ]+", curve.path) for curve in panel.curves)


@pytest.mark.parametrize("span_s", [0.02, 0.9, 3.8, 24.0, 61, 3600, 86_000])
def test_the_axis_has_a_few_round_ticks(span_s: float) -> None:
    moments = ticks(span_s)
    assert 4 <= len(moments) <= 13
    assert moments[0] == 0
    assert moments[-1] <= span_s
    step = f"{moments[1]:.6g}".replace(".", "").strip("0")
    assert step in ("1", "2", "5")
