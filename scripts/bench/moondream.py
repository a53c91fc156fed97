"""Serve moondream2's own code with small random weights, over HTTP, and compare the boxes with those of the code alone.

    git clone https://github.com/vikhyat/moondream ~/moondream
    python -m scripts.bench.moondream ~/moondream/moondream/torch

FOLDER holds the modules of the model: moondream.py, config.py and those beside them. The weights are random and the
tokenizer is made here, so the boxes mean nothing: this shows that the code loads, answers and stays the same, not what
it finds. The exit code is 1 when an answer has another form or other boxes than the code gives.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack

from samples.scenes import make_scene
from scripts import environments
from scripts.bench import command
from scripts.commands.smoke import free_port
from scripts.environments import ROOT

ENVIRONMENT = "detector-torch-cpu"
SIDES = ("x_min", "y_min", "x_max", "y_max")
LABELS = ("dog", "sports ball")
# Imports took 30 s on two busy cores.
READY_S = 300
STOPPED_S = 60

# Sizes that the code does not take from its configuration: 27 layers of vision, since their number is the width of the
# grid of patches too; 64 features for each head; 2,048 tokens.
SMALL = {
    "text": {"dim": 64, "ff_dim": 64, "n_layers": 2, "vocab_size": 512, "n_heads": 1, "n_kv_heads": 1},
    "vision": {"enc_dim": 16, "enc_ff_dim": 16, "enc_n_heads": 2, "proj_out_dim": 64, "proj_inner_dim": 64},
    "region": {"dim": 64, "inner_dim": 64},
    "tokenizer": {"templates": {"detect": {"prefix": [1, 300, 301, 2], "suffix": [3]}}},
}
MAKE = """
import json, sys, torch
from pathlib import Path
from PIL import Image
from safetensors.torch import save_file
from services.detector.backends.moondream2 import import_code
folder, image, labels = Path(sys.argv[1]), Image.open(sys.argv[2]).convert("RGB"), sys.argv[3:]
code = import_code(folder)
config = json.loads((folder / "config.json").read_text())["config"]
model = code.MoondreamModel(code.MoondreamConfig.from_dict(config)).eval()
torch.manual_seed(0)
for name, weight in model.named_parameters():
    weight.data.normal_(std=0.3).add_(1.0 if name.endswith(("ln.weight", "ln1.weight", "ln2.weight")) else 0.0)
weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if ".kv_cache." not in name}
save_file({f"model.{name}": tensor for name, tensor in weights.items()}, folder / "model.safetensors")
print(json.dumps({label: model.detect(image, label)["objects"] for label in labels}))
"""


def make_tokenizer(home: Path) -> None:
    """Put a tokenizer of single bytes where the hub's client looks for the one that the code names."""
    snapshot = home / "hub" / "models--moondream--starmie-v1" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    # The bytes that a byte-level tokenizer shows as other characters do not matter here: labels are ASCII.
    vocabulary = {"<end>": 0} | {chr(code): code for code in range(33, 127)} | {"\u0120": 32}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": "<end>"}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    content = {"version": "1.0", "added_tokens": [], "pre_tokenizer": byte_level, "model": model}
    (snapshot / "tokenizer.json").write_text(json.dumps(content))
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)


