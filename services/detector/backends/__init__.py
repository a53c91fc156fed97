"""Detector backends, one module for each kind of model.

To add one: a module here with `claims(files) -> bool` and `read(model, revision) -> Checkpoint`, which must not import
the model's libraries, and `load(settings, checkpoint) -> Detector`; its line in BACKENDS; and its packages in
pyproject.toml.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

from services.detector.checkpoint import Checkpoint, Files
from services.detector.messages import Failed, Frame, Outcome
from services.detector.settings import AUTO, Settings

BACKENDS = {
    "onnx": "onnx_runtime",
    "open_vocabulary": "open_vocabulary",
    "moondream2": "moondream2",
    "transformers": "closed_set",
}
"""The values of DETECTOR_BACKEND, and their modules, in the order in which `auto` asks them."""


class DetectorError(Exception):
    """The detector cannot run with these settings; the message says why and what to do."""


class Detector(Protocol):
    """A model family; it may take free text for labels, and give no scores."""

    def detect(self, frames: Sequence[Frame]) -> list[Outcome]:
        """One outcome per frame, in their order; an image without a usable result is `Failed`, alone.

        An exception means that the whole batch has no result.
        """
        ...


class Backend(Protocol):
    """What a module of BACKENDS offers."""

    def claims(self, files: Files) -> bool:
        """Whether a model's files are of this kind.

        Raises:
            CheckpointError: they cannot be had.
        """
        ...

    def read(self, model: str, revision: str | None) -> Checkpoint:
        """What is known of a model before it is loaded.

        Raises:
            CheckpointError: the model cannot be served.
        """
        ...

    def load(self, settings: Settings, checkpoint: Checkpoint) -> Detector:
        """The model, warm at its largest batch.

        Raises:
            DetectorError: it cannot run with these settings.
        """
        ...


def backend(settings: Settings) -> Backend:
    """The backend that the settings name; with `auto`, the first that claims the model's files, or else the last.

    Raises:
        CheckpointError: the model's files cannot be had.
    """
    modules = {name: cast(Backend, import_module(f"{__name__}.{module}")) for name, module in BACKENDS.items()}
    if settings.backend != AUTO:
        return modules[settings.backend]
    files = Files(settings.model, settings.revision)
    *others, last = modules.values()
    return next((each for each in others if each.claims(files)), last)


def detect_apart(detector: Detector, frames: Sequence[Frame]) -> list[Outcome]:
    """`Detector.detect`, which tries the frames of a batch that raises again one by one.

    So an image that the model cannot take, or a batch too large for the memory, fails no other request.
    """
    try:
        return detector.detect(frames)
    except Exception as error:  # a model may raise anything, and each frame needs an outcome
        if len(frames) == 1:
            return [Failed(one_line(error))]
        return [outcome for frame in frames for outcome in detect_apart(detector, [frame])]


def one_line(error: Exception) -> str:
    """The type of an exception and the beginning of its text, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
