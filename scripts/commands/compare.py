"""`compare`: the answers of two finished runs side by side. `profile --compare` compares where their time went."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline import settings as job_settings
from pipeline.errors import InvalidSetting, Unwritable
from pipeline.output.run_folder import find_run
from pipeline.results.comparison import Comparison
from pipeline.results.comparison_page import write_page
from pipeline.results.finished_run import read_run
from pipeline.runtime.terminal import escaped
from scripts.settings import StackSettings

SHOWN_CHANGES = 10


def add_arguments(parser: ArgumentParser) -> None:
    """The command's own arguments."""
    parser.description = (
        "Compare the answers of two runs: what changed, how far they agree, and what both cost. Detections are matched "
        "by the content of the image and the place of the box. For their times see `profile --compare`."
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="two runs, the older first, each by folder or name")
    parser.add_argument("--output", metavar="FOLDER", help="where the page goes (default: beside the second run)")


def table(heads: list[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table of which all columns but the first hold numbers."""
    shown = Table(box=None, pad_edge=False)
    for number, head in enumerate(heads):
        shown.add_column(Text(escaped(head)), justify="right" if number else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text("" if value is None else escaped(str(value))) for value in row))
    return shown


def show(console: Console, compared: Comparison) -> None:
    """Print the comparison."""

    def say(text: str) -> None:
        console.print(escaped(text), markup=False, highlight=False, soft_wrap=True)

    images, names = compared.images, [compared.before.folder.name, compared.after.folder.name]
    say(
        f"images: {images['both']} in both, {images['before']} only in {names[0]}, {images['after']} only in {names[1]}"
    )
    numbers = [len(rows) for rows in (compared.pairs, compared.new, compared.gone)]
    say("detections in images of both: {} equal, {} changed, {} new, {} gone".format(compared.same, *numbers))
    if compared.differences:
        say(f"different: {', '.join(compared.differences)}")
    console.print()
    console.print(table(["", *names], [[each.name, each.before, each.after] for each in compared.measures]))
    if compared.fields:
        console.print()
        shares = [
            [each.name, each.both, each.same, None if each.share is None else f"{each.share:.1%}"]
            for each in compared.fields
        ]
        console.print(table(["agreement", "answered by both", "equal", "share"], shares))
    if compared.changes:
        console.print()
        for (name, old, new), number in compared.changes.most_common(SHOWN_CHANGES):
            say(f"{number:>5}  {name}: {old} -> {new}")
        if (left := len(compared.changes) - SHOWN_CHANGES) > 0:
            say(f"       and {left} other kinds of change")
    console.print()


def run(_: StackSettings, console: Console, *, runs: list[str], output: str | None) -> None:
    """Print the comparison and write its page.

    Raises:
        InvalidSetting: not two runs.
        Unwritable: the page cannot be written.
    """
    if len(runs) != 2:
        raise InvalidSetting(
            f"compare takes two runs, the older first, but got {len(runs)}: "
            "make compare RUNS='older newer', or ./spotter compare OLDER NEWER"
        )
    place = job_settings.load([]).runs
    before, after = (read_run(find_run(name, place)) for name in runs)
    compared = Comparison(before, after)
    folder = Path(output).expanduser() if output else after.folder.parent
    page = folder / f"compare-{before.folder.name}-{after.folder.name}.html"
    show(console, compared)
    replaced = page.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_page(compared, page)
    except OSError as error:
        raise Unwritable(f"output: {page} cannot be written: {error.strerror}: give another --output") from error
    text = f"page: {page}{' (replaced)' if replaced else ''}"
    console.print(escaped(text), markup=False, highlight=False, soft_wrap=True)
