"""The three stages of the service, each in a process of its own, as Mosec workers.

decode (CPU, `DETECTOR_DECODE_WORKERS` processes, one request at a time) -> detect (the model, one process, batches)
-> answer (one process, one request at a time).

Mosec gives all requests of a batch one status. So everything that can be wrong with a request is found in `Decode`,
before there is a batch, `Detect` raises for none, and what went wrong for one image in the batch becomes its own
status in `Answer`.

Mosec makes workers without arguments, in new processes: what they need travels in environment variables that only
these processes get.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from mosec import ClientError, ServerError, ValidationError, Worker
from mosec.mixin import MsgpackMixin

from imaging.decode import BadImage
from services.detector.checkpoint import Checkpoint
from services.detector.images import decode
from services.detector.messages import (
    Failed,
    Frame,
    MalformedRequest,
    Outcome,
    UnknownLabel,
    answer,
    check_label,
    parse_request,
)
from services.detector.model import ClosedSetDetector, DetectorError, detect_apart
from services.detector.settings import Settings

SETTINGS_VARIABLE = "SPOTTER_DETECTOR_SETTINGS"
CHECKPOINT_VARIABLE = "SPOTTER_DETECTOR_CHECKPOINT"

# The settings that decide which boxes an image has: a client that goes on with an earlier run must know of a change.
DECIDE_BOXES = {"threshold", "nms_iou", "dtype"}


# Mosec answers with an error's `msg`, a colon and its text.
class BadImageError(ClientError):  # type: ignore[misc]  # no Mosec where types are checked
    """400: the bytes are not a usable image."""

    msg = "bad image"


class UnknownLabelError(ValidationError):  # type: ignore[misc]  # no Mosec where types are checked
    """422: the model does not know the label."""

    msg = "unknown label"


class DetectionError(ServerError):  # type: ignore[misc]  # no Mosec where types are checked
    """500: the model failed on this image."""

    msg = "detector failed"


def worker_environment(settings: Settings, checkpoint: Checkpoint) -> dict[str, str]:
    """The variables that a stage's process is started with."""
    return {SETTINGS_VARIABLE: settings.model_dump_json(), CHECKPOINT_VARIABLE: checkpoint.to_json()}


class Stage(Worker):  # type: ignore[misc]  # no Mosec where types are checked
    """What the stages share: settings, checkpoint, and silence on Ctrl-C."""

    def __init__(self) -> None:
        super().__init__()
        # Ctrl-C goes to the whole group of processes; the main one stops the others in order.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Mosec warns of more than 1 MB between stages; a batch of pixels is meant to be that large.
        warnings.filterwarnings("ignore", message="IPC data", category=RuntimeWarning)
        self.settings = Settings.model_validate_json(os.environ[SETTINGS_VARIABLE])
        self.checkpoint = Checkpoint.from_json(os.environ[CHECKPOINT_VARIABLE])


class Decode(Stage):
    """Request bytes to a `Frame`; every error that is the client's ends here."""

    def deserialize(self, data: bytes) -> bytes:
        """Leave the body to `forward`."""
        return data

    def forward(self, data: bytes) -> Frame:
        """Check one request and decode its image.

        Raises:
            ClientError: 400, not a request or not an image.
            ValidationError: 422, a label that the model does not know.
        """
        try:
            request = parse_request(bytes(data))
            check_label(request.label, self.checkpoint.labels)
            pixels, width, height = decode(request.image, self.checkpoint.input_size)
        except MalformedRequest as error:
            raise ClientError(str(error)) from error
        except UnknownLabel as error:
            raise UnknownLabelError(str(error)) from error
        except BadImage as error:
            raise BadImageError(str(error)) from error
        threshold = self.settings.threshold if request.threshold is None else request.threshold
        return Frame(pixels, width, height, request.label, threshold)


class Detect(Stage):
    """Frames to outcomes, in batches; the only process that loads the model."""

    def __init__(self) -> None:
        super().__init__()
        try:
            self.detector = ClosedSetDetector(self.settings, self.checkpoint)
        except DetectorError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(1) from error

    def forward(self, data: Any) -> Any:
        """An outcome for each frame; Mosec passes one frame without a list when batches are of one."""
        if self.max_batch_size == 1:
            return detect_apart(self.detector, [data])[0]
        frames: Sequence[Frame] = data
        return detect_apart(self.detector, frames)


class Answer(MsgpackMixin, Stage):  # type: ignore[misc]  # no Mosec where types are checked
    """An outcome to the response's body."""

    def forward(self, data: Outcome) -> dict[str, Any]:
        """The answer for one image.

        Raises:
            ServerError: 500, the model failed on it.
        """
        if isinstance(data, Failed):
            raise DetectionError(data.reason)
        chosen = self.settings.model_dump(include=DECIDE_BOXES)
        return answer(data, self.checkpoint.model, self.checkpoint.revision, chosen)
