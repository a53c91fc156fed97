"""The files that a run's two tables become.

To add one: a function from the tables and a path to a file, here or in a module of its own, and its line in FORMATS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pyarrow as pa

from pipeline.files import write_table

Tables = Mapping[str, pa.Table]
"""`images` and `detections`."""


def parquet(name: str, tables: Tables, path: Path) -> None:
    """Write one of the tables as Parquet.

    Raises:
        OSError: the file cannot be written.
    """
    write_table(tables[name], path)


FORMATS: dict[str, Callable[[Tables, Path], None]] = {
    "images.parquet": partial(parquet, "images"),
    "detections.parquet": partial(parquet, "detections"),
}
"""By the file's name in the run's folder."""
