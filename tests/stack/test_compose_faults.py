"""Services that are killed, frozen and cut off in the middle of a run: every row is answered all the same.

`python -m scripts.bench.outages` does each case in a run of its own, and for a minute.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.settings import StackSettings
from tests.outages import SERVICES, Bench, Fault, draw
from tests.stack.conftest import RunningStack

PICTURES = 200
# Each service has work until its last fault has come: few questions at once, and so little in memory that detection,
# which is quick, waits for them.
SLOWLY = {"SPOTTER_MODEL_CONCURRENCY": "16", "SPOTTER_BYTES_IN_FLIGHT": "2MB"}

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
    for name, value in SLOWLY.items():
        monkeypatch.setenv(name, value)
    draw(tmp_path / "images", PICTURES)
    result = bench.run(tmp_path / "images", tmp_path, dict.fromkeys(SERVICES, SCHEDULE))
    assert result.shortfall(PICTURES) is None, result
    assert result.answered == result.detections > PICTURES
    assert result.retries > 0  # of the requests that were open when a service was killed
