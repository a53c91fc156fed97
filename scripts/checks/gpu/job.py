"""Part 3: the whole job, with the tiny models on the device: rows, answers and time against the truth of the scenes."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

from scripts.checks.gpu.part import Host, Result
from scripts.environments import ROOT
from scripts.settings import BuildFailed, read_variables
from scripts.stack.vllm_server import preset_file

# The bundled images, by samples/truth.json: 24 with a dog, 78 dogs.
IMAGES, DOGS = 24, 78
# The tiny detector's checkpoint for torch, in place of the .onnx file that always runs on the CPU.
DETECTOR = {"BACKEND": "transformers", "MODEL": "samples/models/tiny-detector", "REVISION": "", "THRESHOLD": "0.45"}
# What the CPU's preset needs to be otherwise on a GPU.
NOT_ON_GPU = ("enforce-eager",)
CPU_VARIABLES = ("OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND", "TORCH_COMPILE_DISABLE")


def write_preset(folder: Path) -> Path:
    """The CPU's preset with its tiny model, for a GPU: compiled, with CUDA graphs."""
    source = preset_file("cpu")
    content = yaml.safe_load(source.read_text())
    options = {name: value for name, value in content.items() if name not in NOT_ON_GPU}
    options["gpu-memory-utilization"] = 0.2
    place = folder / "tiny-cuda.yaml"
    place.write_text(yaml.safe_dump(options))
    kept = {
        name: value for name, value in read_variables(source.with_suffix(".env")).items() if name not in CPU_VARIABLES
    }
    kept |= {"VLLM_USE_FLASHINFER_SAMPLER": "0"}
    place.with_suffix(".env").write_text("".join(f"{name}={value}\n" for name, value in kept.items()))
    return place


def measure(host: Host) -> Result:
    """Run the bundled job in a stack of its own, and stop that.

    Raises:
        BuildFailed: the run fails.
    """
    with tempfile.TemporaryDirectory(prefix="spotter-gpu-check-") as name:
        folder = Path(name)
        preset = str(write_preset(folder)) if host.device == "cuda" else "cpu"
        own = {"STACK_DEVICE": host.device, "STACK_PRESET": preset, "STACK_ENGINE": "process", "STACK_STATE": name}
        own |= {"STACK_VLLM_PORT": str(host.port + 1), "STACK_DETECTOR_PORT": str(host.port + 2)}
        own |= {f"DETECTOR_{key}": value for key, value in DETECTOR.items()}
        env = {**os.environ, **own}
        try:
            figures = run(env, folder / "runs")
        finally:
            subprocess.run([ROOT / "spotter", "down"], env=env, capture_output=True)
    counts, wrong = figures["counts"], []
    if (counts["images"]["detected"], counts["detections"]["answered"]) != (IMAGES, DOGS):
        wrong.append(f"{counts}; expected: {IMAGES} images with a dog and {DOGS} answers")
    columns = ("images with a dog", "answers", "failed", "run, s", "answers/s")
    seconds = float(figures["seconds"])
    answered, failed = counts["detections"]["answered"], counts["detections"]["failed"]
    return Result(
        columns, [(counts["images"]["detected"], answered, failed, seconds, answered / seconds)], figures, wrong
    )


def run(env: dict[str, str], output: Path) -> dict[str, Any]:
    """The counts and seconds of one run."""
    command = [str(ROOT / "spotter"), "run", "--images", "samples/images", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        raise BuildFailed(f"the job cannot be run: {' '.join(done.stderr.split())[-600:]}")
    manifest = json.loads((output / "latest" / "run.json").read_text())
    return {name: manifest[name] for name in ("counts", "seconds")}
