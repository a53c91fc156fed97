"""What is read of Parquet files, counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


class Reads:
    """The rows that were read, and the row groups at which reading was taken up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows = 0
        self.taken_up: list[int] = []
        iterate = pq.ParquetFile.iter_batches

        def counting(file: pq.ParquetFile, **options: Any) -> Iterator[pa.RecordBatch]:
            self.taken_up.append(options["row_groups"][0])
            for batch in iterate(file, **options):
                self.rows += batch.num_rows
                yield batch

        monkeypatch.setattr(pq.ParquetFile, "iter_batches", counting)
