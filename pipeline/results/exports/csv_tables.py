"""CSV: both tables as they are, with the failed rows, safe to open in a spreadsheet."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from pipeline.results.finished_run import FinishedRun, Tally

# A spreadsheet runs a cell that begins so as a formula (OWASP, "CSV Injection"); a quote before it makes it text.
FORMULA = r"^([=+\-@\t\r\n＝＋－＠])"
CORNERS = ("x1", "y1", "x2", "y2")


def flat(table: pa.Table) -> pa.Table:
    """A table without lists, whose texts no spreadsheet takes for a formula.

    A list of four becomes four columns, as a box does; other nested values become JSON.
    """
    columns: dict[str, pa.ChunkedArray | pa.Array] = {}
    for field in table.schema:
        column = table[field.name]
        if pa.types.is_fixed_size_list(field.type) and field.type.list_size == len(CORNERS):
            columns |= {f"{field.name}_{corner}": pc.list_element(column, at) for at, corner in enumerate(CORNERS)}
        elif pa.types.is_nested(field.type):
            columns[field.name] = pa.array([value and json.dumps(value) for value in column.to_pylist()], pa.string())
        elif pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            columns[field.name] = pc.replace_substring_regex(column, FORMULA, r"'\1")
        else:
            columns[field.name] = column
    return pa.table(columns)


def write(run: FinishedRun, folder: Path, tally: Tally) -> None:
    """Write images.csv and detections.csv: UTF-8, texts in quotes, nothing between the commas for null."""
    tally.images, tally.detections = run.images.num_rows, run.detections.num_rows
    csv.write_csv(flat(run.images), folder / "images.csv")
    csv.write_csv(flat(run.detections), folder / "detections.csv")
