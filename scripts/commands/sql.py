"""`sql`: ask the tables of a finished run."""

from __future__ import annotations

from argparse import ArgumentParser

import pyarrow as pa
from pyarrow import csv
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline import settings as job_settings
from pipeline.errors import InvalidSetting
from pipeline.output.run_folder import find_run
from pipeline.results.exports.csv_tables import flat
from pipeline.results.finished_run import read_run
from pipeline.results.sql import query as ask
from pipeline.runtime.terminal import escaped
from scripts.settings import StackSettings

# More rows than anybody reads in a terminal.
SHOWN_ROWS = 100


def add_arguments(parser: ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("query", help="SQL over the tables images and detections, in quotes")
    parser.add_argument("--run", default="latest", metavar="FOLDER", help="the run, by folder or name (default latest)")
    parser.add_argument("--csv", action="store_true", dest="as_csv", help="print all rows as CSV")


def shown(value: object) -> Text:
    """A value in a cell."""
    if isinstance(value, float):
        return Text(f"{value:.6g}", justify="right")
    if isinstance(value, int) and not isinstance(value, bool):
        return Text(str(value), justify="right")
    return Text("" if value is None else escaped(str(value)))


def show(console: Console, rows: pa.Table) -> None:
    """Print the first rows as a table."""
    table = Table(box=None, pad_edge=False)
    for name in rows.column_names:
        table.add_column(Text(escaped(name)), overflow="fold")
    for row in zip(*(column.to_pylist() for column in rows.slice(0, SHOWN_ROWS).columns), strict=True):
        table.add_row(*map(shown, row))
    console.print(table)
    if rows.num_rows > SHOWN_ROWS:
        console.print(f"{SHOWN_ROWS} of {rows.num_rows} rows; CSV=1 (--csv) prints all")


def run(_: StackSettings, console: Console, *, query: str, run: str, as_csv: bool) -> None:
    """Print the rows of the query.

    Raises:
        InvalidSetting: there is no query, or it is wrong.
    """
    if not query.strip():
        raise InvalidSetting("no query: make sql QUERY='select * from images', or ./spotter sql 'select ...'")
    rows = ask(read_run(find_run(run, job_settings.load([]).runs)), query)
    if not as_csv:
        show(console, rows)
        return
    content = pa.BufferOutputStream()
    csv.write_csv(flat(rows), content)
    console.file.write(content.getvalue().to_pybytes().decode())
