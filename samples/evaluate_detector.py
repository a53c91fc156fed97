"""Measure a detector on drawn scenes that no training has seen, or on the bundled pictures.

Pictures take the way they take in the detector service: encoded, decoded, scaled, through the model, non-maximum
suppression. Exit code 1 when a figure is below what is asked.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samples.detection_metrics import Counts, FloatArray, ScoredBoxes, average_precision, count_matches
from samples.make_images import IMAGES, TRUTH
from samples.scenes import LABELS, make_scene
from services.detector.backends import Detector, DetectorError, backend
from services.detector.checkpoint import Checkpoint, CheckpointError
from services.detector.images import decode
from services.detector.messages import Detection, Failed, Frame, Refused
from services.detector.settings import Settings

MODEL = Path(__file__).parent / "models" / "tiny-detector" / "model.onnx"

# Far from the seeds of `samples.train_detector` and from those of the bundled pictures.
EVALUATION_SEED = 9_000_000
JPEG_QUALITY = 90

# Average precision needs the weak boxes too: a precision-recall curve goes through all scores.
LOWEST_SCORE = 0.01
THRESHOLDS = (0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7)


@dataclass(frozen=True)
class Example:
    """An encoded picture and the true boxes of each label (`xyxy`, pixels of the upright picture)."""

    encoded: bytes
    truth: dict[str, FloatArray]


@dataclass(frozen=True)
class LabelReport:
    """How well one label is detected; counts are at one score threshold and one IoU."""

    average_precision: float
    counts: dict[float, Counts]


def fresh_scenes(first_seed: int, count: int) -> Iterator[Example]:
    """Draw scenes of the default size from consecutive seeds, as JPEG."""
    for seed in range(first_seed, first_seed + count):
        scene = make_scene(seed)
        encoded = io.BytesIO()
        scene.image.save(encoded, "JPEG", quality=JPEG_QUALITY)
        yield Example(encoded.getvalue(), _by_label((item.label, item.box) for item in scene.objects))


def bundled_pictures() -> Iterator[Example]:
    """Read the bundled pictures and their truth."""
    told = json.loads(TRUTH.read_text(encoding="utf-8"))["images"]
    for name, entry in told.items():
        boxes = ((item["label"], item["box"]) for item in entry["objects"])
        yield Example((IMAGES / name).read_bytes(), _by_label(boxes))


def evaluate(
    examples: Iterable[Example],
    detector: Detector,
    checkpoint: Checkpoint,
    iou: float,
    thresholds: list[float],
) -> dict[str, LabelReport]:
    """Run the detector over the examples and compare by label.

    Raises:
        DetectorError: the model gave no answer for a picture.
    """
    found: dict[str, list[ScoredBoxes]] = {label: [] for label in LABELS}
    truth: dict[str, list[FloatArray]] = {label: [] for label in LABELS}
    for example in examples:
        pixels, width, height = decode(example.encoded, checkpoint.input_size)
        wanted = dict.fromkeys(LABELS, LOWEST_SCORE)
        outcome = detector.detect([Frame(pixels, width, height, wanted, LOWEST_SCORE)])[0]
        if isinstance(outcome, Failed | Refused):
            raise DetectorError(outcome.reason)
        for label in LABELS:
            found[label].append(_scored(item for item in outcome.detections if item.label == label))
            truth[label].append(example.truth[label])
    return {
        label: LabelReport(
            average_precision(found[label], truth[label], iou),
            {threshold: count_matches(found[label], truth[label], threshold, iou) for threshold in thresholds},
        )
        for label in LABELS
    }


def _by_label(boxes: Iterable[tuple[str, Iterable[int]]]) -> dict[str, FloatArray]:
    pairs = [(label, list(box)) for label, box in boxes]
    return {
        label: np.array([box for name, box in pairs if name == label], np.float64).reshape(-1, 4) for label in LABELS
    }


def _scored(detections: Iterable[Detection]) -> ScoredBoxes:
    listed = list(detections)
    boxes = np.array([item.box for item in listed], np.float64).reshape(-1, 4)
    # A detector without scores is sure of everything it reports.
    return ScoredBoxes(boxes, np.array([1.0 if item.score is None else item.score for item in listed], np.float64))


def show(reports: dict[str, LabelReport], label: str, threshold: float, iou: float) -> None:
    """Print the figures of every label and, for `label`, those at each score threshold."""
    for name, report in reports.items():
        print(f"AP{round(100 * iou)} {name}: {report.average_precision:.4f}")
    print(f"\n{label} by score threshold:\n threshold  recall  missed  false  exact count")
    for at, counts in sorted(reports[label].counts.items()):
        mark = "  <- in use" if at == threshold else ""
        print(
            f"      {at:4.2f}   {counts.recall:.4f}  {counts.missed:6d}  {counts.false:5d}  "
            f"{counts.exact_pictures}/{counts.pictures} = {counts.exact_rate:.3f}{mark}"
        )


def main() -> int:
    """Evaluate as the command line says; 1 when the detector is below the floors, 2 when it cannot be loaded."""
    defaults = Settings()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundled", action="store_true", help="evaluate the bundled pictures instead of fresh scenes")
    add = parser.add_argument
    add(
        "--model",
        default=str(MODEL),
        help=".onnx file, or folder or hub id of a checkpoint (default: the bundled tiny model)",
    )
    add("--revision", help="branch, tag or commit of a hub id (default: main)")
    add("--scenes", type=int, default=200, help="fresh scenes to draw (default: %(default)s)")
    add("--seed", type=int, default=EVALUATION_SEED, help="seed of the first scene (default: %(default)s)")
    add("--label", default="dog", choices=LABELS, help="label of the table and of the floors (default: %(default)s)")
    add(
        "--threshold", type=float, default=defaults.threshold, help="score in use (default: %(default)s, the service's)"
    )
    add("--iou", type=float, default=0.5, help="IoU from which a box counts as found (default: %(default)s)")
    add("--min-ap", type=float, default=0.95, help="floor of the average precision (default: %(default)s)")
    add("--min-exact", type=float, default=0.95, help="floor of the exact-count rate (default: %(default)s)")
    args = parser.parse_args()

    try:
        chosen = {"model": args.model, "revision": args.revision, "max_batch": 1}
        settings = defaults.model_copy(update=chosen)
        kind = backend(settings)
        checkpoint = kind.read(args.model, args.revision)
        detector = kind.load(settings, checkpoint)
        examples = bundled_pictures() if args.bundled else fresh_scenes(args.seed, args.scenes)
        thresholds = sorted({*THRESHOLDS, args.threshold})
        reports = evaluate(examples, detector, checkpoint, args.iou, thresholds)
    except (CheckpointError, DetectorError) as error:
        print(error, file=sys.stderr)
        return 2
    show(reports, args.label, args.threshold, args.iou)

    report = reports[args.label]
    exact = report.counts[args.threshold].exact_rate
    passed = report.average_precision >= args.min_ap and exact >= args.min_exact
    print(
        f"\n{'passed' if passed else 'FAILED'}: AP {report.average_precision:.4f} (floor {args.min_ap}), "
        f"exact count {exact:.3f} (floor {args.min_exact}) at threshold {args.threshold}"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
