"""What the service must know of a model before it loads it: labels, input size, revision.

Only the checkpoint's small JSON files are read, and without importing torch or transformers: that takes 0.3 s and 35
MB where `AutoConfig` and `AutoImageProcessor` take 4 to 9 s and 375 MB, so a wrong model name is an error at once and
decode workers stay small.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

BILINEAR = 2  # Pillow's number of the filter that detection processors use where their file names none

# Longest side that the usual processors without a fixed input size (DETR's 800 x 1333) scale to.
LONGEST_SIDE = 1333


class CheckpointError(Exception):
    """The model cannot be served; the message says which, why and what to do."""


@dataclass(frozen=True, slots=True)
class InputSize:
    """The size in pixels that an image is scaled to before the model's own processor sees it.

    With `exact`, (width, height), that is the size the processor would scale to, with the same filter `resample`, so
    its own scaling has nothing left to do. Otherwise larger images are scaled down to a `longest` side, in
    proportion, and the processor does the rest.
    """

    exact: tuple[int, int] | None = None
    longest: int = LONGEST_SIDE
    resample: int = BILINEAR

    def of(self, width: int, height: int) -> tuple[int, int]:
        """The size, (width, height), for an image of this width and height."""
        if self.exact is not None:
            return self.exact
        scale = min(1.0, self.longest / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))

    @property
    def largest(self) -> tuple[int, int]:
        """The largest size, (width, height), that comes out of `of`."""
        return self.exact or (self.longest, self.longest)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model as it will be loaded.

    `model` is the name that the operator gave; `revision` is the commit it stands for, None for a local folder.
    """

    model: str
    revision: str | None
    labels: frozenset[str]
    input_size: InputSize

    def to_json(self) -> str:
        """A text that `from_json` reads."""
        return json.dumps(asdict(self) | {"labels": sorted(self.labels)})

    @classmethod
    def from_json(cls, text: str) -> Checkpoint:
        """The checkpoint that `to_json` wrote."""
        fields = json.loads(text)
        size = fields["input_size"]
        exact = tuple(size["exact"]) if size["exact"] else None
        return cls(
            model=fields["model"],
            revision=fields["revision"],
            labels=frozenset(fields["labels"]),
            input_size=InputSize(exact=exact, longest=size["longest"], resample=size["resample"]),
        )


def read_checkpoint(model: str, revision: str | None) -> Checkpoint:
    """Read a checkpoint's labels and input size from a folder, or from the hub (or its cache, when offline).

    Raises:
        CheckpointError: no such folder or hub id, a file is missing or damaged, the model names no labels, or a
            revision is given for a folder, which has none.
    """
    if Path(model).is_dir():
        if revision is not None:
            raise CheckpointError(f"DETECTOR_REVISION={revision!r} has no meaning for the folder {model}: unset it")
        config = _read(Path(model) / "config.json")
        processor = _read(Path(model) / "preprocessor_config.json")
        return Checkpoint(model, None, _labels(config, model), _input_size(processor))
    if not HUB_ID.fullmatch(model):
        raise CheckpointError(
            f"DETECTOR_MODEL={model!r} is neither a folder (seen from {Path.cwd()}) nor a hub id like owner/name"
        )
    path = _fetch(model, revision, "config.json")
    commit = path.parent.name  # the hub's cache keeps a commit's files in a folder of its name
    processor = _read(_fetch(model, commit, "preprocessor_config.json"))
    return Checkpoint(model, commit, _labels(_read(path), model), _input_size(processor))


def _fetch(model: str, revision: str | None, name: str) -> Path:
    from huggingface_hub import hf_hub_download  # type: ignore[import-not-found]  # comes with transformers

    try:
        return Path(hf_hub_download(model, name, revision=revision))
    except Exception as error:  # the hub client, its HTTP library and the file system raise types without a common base
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"cannot get {name} of DETECTOR_MODEL={model!r}, revision {revision or 'main'}: {reason} - check the "
            "name, the network or, offline, that the cache holds it; a private model needs HF_TOKEN"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: DETECTOR_MODEL must hold a transformers checkpoint") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object: DETECTOR_MODEL must hold a transformers checkpoint")
    return content


def _labels(config: dict[str, Any], model: str) -> frozenset[str]:
    names = config.get("id2label")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"config.json of {model} names no labels (id2label): it is not an object detector")
    return frozenset(str(name) for name in names.values())


def _input_size(processor: dict[str, Any]) -> InputSize:
    size = processor.get("size")
    if not processor.get("do_resize", True) or not isinstance(size, dict):
        return InputSize()
    resample = int(processor.get("resample") or BILINEAR)
    if "height" in size and "width" in size:
        return InputSize(exact=(int(size["width"]), int(size["height"])), resample=resample)
    return InputSize(longest=int(size.get("longest_edge") or LONGEST_SIDE), resample=resample)
