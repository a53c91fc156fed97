"""`make sweep`: where more questions in flight gain nothing, and how that becomes a setting."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from pipeline.job import load as load_job
from pipeline.settings import Settings
from scripts.bench import sweep
from scripts.bench.compare import write_crops
from scripts.bench.sweep import Level, Sweep, knee
from tests.doubles.capacity import Capacity, Limited
from tests.doubles.simulated import serve

AT_ONCE, LATENCY_S = 8, 0.1

BEFORE = """# mine
SPOTTER_API_KEY='s3cret with spaces'
SPOTTER_MODEL_CONCURRENCY=64  # a guess

#SPOTTER_ATTEMPTS=5
STACK_PRESET=cpu
"""


@pytest.fixture
def limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Limited]:
    """A model server that works on 8 questions at once, 100 ms each; the settings lead to it, and .env is BEFORE."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(BEFORE)
    (tmp_path / ".env").chmod(0o600)
    servers = Limited(keep_bodies=False, model_capacity=Capacity(LATENCY_S, AT_ONCE))
    with serve(servers):
        for name, value in servers.settings.items():
            monkeypatch.setenv(name, value)
        yield servers


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rates as `limited` would have them on a host with nothing else to do; the concurrencies that were measured."""
    seen: list[int] = []

    def measure(self: Sweep, concurrency: int, rows: int) -> Level:
        seen.append(concurrency)
        return Level(concurrency, rows, min(concurrency, AT_ONCE) / LATENCY_S, LATENCY_S, 0)

    monkeypatch.setattr(Sweep, "measure", measure)
    return seen


def test_the_knee_is_what_the_server_can_take(
    limited: Limited, measured: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep.main(["--seconds", "1", "--highest", "64"]) == 0
    shown = capsys.readouterr().out
    assert "the bundled pictures' dogs" in shown
    (line,) = [line for line in shown.splitlines() if "<- the knee" in line]
    assert line.split()[0] == str(AT_ONCE)
    assert "now it is 64; to change it put SPOTTER_MODEL_CONCURRENCY=8 into .env" in shown
    assert Path(".env").read_text() == BEFORE
    assert sorted(set(measured)) == [1, 2, 4, 8, 16, 32]  # 16 and 32 gained nothing


@pytest.mark.parametrize("concurrency", [1, AT_ONCE, 2 * AT_ONCE])
def test_what_is_measured_is_the_servers_doing(limited: Limited, tmp_path: Path, concurrency: int) -> None:
    """By what holds on a host of any speed: the server is given so many at once, and is the limit."""
    limited.hold = lambda traffic, number: traffic.peak_in_flight < concurrency
    crops = tmp_path / "crops"
    crops.mkdir()
    write_crops(crops)
    measured = Sweep(Settings(), load_job("dog_breeds"), "simulated", crops).measure(concurrency, 4 * concurrency)
    assert (measured.rows, measured.failed, limited.model.requests) == (4 * concurrency, 0, 4 * concurrency)
    assert limited.model.peak_in_flight == concurrency
    assert measured.rows_per_s <= min(concurrency, AT_ONCE) / LATENCY_S
    assert measured.latency_s >= LATENCY_S


def test_the_knee_becomes_the_setting_and_other_lines_stay(
    limited: Limited, measured: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep.main(["--seconds", "0.4", "--highest", "8", "--write"]) == 0
    assert "wrote SPOTTER_MODEL_CONCURRENCY=8 to .env" in capsys.readouterr().out
    after = BEFORE.replace("SPOTTER_MODEL_CONCURRENCY=64  # a guess", "SPOTTER_MODEL_CONCURRENCY=8")
    assert Path(".env").read_text() == after
    assert stat.S_IMODE(Path(".env").stat().st_mode) == 0o600


def test_a_server_that_refuses_more_sets_the_knee(
    limited: Limited, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it refuses is found out, and only how fast it is not left to the host."""
    ask = Sweep.measure

    def measure(self: Sweep, concurrency: int, rows: int) -> Level:
        return replace(ask(self, concurrency, 4 * concurrency), rows_per_s=concurrency / LATENCY_S)

    monkeypatch.setattr(Sweep, "measure", measure)
    limited.model_capacity = Capacity(LATENCY_S)
    limited.model_fault = lambda number: web.Response(status=429) if limited.model.in_flight > AT_ONCE else None
    assert sweep.main(["--seconds", "0.8", "--highest", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "<- the knee" in line]
    assert line.split()[0] == str(AT_ONCE)
    assert lines[lines.index(line) + 1].split()[0] == str(2 * AT_ONCE)  # where it was refused, it ended
    assert not lines[lines.index(line) + 2].strip().startswith(str(4 * AT_ONCE))


def test_what_is_in_the_environment_wins_and_that_is_said(
    limited: Limited, measured: list[int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(sweep.VARIABLE, "16")
    assert sweep.main(["--seconds", "0.4", "--highest", "8", "--write"]) == 0
    assert "but SPOTTER_MODEL_CONCURRENCY=16 is set in the environment, and wins" in capsys.readouterr().out


def level(concurrency: int, rows_per_s: float, failed: int = 0) -> Level:
    return Level(concurrency, 100, rows_per_s, 0.1, failed)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([level(1, 10), level(2, 20), level(4, 21), level(8, 22)], 2),  # 20 is 91% of 22
        ([level(1, 10), level(2, 19), level(4, 22)], 4),
        ([level(1, 10), level(2, 20), level(4, 40, failed=1)], 2),
        ([level(1, 10, failed=3)], None),
    ],
)
def test_the_knee_is_the_lowest_that_comes_near_the_highest(levels: list[Level], expected: int | None) -> None:
    found = knee(levels)
    assert (found.concurrency if found else None) == expected


def test_crops_that_are_not_there_are_a_usage_error(limited: Limited, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(["--crops", "nowhere"]) == 2
    assert "--crops nowhere: no folder with files in it" in capsys.readouterr().err
