"""Where the boxes of a run come from: the detector, the image itself, or a source that the user gives.

To add one: a class like `Given` here, a line in `given`, and for another kind than those of SPOTTER_BOXES a value of
`Boxes` in pipeline/labels.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import tables
from pipeline.clients.detector import Box, Detected, Picture
from pipeline.errors import InvalidSetting, NotFound, RowError
from pipeline.job import Job
from pipeline.labels import INPUT, WHOLE, lowest, reaches
from pipeline.settings import Settings
from pipeline.sources.annotations import Annotation, match_names, read_annotations
from pipeline.sources.box_columns import COLUMN, read_column
from pipeline.sources.earlier_run import AskedAgain, EarlierRun
from pipeline.sources.listing import Source
from pipeline.sources.objects import Objects
from pipeline.tables import shown_path

# Nothing is waited for, so a few at once keep the stage busy.
AT_ONCE = 16


class NoBoxes(RowError):
    """The given boxes do not fit an image; the message says why."""


@dataclass(frozen=True)
class Given:
    """A finder that asks no service, with what identifies its boxes."""

    name: str
    """For people: `whole images`, or `boxes of` their source."""
    label: str
    """Of a box that has none."""
    revision: str | None = None
    """A hash of the boxes' source: other boxes are another run."""
    notes: tuple[str, ...] = ()
    """What a person should know, a line each."""
    detector: str | None = field(default=None, kw_only=True)
    """The model that found them, where that is known."""
    detector_settings: str = field(default="", kw_only=True)
    """What it said of how it chooses boxes."""

    @property
    def concurrency(self) -> int:
        """The most images at once."""
        return AT_ONCE

    def boxes(self, picture: Picture) -> list[Box]:
        """The one box that is the whole image."""
        return [Box(box=(0.0, 0.0, float(picture.width), float(picture.height)), label=self.label, score=None)]

    async def find(self, picture: Picture) -> Detected:
        """See `detector.Finder.find`."""
        boxes = self.boxes(picture)
        return Detected(boxes, picture.width, picture.height, self.name, self.revision, {}, 0, 0.0)


@dataclass(frozen=True)
class GivenBoxes(Given):
    """Boxes that were read before the first image, by the image's path or by its key."""

    by_path: Mapping[bytes, list[Annotation]] = field(default_factory=dict)
    by_key: Mapping[str, list[Annotation]] | None = None
    sizes: Mapping[bytes, tuple[int, int]] = field(default_factory=dict)
    """Width and height that the source of the boxes says."""
    labels: Mapping[str, float | None] | None = None
    """Each label that is looked for and its lowest score; None: any."""
    threshold: float | None = None

    def boxes(self, picture: Picture) -> list[Box]:
        """Those of the labels that are looked for, best first.

        Raises:
            NoBoxes: the earlier run does not have this image, or the boxes are for an image of another size.
        """
        size = picture.width, picture.height
        if (said := self.sizes.get(picture.path, size)) != size:
            raise NoBoxes(
                f"the image has {size[0]} x {size[1]} pixels, but the {self.name} are for {said[0]} x {said[1]}: "
                "give the boxes of this copy"
            )
        if self.by_key is not None and picture.key not in self.by_key:
            raise NoBoxes(f"no {self.name} are for an image with this content: the run lacks it, or failed on it")
        found = self.by_path.get(picture.path, []) if self.by_key is None else self.by_key[picture.key]
        whole = (0.0, 0.0, float(picture.width), float(picture.height))
        boxes = [Box(box=each.box or whole, label=each.label or self.label, score=each.score) for each in found]
        return sorted(filter(self.wanted, boxes), key=lambda box: -(box.score or 0.0))

    def wanted(self, box: Box) -> bool:
        """Whether a box has a label that is looked for and no lower score."""
        if self.labels is not None and box.label not in self.labels:
            return False
        return reaches(box.score, lowest(self.labels, self.threshold, box.label))


@dataclass(frozen=True)
class Stored(Given):
    """Nothing is to be found: detections and crops are those of an earlier run."""

    earlier: AskedAgain = field(kw_only=True)


def stored(earlier: AskedAgain, job: Job) -> Stored:
    """For a job that is asked about the detections of an earlier run: nothing is to be found."""
    before = earlier.run.identity
    return Stored(
        f"crops of run {earlier.run.name}",
        job.label,
        before["detector_revision"],
        detector=before["detector"],
        detector_settings=before["detector_settings"],
        earlier=earlier,
    )


