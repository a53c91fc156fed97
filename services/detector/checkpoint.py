"""What is known of a model before it is loaded: its labels, input size and revision, and its small JSON files.

A backend reads them without its model's libraries: that takes 0.3 s and 35 MB where transformers takes 4 to 9 s and
375 MB. So a wrong model name fails at once, and decode workers stay small.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

BILINEAR = 2  # Pillow's number of the filter that detection processors use by default

# Longest side to which the usual processors without a fixed input size scale (DETR's 800 x 1333).
LONGEST_SIDE = 1333


class CheckpointError(Exception):
    """The model cannot be served; the message names it, the reason and the remedy."""


@dataclass(frozen=True, slots=True)
class InputSize:
    """The size in pixels that an image is scaled to before the model's own processor sees it.

    `exact`, (width, height), is the processor's own size, and `resample` its filter, so that nothing is left for it to
    scale. `within`, (width, height), is the largest size in the image's own proportions: the model pads the rest.
    Without either, larger images are scaled down in proportion to a `longest` side, and the processor does the rest.
    """

    exact: tuple[int, int] | None = None
    within: tuple[int, int] | None = None
    longest: int = LONGEST_SIDE
    resample: int = BILINEAR

    def of(self, width: int, height: int) -> tuple[int, int]:
        """The size, (width, height), for an image of this width and height."""
        if self.exact is not None:
            return self.exact
        if self.within is not None:
            scale = min(self.within[0] / width, self.within[1] / height)
        else:
            scale = min(1.0, self.longest / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))

    @property
    def largest(self) -> tuple[int, int]:
        """The largest size, (width, height), that `of` returns."""
        return self.exact or self.within or (self.longest, self.longest)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model as it will be loaded: the operator's name for it, and its commit, which is None for a local folder.

    `labels`: those that a request may ask for; None for a model that takes free text.
    """

    model: str
    revision: str | None
    labels: frozenset[str] | None
    input_size: InputSize


CHECKPOINT = TypeAdapter(Checkpoint)
"""Turns a checkpoint into JSON and back, for a worker's environment."""


class Files:
    """A checkpoint's files, in a folder, or on the hub (or in its cache, when offline)."""

    def __init__(self, model: str, revision: str | None) -> None:
        """`revision`: a branch, tag or commit of a hub id; None: main.

        Raises:
            CheckpointError: no such folder or hub id, or a revision for a folder.
        """
        self.model = model
        self.revision = revision
        self.file = Path(model) if Path(model).is_file() else None
        self.folder = self.file.parent if self.file else Path(model) if Path(model).is_dir() else None
        if self.folder and revision is not None:
            raise CheckpointError(
                f"DETECTOR_REVISION={revision!r} has no meaning for the local model {model}: unset it"
            )
        if not self.folder and not HUB_ID.fullmatch(model):
            raise CheckpointError(
                f"DETECTOR_MODEL={model!r} is neither a file nor a folder (seen from {Path.cwd()}), nor a hub id like "
                "owner/name"
            )

    def names(self, pattern: str) -> list[Path]:
        """The files of a local checkpoint that match, in order; of a file, itself alone. Empty for a hub id."""
        if self.file:
            return [self.file] if self.file.match(pattern) else []
        return sorted(self.folder.glob(pattern)) if self.folder else []

    def path(self, name: str) -> Path:
        """A file on this host; from the hub, of one commit, which `revision` names from then on.

        Raises:
            CheckpointError: the hub does not give it.
        """
        if self.folder:
            return self.folder / name
        path = _fetch(self.model, self.revision, name)
        self.revision = path.parent.name  # the hub's cache keeps a commit's files in a folder of its name
        return path

    def all(self, *patterns: str) -> Path:
        """The folder with all files that match; what the hub's cache lacks of them is fetched.

        Raises:
            CheckpointError: the hub does not give them.
        """
        if self.folder:
            return self.folder
        from huggingface_hub import snapshot_download  # type: ignore[import-not-found]  # comes with transformers

        with _hub_errors(self.model, self.revision, ", ".join(patterns)):
            return Path(snapshot_download(self.model, revision=self.revision, allow_patterns=list(patterns)))

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        path = self.path(name)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing: DETECTOR_MODEL must be a transformers checkpoint") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} is not a JSON object: DETECTOR_MODEL must be a transformers checkpoint")
        return content


def _fetch(model: str, revision: str | None, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    with _hub_errors(model, revision, name):
        return Path(hf_hub_download(model, name, revision=revision))


@contextmanager
def _hub_errors(model: str, revision: str | None, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the hub client, its HTTP library and the file system share no base class
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"cannot get {what} of DETECTOR_MODEL={model!r}, revision {revision or 'main'}: {reason} - check the "
            "name and the network; offline, the cache must hold it; a private model needs HF_TOKEN"
        ) from error
