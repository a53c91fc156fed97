"""`make bench`: every client is measured on the same questions, and one that does not finish is said not to have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.bench import compare, machine
from scripts.bench.clients import CLIENTS
from scripts.bench.compare import Result


@pytest.mark.timeout(180)
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
