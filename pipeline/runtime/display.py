"""The progress of a run on the console, and its summary."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from pipeline.runtime import history
from pipeline.runtime.progress import Progress
from pipeline.runtime.terminal import escaped

# Without a terminal (CI, a log file) a line this often shows that the run is alive.
PLAIN_LINE_S = 10.0

# Rows come by the thousand; nobody reads faster than this.
REFRESH_S = 0.2


class Display:
    """A live line on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self.console = console
        self.progress = progress
        self.started = time.monotonic()
        self.next_line = self.started + PLAIN_LINE_S
        self.bar = Bar(
            TextColumn("images"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f} rows/s"),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("[{task.fields[color]}]{task.fields[failures]} failed"),
            TextColumn("{task.fields[note]}", style="yellow", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self.last_note = ""
        self.printed_notes = set[str]()
        self.shown = 0.0
        self.task = self.bar.add_task("", total=progress.total, rate=0.0, failures=0, color="green", note="")

    def note(self, text: str) -> None:
        """Say what is being waited for, if anything: at the line's end, elsewhere once."""
        if text and not self.console.is_terminal and text not in self.printed_notes:
            self.printed_notes.add(text)
            self.console.print(text, highlight=False, markup=False)
        self.last_note = text

    def update(self, at_once: bool = False) -> None:
        """Show the progress as it is now, a few times a second at most unless it is wanted at once."""
        now = time.monotonic()
        if now - self.shown < REFRESH_S and not at_once:
            return
        self.shown = now
        rate, failures = self.rate(), self.progress.failures
        self.bar.update(
            self.task,
            completed=self.progress.done,
            rate=rate,
            failures=failures,
            color="red" if failures else "green",
            note=self.last_note,
        )
        if not self.console.is_terminal and time.monotonic() >= self.next_line:
            self.next_line += PLAIN_LINE_S
            done, total = self.progress.done, self.progress.total
            left = (time.monotonic() - self.started) / max(done, 1) * (total - done)
            self.console.print(
                f"images {done}/{total}, {rate:.1f} rows/s, about {left:.0f} s left, {failures} failed", highlight=False
            )

    def rate(self) -> float:
        """Rows per second so far: detections, and images that have none."""
        return self.progress.rows / max(time.monotonic() - self.started, 1e-3)


@contextmanager
def live(console: Console, progress: Progress) -> Iterator[Display]:
    """Show a run's progress until the block ends."""
    display = Display(console, progress)
    with display.bar:
        yield display
        display.update(at_once=True)


@contextmanager
def counted(console: Console, what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show how far a count is, which the given function raises by one from any thread; short ones show nothing."""
    bar = Bar(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    task = bar.add_task("", total=total)
    lock = threading.Lock()
    next_line = time.monotonic() + PLAIN_LINE_S

    def advance() -> None:
        nonlocal next_line
        bar.advance(task)
        with lock:
            due = time.monotonic() >= next_line
            if due:
                next_line = time.monotonic() + PLAIN_LINE_S
        if due and not console.is_terminal:
            console.print(f"{what} {bar.tasks[0].completed:.0f}/{total}", highlight=False)

    with bar:
        yield advance


@contextmanager
def waiting(console: Console, what: str) -> Iterator[None]:
    """Say what takes so long, if it does, until the block ends."""
    ended = threading.Event()

    def say() -> None:
        seconds = 0.0
        while not ended.wait(PLAIN_LINE_S / 2):
            seconds += PLAIN_LINE_S / 2
            console.print(f"{what}: {seconds:.0f} s so far", highlight=False, markup=False, soft_wrap=True)

    thread = threading.Thread(target=say, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def show_summary(console: Console, manifest: dict[str, Any]) -> None:
    """The table of answers and the counts."""
    groups = {label: each["summary"] for label, each in manifest.get("labels", {}).items()} or {"": manifest["summary"]}
    for label, summary in groups.items():
        if summary:
            table = Table(box=None, pad_edge=False)
            table.add_column("count", justify="right")
            table.add_column(Text(escaped(f"{label}: " * bool(label) + manifest["job"]["summary"])))
            for value, number in summary.items():
                table.add_row(str(number), Text(escaped(value)))
            console.print(table)
    images, found = manifest["counts"]["images"], manifest["counts"]["detections"]
    label = escaped(manifest["job"].get("label", ""))
    having = f"with a {label}" if label else "with detections"
    whole = manifest["job"].get("boxes") == "whole"  # each image is its own detection
    outcomes = (
        f"{images['detected']} read" if whole else f"{images['detected']} {having}, {images['no_object']} without"
    )
    console.print(
        f"{images['total']} images: {outcomes}, {images['failed']} failed"
        + (f", {images['not_reached']} not reached" if images["not_reached"] else ""),
        markup=False,
    )
    what = "images asked about" if whole else f"{label} detections".lstrip()
    console.print(f"{found['total']} {what}: {found['answered']} answered, {found['failed']} failed", markup=False)
    for name, each in manifest.get("labels", {}).items():
        line = f"  {each['detections']} {name} in {each['images']} images: {each['answered']} answered, "
        console.print(escaped(line + f"{each['failed']} failed"), markup=False, highlight=False)
    for name, judged in manifest["accuracy"].items():
        print_accuracy(console, name, judged)
    if "evaluation" in manifest:
        print_evaluation(console, manifest["evaluation"])
    if "cost" in manifest:
        price = manifest["cost"]
        line = f"cost: {price['total']:,.4g}; {price['per_1000_images']:,.4g} for 1,000 images, by the prices you set"
        console.print(line, markup=False, highlight=False)
    if several := manifest["several_frames"]:
        console.print(f"images with several pages or frames: {several}; only the first is used")
    if note := copies_note(manifest.get("annotated")):
        console.print(note, markup=False, highlight=False)
    for service, each in manifest.get("servers", {}).items():
        for one in each if len(each) > 1 else ():
            line = f"{service} {one['address']}: {one['answers']} answers"
            line += f" of {one['mean_latency_s']:.3g} s" if one["answers"] else ""
            line += f", {one['failures']} failures" if one["failures"] else ""
            line += f", away {one['outages']} times" if one["outages"] else ""
            line += f"; set aside: {one['set_aside']}" if "set_aside" in one else ""
            console.print(escaped(line), markup=False, highlight=False, soft_wrap=True)
    if starts := history.sentence(manifest["starts"]):
        console.print(starts, markup=False, highlight=False)
    if "reason" in manifest:
        reason = escaped(f"stopped: {manifest['reason']}")
        console.print(reason, style="bold red", markup=False, highlight=False, soft_wrap=True)
    for failure in manifest["failures"][:5]:
        line = escaped(f"  failed at {failure['stage']}: {failure['reason']} ({failure['rows']} rows)")
        console.print(line, style="red", markup=False, highlight=False)


def print_accuracy(console: Console, name: str, judged: dict[str, float]) -> None:
    """How many answers of a property are right, in one line."""
    said = f"right {escaped(name)}: {judged['share']:.1%}, {judged['right']} of {judged['rows']}"
    said += f"; {judged['no_answer']} without an answer count as wrong" if judged["no_answer"] else ""
    said += f"; {judged['without_truth']} rows have no truth" if judged.get("without_truth") else ""
    console.print(said, markup=False, highlight=False, soft_wrap=True)


def percent(share: float | None) -> str:
    """A share for people; `none` where there is nothing to divide by."""
    return "none" if share is None else f"{share:.1%}"


def print_evaluation(console: Console, figures: dict[str, Any]) -> None:
    """A run against its labels file: a line for the images, one for each label and one for each field of an answer."""
    images = figures["images"]
    lines = [
        f"against {figures['truth']}: {images['compared']} images compared"
        + "".join(
            f", {images[key]} {said}"
            for key, said in (
                ("failed", "of them failed"),
                ("without_truth", "not in the file"),
                ("without_rows", "of the file not in the run yet or not in this trial"),
            )
            if images[key]
        )
    ]
    if figures["names"]:
        lines.append(f"  {figures['names']}")
    if figures["objects_of_other_labels"]:
        lines.append(
            f"  {figures['objects_of_other_labels']} objects of labels that the job does not find are left out"
        )
    for label, judged in figures["detections"].items():
        lines.append(
            f"  {label}: {judged['found']} found, {judged['missed']} missed, {judged['invented']} invented; "
            f"precision {percent(judged['precision'])}, recall {percent(judged['recall'])}, "
            f"AP50 {percent(judged['ap50'])}, AP50:95 {percent(judged['ap50_95'])}"
        )
    for line in lines:
        console.print(escaped(line), markup=False, highlight=False, soft_wrap=True)
    for name, judged in figures["answers"].items():
        print_accuracy(console, name, judged)


def copies_note(drawn: dict[str, Any] | None) -> str | None:
    """Why a run has fewer annotated copies than images with detections; None where it has all."""
    if drawn is None or drawn["copies"] >= drawn["of"]:
        return None
    limited = drawn["limit"] is not None and drawn["limit"] < drawn["of"]
    why = "SPOTTER_ANNOTATED=all draws all" if limited else "the others could not be read again or drawn"
    return f"annotated copies: {drawn['copies']} of {drawn['of']} images; {why}"


def show_next(console: Console, folder: Path, manifest: dict[str, Any]) -> None:
    """Where the results are, and what to do with them."""
    counts, given = manifest["counts"], manifest["settings"]
    if counts["images"]["not_reached"] and "shards" in manifest:
        advice = "run the missing shards and merge again, or do the rest with the same command without SHARD"
    elif counts["images"]["not_reached"]:
        advice = "the same command again does the rest"
    elif counts["images"]["failed"] + counts["detections"]["failed"]:
        advice = "make run OPTIONS=--retry-failed, when the cause is gone"
    elif "shard" in manifest:
        advice = "make merge, when all shards have ended"
    elif "trial" in manifest:
        advice = f"open the report; then all images: the same command without {'LIMIT' if given['limit'] else 'SAMPLE'}"
    elif given["images"].startswith("samples/"):
        advice = (
            f"open the report; then your own: make run IMAGES={'table' if manifest['job'].get('inputs') else 'folder'}"
        )
    else:
        advice = "open the report"
    for name, text in (("rows", folder / "detections.parquet"), ("report", folder / "report.html"), ("next", advice)):
        console.print(escaped(f"{name + ':':8}{text}"), soft_wrap=True, highlight=False, markup=False)
