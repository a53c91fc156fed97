"""The doubtful part of a run: the images with an answer of which the model was not sure."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import NotFound
from pipeline.results.finished_run import FinishedRun


def doubtful(run: FinishedRun, below: float) -> tuple[FinishedRun, int]:
    """The run with the images that have a confidence below a limit, the lowest first, and the number of such rows.

    All detections of these images stay. Copies of an image (duplicates) are left out: they have the same answers.

    Raises:
        NotFound: the run has no confidences.
    """
    detections = run.detections
    known = [detections[name] for name in run.confidences if detections[name].null_count < detections.num_rows]
    if not known:
        raise NotFound(
            f"run {run.folder} has no confidences: its job needs a property with `enum` or a boolean, and the model "
            "server must give logprobs (SPOTTER_CONFIDENCE): run it anew"
        )
    copies = run.images.filter(pc.is_valid(run.images["duplicate_of"]))["path"].combine_chunks()
    lowest = pc.min_element_wise(*known)
    rows = pa.table({"path": detections["path"], "lowest": lowest})
    rows = rows.filter(pc.and_(pc.less(lowest, below), pc.invert(pc.is_in(rows["path"], value_set=copies))))
    first = rows.group_by("path").aggregate([("lowest", "min")]).sort_by("lowest_min")
    places = pc.index_in(first["path"], value_set=run.images["path"].combine_chunks())
    kept = detections.filter(pc.is_in(detections["path"], value_set=first["path"].combine_chunks()))
    return replace(run, images=run.images.take(places), detections=kept), rows.num_rows
