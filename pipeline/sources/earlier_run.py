"""An earlier run as the source of another: its images, its detections and its crops, with nothing read or detected."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from pipeline import tables
from pipeline.errors import InvalidJob, InvalidSetting, Unreadable
from pipeline.job import Job
from pipeline.labels import lowest
from pipeline.locations import is_object
from pipeline.settings import Settings
from pipeline.sources.inputs import InputColumns
from pipeline.sources.listing import Listing, Source, version
from pipeline.sources.search import LeftOut

# Rows that are held as Python's dictionaries at once.
BATCH = 1000
# The threshold within what the detector says of its settings.
THRESHOLD = re.compile(r"(?:^|, )threshold ([0-9.e-]+)")


class EarlierRun:
    """A run in its folder, as it was written last."""

    def __init__(self, folder: Path, setting: str) -> None:
        """Read its tables and its run.json; `setting` names it in messages.

        Raises:
            Unreadable: it is no run's folder, or one of another version.
        """
        self.folder = folder.expanduser().resolve()
        try:
            self.manifest: dict[str, Any] = json.loads((folder / "run.json").read_text())
            self.identity: dict[str, Any] = self.manifest["identity"]
            self.images = pq.read_table(folder / "images.parquet")
            self.detections = pq.read_table(folder / "detections.parquet")
            made_by, self.job = self.identity["table_format"], dict(self.manifest["job"])
        except (OSError, pa.ArrowException, ValueError, LookupError, TypeError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
            raise Unreadable(f"{setting}: {folder} is no folder of a run that has ended: {reason}") from error
        if made_by != tables.FORMAT:
            raise Unreadable(
                f"{setting}: the run in {folder} was made by another version of Spotter (table format {made_by}, "
                f"expected {tables.FORMAT}): run it again"
            )

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name


class AskedAgain:
    """A finished run whose detections another job is asked about."""

    def __init__(self, run: EarlierRun, job: Job) -> None:
        """See that the run's crops are those that the job wants.

        Raises:
            Unreadable: the run has not ended.
            InvalidJob: the job wants other detections, crops or inputs than the run has.
        """
        self.run, self.job = run, job
        if (status := run.manifest.get("status")) != "complete":
            raise Unreadable(
                f"from: the run in {run.folder} is not complete ({status}): start it again with its own command, and "
                "let it end"
            )
        content = {name: value for name, value in run.job.items() if name != "name"}
        try:
            self.before = Job.model_validate(content)
        except ValidationError as error:
            raise Unreadable(f"from: the job in {run.folder}/run.json cannot be read: run it again") from error
        self._check_crops()
        self._check_labels()
        self._check_inputs()

    def _refuse(self, what: str, remedy: str) -> None:
        raise InvalidJob(f"job {self.job.name}: {what}: {remedy}, or run the job over the images")

    def _check_crops(self) -> None:
        """See that both jobs cut the same crops."""
        now, then = self.job.content(), self.before.content()
        pairs = [(name, now.get(name, "none"), then.get(name, "none")) for name in ("boxes", "tiles")]
        pairs += [(f"crop.{name}", value, then["crop"][name]) for name, value in now["crop"].items()]
        for name, value, before in pairs:
            if value != before:
                said = ["detector" if name == "boxes" and each == "none" else each for each in (value, before)]
                self._refuse(f"{name} is {said[0]}, but run {self.run.name} has {said[1]}", "give the job the same")

    def _check_labels(self) -> None:
        """See that the run looked for all that the job wants."""
        job, before, name = self.job, self.before, self.run.name
        if job.labels is None and before.labels is not None:
            self._refuse(
                f"it takes any label, but run {name} looked for {', '.join(before.labels)}", "name some of these"
            )
        for label in job.labels or {"": None}:
            if label and before.labels is not None and label not in before.labels:
                known = ", ".join(before.labels)
                self._refuse(f"label {label!r} was not looked for in run {name}", f"name some of {known}")
            wanted, least = lowest(job.labels, job.threshold, label), self._least(label)
            if wanted is not None and least is not None and wanted < least:
                about = f" for {label}" if label else ""
                self._refuse(
                    f"threshold {wanted:g}{about} is below that of run {name}, {least:g}",
                    "give it a higher one or none",
                )

    def _least(self, label: str) -> float | None:
        """The lowest score of the run's detections; None: unknown."""
        if (least := lowest(self.before.labels, self.before.threshold, label)) is not None:
            return least
        said = THRESHOLD.search(self.run.identity.get("detector_settings") or "")
        return float(said[1]) if said else None

    def _check_inputs(self) -> None:
        """See that the run has the job's inputs, from the same columns."""
        for name, column in self.job.inputs.items():
            if self.before.inputs.get(name) != column:
                held = ", ".join(f"{each}: {place}" for each, place in self.before.inputs.items()) or "none"
                self._refuse(
                    f"input {name!r} (column {column}) is not in run {self.run.name}, which has {held}",
                    "take the run's inputs",
                )
        if self.job.inputs and self.job.each != self.before.each:
            self._refuse(
                f"each is {self.job.each}, but run {self.run.name} has {self.before.each}", "give the job the same"
            )

    def refuse_itself(self, folder: Path) -> None:
        """See that the new run has a folder of its own.

        Raises:
            InvalidSetting: it would be written into the run that it reads.
        """
        if folder.resolve() == self.run.folder:
            raise InvalidSetting(f"output: {folder} holds the run that is asked again: give another --run-name")

    def listing(self) -> Listing:
        """The run's images. They are not read: their names are those of its tables."""
        columns = InputColumns.of(self.job)
        rows = self.run.images.select(["path", "version", "inputs"]).to_pylist()
        sources = []
        for row in rows:
            inputs = columns.kept(row["inputs"]) if columns else None
            sources.append(Source(os.fsencode(row["path"]), row["version"], inputs=inputs))
        return Listing(sources, LeftOut())

    def rows(self, sources: list[Source]) -> Iterator[list[tuple[dict[str, Any], list[dict[str, Any]]]]]:
        """Each of these images and its wanted detections, with the columns of their tables; some images at a time."""
        chosen = {source.shown for source in sources}
        found: dict[str, list[int]] = {}
        # Row numbers, not rows: a hundred thousand of them as Python's dictionaries are gigabytes.
        columns = (self.run.detections[name].to_pylist() for name in ("path", "label", "score"))
        for number, (path, label, score) in enumerate(zip(*columns, strict=True)):
            if path in chosen and self.job.wants(label, score):
                found.setdefault(path, []).append(number)
        names = [name for name in self.run.detections.column_names if name in tables.DETECTION_COLUMNS]
        detections = self.run.detections.select(names)
        for batch in self.run.images.to_batches(max_chunksize=BATCH):
            images = [image for image in batch.to_pylist() if image["path"] in chosen]
            numbers = [number for image in images for number in found.get(image["path"], ())]
            taken = iter(detections.take(pa.array(numbers, pa.int64())).to_pylist())
            yield [(image, [next(taken) for _ in found.get(image["path"], ())]) for image in images]


def refuse_others(settings: Settings) -> None:
    """See that a run that is asked again is on this host, and that no other images are given.

    Raises:
        InvalidSetting: it is not so.
    """
    for name in ("images", "column", "every", "boxes"):
        if getattr(settings, name) != Settings.model_fields[name].default:
            raise InvalidSetting(
                f"SPOTTER_{name.upper()} and SPOTTER_FROM_RUN are both set, but an earlier run has its own images: "
                "unset one of them"
            )
    if settings.from_run and is_object(settings.from_run):
        raise InvalidSetting(
            f"from: {settings.from_run} is in a bucket: copy the run to this host, and give that folder"
        )


def unchanged(sources: list[Source]) -> list[Source]:
    """Those of a run's images whose files are still there as they were."""
    return [source for source in sources if source.version and version(os.fsdecode(source.path)) == source.version]
