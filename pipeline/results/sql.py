"""SQL over a run's tables, `images` and `detections`, by Daft's own engine."""

from __future__ import annotations

import daft
import pyarrow as pa

from pipeline.errors import InvalidSetting
from pipeline.results.finished_run import FinishedRun


def query(run: FinishedRun, text: str) -> pa.Table:
    """The rows of a query.

    Raises:
        InvalidSetting: it is not SQL that Daft takes, or names a column that the tables do not have.
    """
    tables = {"images": run.images, "detections": run.detections}
    frames = {name: daft.from_arrow(table) for name, table in tables.items()}
    try:
        return daft.sql(text, register_globals=False, **frames).to_arrow()
    # Daft has no kind for all errors of a query: some are its own, some appear only when it is executed.
    except Exception as error:
        said = " ".join(str(error).split())
        columns = "; ".join(f"{name}: {', '.join(table.column_names)}" for name, table in tables.items())
        raise InvalidSetting(f"query {text!r}: {said} -- the columns are {columns}") from error