def given(settings: Settings, job: Job, sources: list[Source], objects: Objects) -> Given | None:
    """What finds the objects without a service; None: the job asks the detector.

    Raises:
        InvalidSetting: SPOTTER_BOXES is missing, or set for a job that does not use it.
        NotFound, Unreadable: the boxes cannot be read.
    """
    if job.boxes != INPUT:
        if settings.boxes is not None:
            raise InvalidSetting(
                f"SPOTTER_BOXES={settings.boxes} has no effect on job {job.name}: unset it, or write `boxes: input` "
                "into the job file"
            )
        return Given("whole images", job.label) if job.boxes == WHOLE else None
    if settings.boxes is None:
        raise InvalidSetting(
            f"job {job.name} has `boxes: input`: set SPOTTER_BOXES or --boxes to a COCO JSON file, an earlier run's "
            f"folder, or {COLUMN}NAME of the input table"
        )
    place = settings.boxes
    if place.startswith(COLUMN):
        found = read_column(settings.images, place.removeprefix(COLUMN), settings.column, sources, objects)
        text = json.dumps([[shown_path(path), [repr(box) for box in boxes]] for path, boxes in sorted(found.items())])
        return GivenBoxes(
            f"boxes of {place}",
            job.label,
            fingerprint(text),
            by_path=found,
            labels=job.labels,
            threshold=job.threshold,
        )
    folder = Path(place).expanduser()
    if folder.is_dir():
        run = EarlierRun(folder, "boxes")
        by_key, revision = of_run(run, job)
        name = f"boxes of run {run.name}"
        return GivenBoxes(name, job.label, revision, by_key=by_key, labels=job.labels, threshold=job.threshold)
    return of_file(place, job, sources, objects)


def of_file(place: str, job: Job, sources: Iterable[Source], objects: Objects) -> GivenBoxes:
    """The boxes of a file of annotations, matched to the images by name.

    Raises:
        Unreadable: it cannot be read.
        NotFound: none of its names is that of an image.
    """
    annotations = read_annotations(place, objects)
    paths = {source.shown: source.path for source in sources}
    matches = match_names(annotations.of, paths)
    if annotations.of and not matches.of:
        raise NotFound(
            f"boxes: no name in {place}, such as {next(iter(annotations.of))}, is that of an image: check both"
        )
    notes = [f"boxes: {said}" for said in [matches.summary()] if said]
    if without := len(paths) - len(matches.of):
        notes.append(f"boxes: {without} of {len(paths)} images are not in {place}: they have no object")
    by_path = {paths[path]: annotations.of[name] for path, name in matches.of.items()}
    sizes = {paths[path]: annotations.sizes[name] for path, name in matches.of.items() if name in annotations.sizes}
    text = json.dumps(
        [[name, [repr(each) for each in found], annotations.sizes.get(name)] for name, found in annotations.of.items()]
    )
    return GivenBoxes(
        f"boxes of {Path(place).name}",
        job.label,
        fingerprint(text),
        tuple(notes),
        by_path=by_path,
        sizes=sizes,
        labels=job.labels,
        threshold=job.threshold,
    )


def of_run(run: EarlierRun, job: Job) -> tuple[dict[str, list[Annotation]], str]:
    """The boxes of an earlier run by the image's key, and their hash; images that failed are left out.

    Raises:
        InvalidSetting: its keys cover other inputs than the job's.
    """
    if (inputs := list(run.job.get("inputs", ()))) != list(job.inputs):
        raise InvalidSetting(
            f"boxes: the run in {run.folder} has the inputs {', '.join(inputs) or 'none'}, job {job.name} has "
            f"{', '.join(job.inputs) or 'none'}: images are matched by content and inputs, so both must be the same"
        )
    images = run.images.select(["key", "outcome"]).to_pylist()
    rows = run.detections.select(["key", "index", "label", "box", "score"]).to_pylist()
    found: dict[str, list[Annotation]] = {
        row["key"]: [] for row in images if row["key"] and row["outcome"] != tables.FAILED
    }
    seen = set[tuple[str, int]]()  # the rows of copies of an image are the same
    for row in sorted(rows, key=lambda row: row["index"]):
        if row["key"] in found and (row["key"], row["index"]) not in seen:
            seen.add((row["key"], row["index"]))
            x1, y1, x2, y2 = row["box"]
            found[row["key"]].append(Annotation(row["label"], (x1, y1, x2, y2), row["score"]))
    text = json.dumps([[key, [repr(each) for each in boxes]] for key, boxes in sorted(found.items())])
    return found, fingerprint(text)


def fingerprint(content: str) -> str:
    """A hash of the boxes, for the run's identity."""
    return "sha256:" + hashlib.sha256(content.encode()).hexdigest()[:32]