def make(code: Path, work: Path, variables: dict[str, str]) -> tuple[Path, bytes, dict[str, Any]]:
    """A checkpoint with random weights; an image; and what the code itself finds in it, as shares of the image.

    Raises:
        BenchFailed: the code cannot be imported or run.
    """
    folder, image = work / "moondream2", work / "scene.png"
    folder.mkdir()
    for path in code.glob("*.py"):
        shutil.copy(path, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "moondream1", "config": SMALL}))
    make_scene(seed=3, dogs=3).image.save(image)
    arguments: list[str | Path] = [environments.python(ENVIRONMENT), "-c", MAKE, folder, image, *LABELS]
    done = subprocess.run(arguments, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise command.BenchFailed(f"the code in {code} made no model: {done.stderr.strip().splitlines()[-1]}")
    return folder, image.read_bytes(), json.loads(done.stdout)


@contextmanager
def served(folder: Path, log: Path, variables: dict[str, str]) -> Iterator[str]:
    """The detector service with this model, as soon as it answers: its address.

    Raises:
        BenchFailed: it ended, or is not ready in time.
    """
    port = free_port()
    told = {"DETECTOR_MODEL": str(folder), "DETECTOR_DEVICE": "cpu", "DETECTOR_PORT": str(port)}
    with log.open("wb") as output:
        service = subprocess.Popen(
            [environments.python(ENVIRONMENT), "-m", "services.detector"],
            cwd=ROOT,
            env=os.environ | variables | told,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + READY_S
    try:
        while status(url) != 200:
            if service.poll() is not None or time.monotonic() > deadline:
                raise command.BenchFailed(f"the service is not ready: {log.read_text().strip()}")
            time.sleep(0.2)
        yield url
    finally:
        service.terminate()
        service.wait(STOPPED_S)


def status(url: str) -> int | None:
    """The status of the health check; None: no answer."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return int(response.status)
    except OSError:
        return None


def ask(url: str, image: bytes, labels: tuple[str, ...] | None) -> tuple[int, Any]:
    """Status and body of a request; the text of an error."""
    wanted = None if labels is None else dict.fromkeys(labels)
    try:
        with urllib.request.urlopen(f"{url}/detect", msgpack.packb({"image": image, "labels": wanted})) as response:
            return response.status, msgpack.unpackb(response.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def differences(answer: Any, alone: dict[str, Any]) -> Iterator[str]:
    """What is wrong with an answer for LABELS, where the code itself finds the objects `alone`."""
    size = [answer["width"], answer["height"]] * 2
    if alone[LABELS[0]] == alone[LABELS[1]]:
        yield "the code finds the same for both labels: the random weights show nothing"
    for label in LABELS:
        boxes = [each for each in answer["boxes"] if each["label"] == label]
        clipped = [
            [min(max(each[name], 0.0), 1.0) * side for name, side in zip(SIDES, size, strict=True)]
            for each in alone[label]
        ]
        if not boxes:
            yield f"no box is labelled {label!r}: the random weights show nothing"
        for each in boxes:
            if each["score"] is not None:
                yield f"a box of {label!r} has the score {each['score']}: expected none"
            if not any(all(abs(a - b) < 0.01 for a, b in zip(each["box"], other, strict=True)) for other in clipped):
                yield f"a box of {label!r}, {each['box']}, is none that the code finds alone"


def bench(code: Path) -> list[str]:
    """Make, serve, ask, compare."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        variables = {"HF_HOME": str(work / "hub-home"), "HF_HUB_OFFLINE": "1"}
        make_tokenizer(work / "hub-home")
        folder, image, alone = make(code, work, variables)
        begun = time.monotonic()
        with served(folder, work / "service.log", variables) as url:
            ready = time.monotonic()
            code_of, answer = ask(url, image, LABELS)
            answered = time.monotonic()
            refused, reason = ask(url, image, None)
        if code_of != 200:
            return [f"expected 200, found {code_of}: {answer}"]
        found = {label: sum(each["label"] == label for each in answer["boxes"]) for label in LABELS}
        print(f"ready after {ready - begun:.1f} s, {len(LABELS)} labels in {answered - ready:.1f} s, boxes: {found}")
        print(f"the code alone: { {label: len(objects) for label, objects in alone.items()} }")
        print(f"any label: {refused} {reason}")
        return [*differences(answer, alone), *([] if refused == 422 else [f"any label: expected 422, found {refused}"])]


def main() -> int:
    """Read the command line and run the bench."""
    options = command.Options(__doc__)
    options.add_argument("folder", type=Path, help="moondream.py and the modules beside it")
    folder: Path = options.parse_args().folder
    return command.run(lambda: bench(folder))


if __name__ == "__main__":
    sys.exit(main())
