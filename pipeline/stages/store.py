"""The last stage: write each crop into the run's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import daft
from daft import col

from pipeline.errors import RowError
from pipeline.files import write_anew
from pipeline.metrics.stage import STORE
from pipeline.runtime.runtime import Runtime
from pipeline.stages.schema import BOX, STORED


class StoreCrop:
    """Writes crops."""

    def __init__(self, folder: Path, runtime: Runtime, write_bytes: Callable[[Path, bytes], object]) -> None:
        self.folder = folder
        self.runtime = runtime
        self.write_bytes = write_bytes

    @daft.method(return_dtype=STORED)
    def __call__(self, jpeg: bytes | None, key: str | None, index: int | None) -> dict[str, Any] | None:
        """The crop's path within the run's folder."""
        if jpeg is None:
            return None
        path = Path("crops", f"{key}-{index}.jpg")
        with self.runtime.step(STORE, key, index) as step:
            step.bytes_in = step.bytes_out = len(jpeg)
            self.runtime.budget.stored(len(jpeg))
            self.write(path, jpeg)
        return {"crop": None if step.failure else str(path), "failure": step.failure}

    def write(self, path: Path, jpeg: bytes) -> None:
        """Write a crop.

        Raises:
            RowError: the disk does not take it; no later crop will fare better, so the run ends.
        """
        try:
            self.write_bytes(self.folder / path, jpeg)
        except OSError as error:
            reason = error.strerror or str(error)
            self.runtime.cancellation.cancel(f"cannot write {self.folder / path}: {reason}: make room, then run again")
            raise RowError(f"{path}: {reason}") from error


def store(
    answered: daft.DataFrame,
    folder: Path,
    runtime: Runtime,
    write_bytes: Callable[[Path, bytes], object] = write_anew,
) -> daft.DataFrame:
    """`detection` -> the crop as a file in `folder`/crops, with the detection's own columns; its bytes are dropped."""
    stage = daft.cls(StoreCrop, use_process=False)(folder, runtime, write_bytes)
    detection = col("detection")
    stored = stage(detection["jpeg"], col("key"), detection["index"])
    columns = {name: detection[name] for name in BOX}
    return answered.with_columns({**columns, "uncut": detection["failure"], "stored": stored}).exclude("detection")
