"""`make sweep`: where more questions in flight gain nothing, and how that becomes a setting."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from scripts.bench import sweep
from scripts.bench.capacity import Capacity, Limited
from scripts.bench.simulated import serve
from scripts.bench.sweep import Level, knee

AT_ONCE = 8

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
    servers = Limited(keep_bodies=False, model_capacity=Capacity(0.1, AT_ONCE))
    with serve(servers):
        for name, value in servers.settings.items():
            monkeypatch.setenv(name, value)
        yield servers


def test_the_knee_is_what_the_server_can_take(limited: Limited, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(["--seconds", "1", "--highest", "64"]) == 0
    shown = capsys.readouterr().out
    assert "the bundled pictures' dogs" in shown
    (line,) = [line for line in shown.splitlines() if "<- the knee" in line]
    assert line.split()[0] == str(AT_ONCE)
    assert "now it is 64; to change it put SPOTTER_MODEL_CONCURRENCY=8 into .env" in shown
    assert Path(".env").read_text() == BEFORE
    assert not [line for line in shown.splitlines() if line.strip().startswith("64 ")]  # 16 and 32 gained nothing


def test_the_knee_becomes_the_setting_and_other_lines_stay(
    limited: Limited, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep.main(["--seconds", "0.4", "--highest", "8", "--write"]) == 0
    assert "wrote SPOTTER_MODEL_CONCURRENCY=8 to .env" in capsys.readouterr().out
    after = BEFORE.replace("SPOTTER_MODEL_CONCURRENCY=64  # a guess", "SPOTTER_MODEL_CONCURRENCY=8")
    assert Path(".env").read_text() == after
    assert stat.S_IMODE(Path(".env").stat().st_mode) == 0o600


def test_a_server_that_refuses_more_sets_the_knee(limited: Limited, capsys: pytest.CaptureFixture[str]) -> None:
    limited.model_capacity = Capacity(0.05)
    limited.model_fault = lambda number: web.Response(status=429) if limited.model.in_flight > AT_ONCE else None
    assert sweep.main(["--seconds", "0.8", "--highest", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "<- the knee" in line]
    assert line.split()[0] == str(AT_ONCE)
    assert lines[lines.index(line) + 1].split()[0] == str(2 * AT_ONCE)  # where it was refused, it ended
    assert not lines[lines.index(line) + 2].strip().startswith(str(4 * AT_ONCE))


def test_what_is_in_the_environment_wins_and_that_is_said(
    limited: Limited, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
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
