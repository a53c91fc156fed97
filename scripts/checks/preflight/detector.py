"""Whether the detector's model can find the job's labels, by its files and the detector's own code."""

from __future__ import annotations

import difflib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.job import Job
from pipeline.labels import INPUT
from pipeline.locations import is_object
from scripts.environments import ROOT
from scripts.findings import Finding, error, ok, unchecked, warning
from scripts.models.model_files import is_hub_name, locate_in_cache
from scripts.vllm.options import nearest

# Reading the files takes 0.4 s of CPU, nearly all for Python's imports.
TIMEOUT_S = 60.0
# So many known labels a message shows.
SHOWN_LABELS = 12
# OWLv2 reads 14 tokens of a label; an English word takes one or two, and some four characters each.
LONG_LABEL = 14 * 4


@dataclass(frozen=True, slots=True)
class Model:
    """A detector's model, as services/detector/describe.py says it."""

    name: str
    backend: str
    labels: tuple[str, ...] | None
    """Those that it knows; None: it takes free text."""
    threshold: float
    """The lowest score, where the job names none."""


class Asking:
    """The detector's own code, which reads the model's files in a process of its own while other checks go on."""

    def __init__(self, variables: Mapping[str, str], hub: Mapping[str, str]) -> None:
        """`variables`: those of the service, `hub`: the environment that names the hub's cache."""
        self.name = variables.get("DETECTOR_MODEL", "")
        self.is_hub = is_hub_name(self.name) and not (ROOT / self.name).exists()
        refused: Finding | None = None
        told = {name: value for name, value in variables.items() if name.startswith("DETECTOR_")}
        if self.is_hub:
            cached, missing = locate_in_cache(self.name, told.pop("DETECTOR_REVISION", None), hub, Path())
            told["DETECTOR_MODEL"] = str(cached.folder)
            if missing:
                later = "its labels are checked once `make up` or `make fetch` has it"
                refused = unchecked("detector", f"{missing[0].found}: {later}")
        elif self.name and not (place := ROOT / Path(self.name).expanduser()).exists():
            beside = [path.name for path in place.parent.iterdir()] if place.parent.is_dir() else []
            near = nearest(place.name, beside) if beside else f"{place.parent} does not exist either"
            required = "an .onnx file, a checkpoint's folder, or a model of the hub as owner/name"
            refused = error("detector", f"DETECTOR_MODEL={self.name} does not exist", required, near)
        base = {name: value for name, value in os.environ.items() if not name.startswith(("DETECTOR_", "MOSEC_"))}
        self.asked = refused or start(base | told)

    def answer(self) -> Model | Finding:
        """What the model is, or why it cannot be served or is not known."""
        if isinstance(self.asked, Finding):
            return self.asked
        try:
            said, failed = self.asked.communicate(timeout=TIMEOUT_S)
            found: dict[str, Any] = json.loads(said)
        except subprocess.TimeoutExpired:
            self.asked.kill()
            self.asked.wait()
            return unchecked("detector", f"its model's files were not read within {TIMEOUT_S:.0f} s")
        except ValueError:
            reason = (failed.strip().splitlines() or [f"exit code {self.asked.returncode}"])[-1]
            return unchecked("detector", f"its model's files cannot be read here: {reason}")
        if "error" in found:
            remedy = "correct the DETECTOR_ variables or the model's files, see docs/detectors.md"
            say = warning if self.is_hub else error  # a start completes what the hub's cache lacks
            return say("detector", found["error"], "a model that the detector serves", remedy)
        labels = None if found["labels"] is None else tuple(found["labels"])
        return Model(self.name, found["backend"], labels, found["threshold"])


def start(environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """The detector's code with the packages of this process."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", "services.detector.describe"]
    return subprocess.Popen(command, cwd=ROOT, env=dict(environment), text=True, **pipes)  # type: ignore[call-overload, no-any-return]


def check_boxes(job: Job, place: str | None) -> Iterator[Finding]:
    """The boxes of a job with `boxes: input` are there; `place`: SPOTTER_BOXES."""
    if job.boxes != INPUT:
        return
    if place is None:
        yield unchecked("boxes", f"job {job.name} takes boxes: give them as SPOTTER_BOXES=")
    elif not place.startswith("column:") and not is_object(place) and not Path(place).expanduser().exists():
        required = "a COCO JSON file, a table, an earlier run's folder, or column:NAME"
        yield error("boxes", f"SPOTTER_BOXES={place} does not exist", required, "correct SPOTTER_BOXES")


def check_labels(job: Job, model: Model) -> Iterator[Finding]:
    """The model can find each label of the job."""
    lowest = model.threshold if job.threshold is None else job.threshold
    says = f"{model.backend}: {model.name}"
    if model.labels is None:
        yield from check_prompt(job, f"{says} takes free text", lowest)
        return
    known = f"{says} knows {len(model.labels)} labels"
    unknown = [label for label in job.labels or () if label not in model.labels]
    if not unknown:
        asked = {"any of them": None} if job.labels is None else job.labels
        scores = [f"{label} from {lowest if own is None else own:g}" for label, own in asked.items()]
        more = f", and {len(scores) - SHOWN_LABELS} more" if len(scores) > SHOWN_LABELS else ""
        yield ok("labels", f"{known}; job {job.name} looks for {', '.join(scores[:SHOWN_LABELS])}{more}")
        return
    some = ", ".join(model.labels[:SHOWN_LABELS]) + (", ..." if len(model.labels) > SHOWN_LABELS else "")
    found = f"job {job.name}: {', '.join(map(repr, unknown))}, but {known}: {some}"
    remedy = f"{likely(unknown, model.labels)}write a known label, or set DETECTOR_MODEL to a model that knows it"
    yield error("labels", found, "labels that the detector's model knows; case counts", remedy)


def likely(unknown: list[str], known: tuple[str, ...]) -> str:
    """The known labels that were probably meant."""
    by_fold = {label.casefold(): label for label in known}
    matches = (difflib.get_close_matches(label.casefold(), by_fold, n=1) for label in unknown)
    near = [repr(by_fold[match[0]]) for match in matches if match]
    return f"did you mean {' and '.join(near)}? " if near else ""


def check_prompt(job: Job, says: str, lowest: float) -> Iterator[Finding]:
    """A model of free text can take the labels as its prompt."""
    if job.labels is None:
        found = f"job {job.name}: `labels: any`, but {says} and has no labels of its own"
        yield error("labels", found, "labels in words", "name the objects to find in the job file")
        return
    characters = sum(map(len, job.labels))
    size = f"{len(job.labels)} label{'s' * (len(job.labels) > 1)}, {characters} characters"
    yield ok("labels", f"{says}; the prompt of job {job.name}: {size}, from a score of {lowest:g}")
    if strange := [label for label in job.labels if not label.isascii()]:
        found = f"job {job.name}: label {strange[0]!r} has characters that a model of English may not know"
        yield warning("labels", found, "English words", "write it in English")
    if long := [label for label in job.labels if len(label) > LONG_LABEL]:
        found = f"job {job.name}: label {long[0]!r} has {len(long[0])} characters"
        yield warning("labels", found, "some words: OWLv2 refuses a label of more than 14 tokens", "shorten it")
