"""Measure whether the detections and answers about drawn scenes stay right at the size of photographs.

    make up && python -m scripts.bench.large_scenes            300 scenes, as drawn and enlarged to 12 megapixels

The services are those of the running stack, or of SPOTTER_DETECTOR_URL and SPOTTER_MODEL_URL. Both runs are compared
with what was drawn. The exit code is 1 when the enlarged scenes have fewer dogs found or fewer right answers by more
than --slack, or when a box in twenty is more than --pixels off the one in the scene as drawn.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from samples.agreement import Agreement, compare, iou
from samples.make_images import describe
from samples.scenes import make_scene
from scripts.bench import command, running
from scripts.environments import ROOT

# Far from the seeds of the trainings.
FIRST_SEED = 9_000_000
FACTOR = 6.25  # 640 x 480 to 4000 x 3000


def draw(folder: Path, scenes: int) -> dict[str, Any]:
    """Draw scenes into `small` and `large` in a folder, and return what is in the small ones, by name."""
    truth = {}
    for place in ("small", "large"):
        (folder / place).mkdir(parents=True)
    for seed in range(FIRST_SEED, FIRST_SEED + scenes):
        scene, name = make_scene(seed), f"{seed}.jpg"
        size = (round(scene.image.width * FACTOR), round(scene.image.height * FACTOR))
        scene.image.save(folder / "small" / name, quality=90)
        scene.image.resize(size, Image.Resampling.LANCZOS).save(folder / "large" / name, quality=90)
        truth[name] = describe(scene)
    return truth


def detections(images: Path, runs: Path, scale: float) -> list[dict[str, Any]]:
    """The detections of a run over a folder, with boxes in pixels of the scenes as drawn."""
    settings = running.settings()
    environment = dict(os.environ)
    environment |= {f"SPOTTER_{name.upper()}": str(getattr(settings, name)) for name in ("detector_url", "model_url")}
    if settings.api_key:
        environment["SPOTTER_API_KEY"] = settings.api_key.get_secret_value()
    job = [sys.executable, "-m", "pipeline", f"--images={images}", f"--output={runs}", "--annotated=none", "--force"]
    done = subprocess.run(job, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise command.BenchFailed(f"the run ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    rows: list[dict[str, Any]] = pq.read_table(runs / "latest" / "detections.parquet").to_pylist()
    return [row | {"path": Path(row["path"]).name, "box": [value / scale for value in row["box"]]} for row in rows]


def shifts(small: list[dict[str, Any]], large: list[dict[str, Any]]) -> list[float]:
    """For each box of a small scene, how many pixels the farthest edge of the nearest box in the large one is off."""
    found = []
    for row in small:
        others = [other["box"] for other in large if other["path"] == row["path"]]
        nearest = max(others, key=lambda box: iou(box, row["box"]), default=None)
        if nearest is not None and iou(nearest, row["box"]) > 0.5:
            found.append(max(abs(a - b) for a, b in zip(nearest, row["box"], strict=True)))
    return found


def measure(options: argparse.Namespace) -> list[str]:
    """Draw, run over both sizes, compare."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        truth = draw(folder, options.scenes)
        small = detections(folder / "small", folder / "runs-small", 1)
        large = detections(folder / "large", folder / "runs-large", FACTOR)
    before, after = compare(small, truth), compare(large, truth)
    moved = shifts(small, large)
    p95, most = np.percentile(moved, (95, 100)) if moved else (np.nan, np.nan)
    table = command.figures("scenes", ("dogs drawn", "found", *after.right))
    for name, seen in (("as drawn", before), ("at 12 megapixels", after)):
        table.add_row(name, str(seen.drawn), str(seen.found), *(str(right) for right in seen.right.values()))
    command.make_console().print(table)
    off = f"95% of them within {p95:.2f} pixels of 640, all within {most:.2f}"
    print(f"{len(moved)} of {len(small)} boxes found again, {off}")
    return complaints(before, after, options.slack) + ([] if p95 <= options.pixels else [f"boxes moved: {p95:.2f}"])


def complaints(before: Agreement, after: Agreement, slack: float) -> list[str]:
    """One line for each figure that the larger size makes worse."""
    said = []
    if after.found < before.found - slack * before.drawn:
        said.append(f"{after.found} dogs found, {before.found} as drawn")
    for name, right in before.right.items():
        if after.right[name] < right - slack * before.drawn:
            said.append(f"{after.right[name]} right in {name}, {right} as drawn")
    return said


def main() -> int:
    """Measure, print, judge."""
    parser = command.Options(__doc__)
    parser.option("--scenes", 300, "number of scenes")
    parser.option("--slack", 0.01, "share of the dogs by which a figure may be lower")
    parser.option("--pixels", 2.0, "most that 95 of 100 boxes may be off, in pixels of the scene as drawn")
    options = parser.parse_args()
    return command.run(lambda: measure(options))


if __name__ == "__main__":
    sys.exit(main())
