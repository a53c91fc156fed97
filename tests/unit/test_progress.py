"""When a run is judged to go badly: by its last rows, not by what was long ago."""

from __future__ import annotations

from pipeline.runtime.progress import JUDGED_ROWS, LATELY_ROWS, Progress


def test_few_rows_are_not_judged() -> None:
    progress = Progress(total=100)
    for _ in range(JUDGED_ROWS - 1):
        progress.row("ask")
    assert progress.failure_rate() == 0
    progress.row("ask")
    assert progress.failure_rate() == 1


def test_a_service_that_turns_bad_after_many_good_rows_is_noticed() -> None:
    progress = Progress(total=100_000)
    for _ in range(50_000):
        progress.row(None)
    for _ in range(LATELY_ROWS // 2 + 1):
        progress.row("ask")
    assert progress.failure_rate() > 0.5


def test_a_broken_file_is_no_services_fault() -> None:
    progress = Progress(total=100)
    for _ in range(JUDGED_ROWS):
        progress.row("read")
    assert progress.failure_rate() == 0
