"""Part 1: the detector alone. Images a second and memory for each batch, and what half precision does to boxes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from scripts import environments
from scripts.checks.gpu.part import Host, Result
from scripts.environments import ROOT
from scripts.settings import BuildFailed

PROGRAM = Path(__file__).with_name("in_detector.py")
# On a GPU a batch of 32 should be at least this many times as fast as single images.
GAIN = 3.0
# Boxes of the bundled model in float16, against float32 on a CPU: 0.4 px at most.
MOST_PX = 2.0


def measure(host: Host) -> Result:
    """Measure in the detector's environment.

    Raises:
        BuildFailed: the program fails.
        EnvironmentFailed: the environment cannot be made.
    """
    on_gpu = host.device == "cuda"
    name = "detector-cuda" if on_gpu else "detector-torch-cpu"
    environments.prepare(name)
    sizes = ["1", "2", "4", "8", "16", "32"] if on_gpu else ["1", "4"]
    options = ["--device", host.device, "--seconds", "5" if on_gpu else "1", "--batches", *sizes]
    command = [str(environments.python(name)), str(PROGRAM), *options, *(["--large"] if on_gpu else [])]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    if done.returncode:
        raise BuildFailed(f"the detector cannot be measured: {' '.join(done.stderr.split())[-600:]}")
    figures = json.loads(done.stdout.splitlines()[-1])
    boxes, wrong = figures["boxes"], []
    if on_gpu and (boxes["most_px"] > MOST_PX or boxes["failed"]):
        found = f"float16 moves boxes by up to {boxes['most_px']:.1f} px and fails on {boxes['failed']} images"
        wrong.append(f"{found}; expected: at most {MOST_PX} px, no failure")
    large = [row for row in figures["speed"] if row["model"] == "D-FINE" and row["dtype"] == "float16"]
    if large:
        figures["gain"] = large[-1]["images_per_s"] / large[0]["images_per_s"]
        if figures["gain"] < GAIN:
            wrong.append(f"a batch of 32 is {figures['gain']:.1f} times as fast as single images; expected: {GAIN}")
    columns = ("model", "type", "batch", "images/s", "GPU memory, MiB")
    rows = [
        (row["model"], row["dtype"], row["batch"], row["images_per_s"], row["peak_mib"]) for row in figures["speed"]
    ]
    half = f"boxes move {boxes['mean_px']:.2f} px, at most {boxes['most_px']:.1f}; {boxes['failed']} images fail"
    rows.append(("tiny-detector", f"{'float16' if on_gpu else 'float32'} against float32", 1, half, "-"))
    return Result(columns, rows, figures, wrong)
