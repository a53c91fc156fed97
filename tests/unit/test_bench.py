"""The benches: every client is measured on the same questions, and a figure that is not as it should be fails."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from scripts.bench import compare, machine, memory, rows
from scripts.bench.clients import CLIENTS
from scripts.bench.compare import CEILING, OURS, Result
from scripts.bench.memory import Look

pytestmark = pytest.mark.slow


@pytest.mark.timeout(400)
def test_the_quick_bench_measures_every_client(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "figures.json"
    assert compare.main(["--quick", "--only", "simulated", "--json", str(figures)]) == 0
    shown = capsys.readouterr().out
    assert f"CPU {machine.cpu_model()}, cores " in shown
    assert "daft 0." in shown
    written = json.loads(figures.read_text())
    results = {result["client"]: result for result in written["a simulated server that answers after 50 ms"]}
    assert list(results) == list(CLIENTS)
    for name, result in results.items():
        assert (result["rows"], result["answered"], result["note"]) == (200, 200, ""), name
        assert f"\n{name} " in shown
    # What Spotter is faster by, as time on the CPU, which a busy host does not change.
    ours = results["Spotter"]["cpu_ms"][0]
    for name in ("openai, threads", "Daft prompt", "Daft prompt, batched", "friction log's UDF"):
        assert results[name]["cpu_ms"][0] > 2 * ours, name


def test_a_client_that_does_not_finish_is_stopped_and_said_to_be(tmp_path: Path) -> None:
    compare.write_crops(tmp_path)
    with compare.simulated(latency_s=30) as server:
        result = Result("asyncio script", 10)
        compare.run_client(result, server, tmp_path, concurrency=4, limit_s=5)
    assert result.note == "did not finish 10 rows in 5 s; 4 questions reached the server"
    assert result.rows_per_s is None


def test_a_client_that_fails_says_why(tmp_path: Path) -> None:
    compare.write_crops(tmp_path)
    nobody = compare.Server("http://127.0.0.1:9/v1", "simulated", "nobody", counted=False)
    result = Result("asyncio script", 1)
    compare.run_client(result, nobody, tmp_path, concurrency=1, limit_s=60)
    assert result.note.startswith("failed: aiohttp.client_exceptions.ClientConnectorError")


def test_ratios_are_of_medians() -> None:
    ours = Result("Spotter", 100, seconds=[1.0, 1.0, 9.0], cpu_ms=[0.5] * 3, peak_mb=[100] * 3, answered=100)
    theirs = Result("asyncio script", 100, seconds=[2.0, 4.0, 3.0], cpu_ms=[1.0] * 3, peak_mb=[50] * 3, answered=100)
    late = Result("friction log's UDF", 100, note="did not finish 100 rows in 5 s")
    shown = compare.table([ours, theirs, late])
    columns = {str(column.header): list(column.cells) for column in shown.columns}
    assert columns["Spotter is"] == ["", "3.00x", "-"]
    assert columns["rows/s"] == ["100", "33", "-"]
    assert columns[""] == ["", "", "did not finish 100 rows in 5 s"]


def test_a_comparison_with_answers_missing_is_worth_nothing() -> None:
    ours = Result("Spotter", 100, note="did not finish 100 rows in 60 s")
    theirs = Result("asyncio script", 100, seconds=[1.0], answered=99)
    assert compare.wrong([ours, theirs]) == [
        "Spotter: did not finish 100 rows in 60 s",
        "asyncio script: 99 of 100 rows answered",
    ]


@pytest.mark.parametrize(("seconds", "fails"), [(1.0, False), (1.04, False), (1.06, True)])
def test_a_real_server_that_can_do_more_is_said(seconds: float, fails: bool) -> None:
    ours, most = Result(OURS, 100, seconds=[seconds], answered=100), Result(CEILING, 100, seconds=[1.0], answered=100)
    said = compare.wrong([ours, most], least=0.95)
    assert bool(said) is fails
    assert all("0.94 of vllm bench serve's rows per second: less than 0.95" in line for line in said)


def test_clients_take_turns_to_and_fro(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(compare, "CLIENTS", dict.fromkeys((OURS, "a", "b")))
    monkeypatch.setattr(compare, "run_client", lambda result, *_: order.append(result.client))
    server = compare.Server("http://nowhere/v1", "m", "nowhere", counted=True)
    compare.compare(server, 10, 10, 3, 4, 1.0, Console(file=io.StringIO()))
    assert order[1:] == [OURS, "a", "b", "b", "a", OURS, OURS, "a", "b"]


def test_rows_fails_where_spotter_is_too_slow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--rows=300", "--concurrency=16", "--latency=0.1", "--ratio=50", "--limit=100000"]
    monkeypatch.setattr("sys.argv", ["rows", *options])
    assert rows.main() == 1
    said = capsys.readouterr()
    assert "most in flight at the server: bare aiohttp 16, spotter 16" in said.out
    assert [line.rpartition(": ")[2] for line in said.err.splitlines() if "error" in line] == ["less than 50"]


def test_rows_fails_by_each_of_its_figures() -> None:
    right = {"ratio": 0.8, "least": 0.8, "in_flight": 256, "bound": 256, "peak_mb": 1000.0, "limit_mb": 1000.0}
    assert rows.complaints(**right) == []  # type: ignore[arg-type]
    for name, value in (("ratio", 0.79), ("in_flight", 257), ("peak_mb", 1001.0)):
        assert len(rows.complaints(**right | {name: value})) == 1, name  # type: ignore[arg-type]


def test_memory_fails_by_each_of_its_figures() -> None:
    right = {"peak_mb": 1500.0, "limit_mb": 1500.0, "grown": 0.1, "allowed": 0.1, "missing": 0}
    assert memory.complaints(**right) == []  # type: ignore[arg-type]
    for name, value in (("peak_mb", 1501.0), ("grown", 0.11), ("grown", math.nan), ("missing", 1)):
        assert len(memory.complaints(**right | {name: value})) == 1, name  # type: ignore[arg-type]


def test_growth_is_that_after_the_first_pictures() -> None:
    looks = [Look(pictures, 100.0 + (50 if pictures > 50 else 0) + pictures / 10) for pictures in range(1, 401)]
    assert memory.growth(looks, 100, 400) == pytest.approx(0.14, abs=0.01)
    assert math.isnan(memory.growth(looks, 400, 400))
