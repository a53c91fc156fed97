"""Services that are killed, frozen and cut off in the middle of a run: every row is answered all the same.

`python -m scripts.bench.outages` does each case in a run of its own, and for a minute.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.bench.outages import SERVICES, Bench, Fault, draw
from scripts.settings import StackSettings
from tests.stack.conftest import RunningStack

PICTURES = 200
# So few that vLLM has work for long enough: with 64 all was asked on a busy machine before its last fault came.
QUESTIONS_AT_ONCE = "16"

# Shorter than a minute, which shows nothing more here: the probes of pipeline/clients/sockets.py give up a peer that
# vanished after 20 s, and a frozen one is waited for until its request's limit, as a slow one is.
SCHEDULE = (Fault("freeze", 3.0), Fault("cut", 25.0), Fault("kill"))


@pytest.fixture
def bench(containers: RunningStack) -> Bench:
    """The tests' containers, to be taken away."""
    variables = {name.removeprefix("STACK_").lower(): value for name, value in containers.variables.items()}
    return Bench(StackSettings.model_validate(variables | {"preset": "cpu"}))


def test_every_row_is_answered_while_both_services_go_away_in_every_way(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each service has its three faults one after the other, each while it has requests open."""
    monkeypatch.setenv("SPOTTER_MODEL_CONCURRENCY", QUESTIONS_AT_ONCE)
    draw(tmp_path / "images", PICTURES)
    result = bench.run(tmp_path / "images", tmp_path, dict.fromkeys(SERVICES, SCHEDULE))
    assert result.shortfall(PICTURES) is None, result
    assert result.answered == result.detections > PICTURES
    assert result.retries > 0  # of the requests that were open when a service was killed
