"""`make profile`, as a user gives it: on the real services, and on simulated ones that are as slow as a test wants."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.metrics.profile import Profile
from scripts import environments
from tests.conftest import ROOT, environment_python
from tests.doubles.simulated import Simulated
from tests.stack.conftest import RunningStack
from tests.stack.profiled import check, profile


@pytest.fixture
def elsewhere(simulated: Simulated, tmp_path: Path) -> RunningStack:
    """A stack whose services are simulated and not started here: an answer takes 0.1 s."""
    environment_python("operator")
    simulated.latency_s = 0.1
    return RunningStack({"STACK_STATE": str(tmp_path / "state"), "STACK_ENGINE": "process", **simulated.settings})


def test_a_fresh_run_is_profiled_each_time_and_compared_with_the_one_before(
    stack: RunningStack, tmp_path: Path
) -> None:
    first, said = profile(stack, tmp_path)
    assert first.name == "dog_breeds-profile-1"
    before = check(first, said)
    second, said = profile(stack, tmp_path, "--model-concurrency", "1", "--compare", first.name)
    assert second.name == "dog_breeds-profile-2"
    after = check(second, said)
    assert "settings that differ: SPOTTER_MODEL_CONCURRENCY 64 -> 1" in said
    asked = [next(stage for stage in each.stages if stage.name == "ask") for each in (before, after)]
    assert asked[0].concurrency.peak > asked[1].concurrency.peak == 1
    assert "Against dog_breeds-profile-1" in (second / "profile" / "profile.html").read_text()


def test_a_model_that_is_asked_one_thing_at_a_time_is_the_bottleneck_until_it_is_asked_more(
    elsewhere: RunningStack, tmp_path: Path
) -> None:
    slow, said = profile(elsewhere, tmp_path, "--model-concurrency", "1")
    assert "bottleneck: ask, to blame for" in said
    assert "SPOTTER_MODEL_CONCURRENCY: 1 -> " in said
    fast, said = profile(elsewhere, tmp_path, "--model-concurrency", "32", "--compare", str(slow))
    cost = [Profile.of(folder).diagnosis.cost_s["ask"] for folder in (slow, fast)]
    assert cost[0] > 2  # 26 crops, one after another, 0.1 s each
    assert cost[1] < cost[0] / 3
    assert f"{fast.name} against {slow.name}: " in said
    assert "x faster" in said


def test_ctrl_c_ends_the_job_as_it_ends_make_run(elsewhere: RunningStack, simulated: Simulated, tmp_path: Path) -> None:
    options = ("--images", "samples/images", "--output", str(tmp_path / "runs"), "--model-concurrency", "1")
    command = subprocess.Popen(
        [environments.python("operator"), "-m", "scripts", "profile", *options],
        cwd=ROOT,
        env={**os.environ, **elsewhere.variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while simulated.model.requests < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    command.send_signal(signal.SIGINT)
    said, _ = command.communicate(timeout=60)
    assert command.returncode == 130
    assert "26 images: " in said  # the job wrote what it had
    assert "bottleneck" not in said


def test_a_usage_error_of_the_job_is_the_commands(elsewhere: RunningStack, tmp_path: Path) -> None:
    done = elsewhere.operate("profile", "--images", str(tmp_path / "nowhere"), "--output", str(tmp_path / "runs"))
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert "nowhere" in done.stderr
