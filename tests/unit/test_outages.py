"""What the bench of outages calls a complete run."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.outages import read_result


def write(folder: Path, images: list[tuple[str, int]], detections: list[tuple[str, int, float]]) -> None:
    """A run's tables, of outcomes, attempts and latencies."""
    pq.write_table(
        pa.table(dict(zip(("outcome", "attempts"), zip(*images, strict=True), strict=True))), folder / "images.parquet"
    )
    columns = zip(*detections, strict=True)
    pq.write_table(
        pa.table(dict(zip(("outcome", "attempts", "latency_s"), columns, strict=True))), folder / "detections.parquet"
    )


def test_retries_and_the_slowest_answer_are_taken_from_the_rows(tmp_path: Path) -> None:
    write(tmp_path, [("detected", 3), ("no_object", 1)], [("answered", 2, 0.5), ("answered", 1, 7.5)])
    result = read_result(tmp_path, seconds=1.0, exit_code=0, output="")
    assert (result.pictures, result.detections, result.answered, result.failed) == (2, 2, 2, 0)
    assert (result.retries, result.slowest_s) == (3, 7.5)
    assert result.shortfall(2) is None


@pytest.mark.parametrize(
    ("images", "answers", "exit_code", "wrong"),
    [
        (["detected"], ["answered"], 0, "1 pictures lost"),
        (["detected", "failed"], ["answered"], 0, "1 rows failed"),
        (["detected", "detected"], ["answered", "failed"], 0, "1 rows failed"),
        (["detected", "detected"], ["answered", "answered"], 1, "the run ended with 1"),
    ],
)
def test_what_is_missing_is_told(
    tmp_path: Path, images: list[str], answers: list[str], exit_code: int, wrong: str
) -> None:
    write(tmp_path, [(outcome, 1) for outcome in images], [(outcome, 1, 0.1) for outcome in answers])
    assert read_result(tmp_path, seconds=1.0, exit_code=exit_code, output="").shortfall(2) == wrong


def test_a_run_without_tables_lost_every_picture(tmp_path: Path) -> None:
    assert read_result(tmp_path, seconds=1.0, exit_code=0, output="").shortfall(2) == "2 pictures lost"
