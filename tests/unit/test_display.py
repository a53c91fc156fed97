"""What a person sees of a run."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.runtime import display
from pipeline.runtime.display import live, show_next, show_summary
from pipeline.runtime.progress import Progress
from scripts.environments import ROOT


def manifest(**changes: object) -> dict[str, object]:
    return {
        "summary": {"pug": 3, "poodle": 1},
        "accuracy": {"breed": {"rows": 4, "right": 3, "no_answer": 1, "without_truth": 2, "share": 0.75}},
        "job": {"summary": "breed", "label": "dog"},
        "counts": {
            "images": {"total": 5, "detected": 2, "no_object": 1, "failed": 1, "not_reached": 1},
            "detections": {"total": 4, "answered": 4, "failed": 0},
        },
        "failures": [{"stage": "read", "reason": "the file is [empty]", "rows": 1}],
        "several_frames": 0,
        "starts": [],
        **changes,
    }


def test_summary_counts_and_reasons() -> None:
    console = Console(file=io.StringIO(), width=100)
    show_summary(console, manifest(reason="the disk is full: make room"))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    for text in (
        "3  pug",
        "1  poodle",
        "5 images: 2 with a dog, 1 without, 1 failed, 1 not reached",
        "4 dog detections: 4 answered, 0 failed",
        "right breed: 75.0%, 3 of 4; 1 without an answer count as wrong; 2 rows have no truth",
        "stopped: the disk is full: make room",
        "failed at read: the file is [empty] (1 rows)",
    ):
        assert text in shown, shown


def test_whole_images_are_counted_as_read_and_asked_about() -> None:
    counts = {
        "images": {"total": 5, "detected": 4, "no_object": 0, "failed": 1, "not_reached": 0},
        "detections": {"total": 4, "answered": 3, "failed": 1},
    }
    console = Console(file=io.StringIO(), width=100)
    show_summary(console, manifest(job={"summary": "breed", "label": "image", "boxes": "whole"}, counts=counts))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert "5 images: 4 read, 1 failed" in lines
    assert "4 images asked about: 3 answered, 1 failed" in lines


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({}, "open the report; then your own: make run IMAGES=folder"),
        ({"job": {"inputs": {"question": "q"}}}, "open the report; then your own: make run IMAGES=table"),
        ({"settings": {"images": "/photos"}}, "open the report"),
        (
            {"settings": {"images": "/photos", "limit": 5}, "trial": {"images": "the first 5", "of": 9}},
            "open the report; then all images: the same command without LIMIT",
        ),
        (
            {"settings": {"images": "/photos", "limit": None}, "trial": {"images": "5 drawn by seed 0", "of": 9}},
            "open the report; then all images: the same command without SAMPLE",
        ),
    ],
)
def test_the_next_step_fits_the_run(changes: dict[str, object], advice: str) -> None:
    counts = {"images": {"failed": 0, "not_reached": 0}, "detections": {"failed": 0}}
    console = Console(file=io.StringIO(), width=100)
    show_next(console, Path("runs/x"), manifest(counts=counts, **{"settings": {"images": "samples/images"}} | changes))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines()[-1] == f"next:   {advice}"


def test_the_readme_shows_the_next_step_of_the_bundled_images() -> None:
    assert "\nnext:   open the report; then your own: make run IMAGES=folder\n" in (ROOT / "README.md").read_text()


def test_a_run_that_was_begun_twice_shows_both_starts() -> None:
    starts = [
        {"started": "2026-01-01T10:00:00+00:00", "status": "unfinished"},
        {"started": "2026-01-01T12:00:00+00:00", "status": "interrupted", "seconds": 100.0, "images": {"done": 40}},
        {"started": "2026-01-01T13:00:00+00:00", "status": "complete", "seconds": 2.5, "images": {"done": 1}},
    ]
    console = Console(file=io.StringIO(), width=100)
    show_summary(console, manifest(starts=starts))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert "3 starts, 102.5 s in all; this one: 2.5 s, 1 images; 1 did not reach its end" in lines


@pytest.mark.parametrize(
    ("drawn", "note"),
    [
        ({"copies": 5, "of": 9, "limit": 5}, "annotated copies: 5 of 9 images; SPOTTER_ANNOTATED=all draws all"),
        ({"copies": 8, "of": 9, "limit": None}, "annotated copies: 8 of 9 images; the others could not be read again"),
        ({"copies": 9, "of": 9, "limit": 5}, None),
    ],
)
def test_missing_annotated_copies_are_said(drawn: dict[str, int | None], note: str | None) -> None:
    console = Console(file=io.StringIO(), width=100)
    show_summary(console, manifest(annotated=drawn))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert note in shown if note else "annotated" not in shown


def test_a_log_file_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "PLAIN_LINE_S", 0.05)
    monkeypatch.setattr(display, "REFRESH_S", 0.0)
    console = Console(file=io.StringIO(), width=100)
    progress = Progress(total=4)
    with live(console, progress) as shown:
        for _ in range(2):
            progress.row(None)
            progress.image("detected", [{"outcome": "answered"}])
            time.sleep(0.06)
            shown.update()
        for note in ("waiting for the detector to come back", "", "waiting for the detector to come back"):
            shown.note(note)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert any("images 1/4" in line and "0 failed" in line and "s left" in line for line in lines)
    assert lines.count("waiting for the detector to come back") == 1
    assert "" not in lines


def test_a_terminal_gets_a_live_line() -> None:
    console = Console(file=io.StringIO(), width=140, force_terminal=True)
    progress = Progress(total=2)
    with live(console, progress) as shown:
        progress.row("ask")
        progress.image("detected", [{"outcome": "failed"}])
        shown.note("waiting [/red]")
        shown.update(at_once=True)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for part in ("1/2", "rows/s", "1 failed", "waiting [/red]"):
        assert part in text


def test_what_takes_long_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "PLAIN_LINE_S", 0.02)
    printed = io.StringIO()
    with display.waiting(Console(file=printed), "listing s3://bucket"):
        deadline = time.monotonic() + 10
        while not printed.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "listing s3://bucket: 0 s so far" in printed.getvalue()
    monkeypatch.setattr(display, "PLAIN_LINE_S", 60.0)
    quick = io.StringIO()
    with display.waiting(Console(file=quick), "listing"):
        pass
    assert quick.getvalue() == ""


def test_a_long_count_is_shown_and_a_short_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), width=100)
    assert isinstance(console.file, io.StringIO)
    with display.counted(console, "annotated images", 3) as advance:
        advance()
    assert console.file.getvalue() == ""
    monkeypatch.setattr(display, "PLAIN_LINE_S", 0.0)
    with display.counted(console, "annotated images", 3) as advance:
        advance()
        advance()
    assert console.file.getvalue().splitlines() == ["annotated images 1/3", "annotated images 2/3"]
