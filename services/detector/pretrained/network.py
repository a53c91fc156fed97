"""A transformers model on its device, and batches in which each image has the same result as alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from services.detector.backends import DetectorError, one_line
from services.detector.checkpoint import Checkpoint
from services.detector.settings import Settings

Pixels = npt.NDArray[np.uint8]
"""`(height, width, 3)`, RGB."""

# The model's first input is noise from this seed: a flat image leaves much of a network at zero and hides overflows.
WARM_UP_SEED = 0


def import_torch(model: str) -> Any:
    """Torch.

    Raises:
        DetectorError: this environment has no torch; the message names those that have it.
    """
    try:
        import torch
    except ImportError as error:
        raise DetectorError(
            f"DETECTOR_MODEL={model} needs torch and transformers ({error}): take the environment detector-torch-cpu "
            "or detector-cuda, or an .onnx file"
        ) from error
    return torch


def noise(batch: int, height: int, width: int) -> Pixels:
    """Images for a warm-up, `(batch, height, width, 3)`."""
    return np.random.default_rng(WARM_UP_SEED).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)


def first_pass(model: str, batch: int, device: str, forward: Callable[[], Iterable[Any]]) -> bool:
    """Run a model once, so that the first request finds everything allocated; `forward` returns tensors.

    Returns:
        Whether all of them are finite.

    Raises:
        DetectorError: it fails.
    """
    try:
        return all(bool(output.isfinite().all()) for output in forward())
    except Exception as error:  # torch's out-of-memory errors among them
        raise DetectorError(
            f"the model {model} fails at DETECTOR_MAX_BATCH={batch} on {device}: {one_line(error)}"
        ) from error


def choose_device(settings: Settings) -> str:
    """`cuda` or `cpu`; sets the number of torch's threads and the limit of the GPU's memory.

    Raises:
        DetectorError: there is no such device, or a setting does not apply to it.
    """
    import torch

    torch.set_num_threads(settings.threads)
    device = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise DetectorError(
            "DETECTOR_DEVICE=cuda, but torch finds no GPU: check the driver and the container's access to the "
            "GPU, or set DETECTOR_DEVICE=cpu"
        )
    if settings.memory_share is not None:
        if device == "cpu":
            raise DetectorError(
                f"DETECTOR_MEMORY_SHARE={settings.memory_share} limits a GPU's memory, but the device is the "
                "CPU: unset it"
            )
        torch.cuda.set_per_process_memory_fraction(settings.memory_share)
    return device


def choose_dtype(settings: Settings, device: str) -> Any:
    """The torch type of the weights."""
    import torch

    if settings.dtype != "auto":
        return getattr(torch, settings.dtype)
    return torch.float16 if device == "cuda" else torch.float32


class Network:
    """A transformers model with its image processor, and its tokenizer if it takes text."""

    def __init__(self, settings: Settings, checkpoint: Checkpoint, model_class: str, takes_text: bool = False) -> None:
        """Load the model; `model_class` is one of transformers' Auto classes.

        Raises:
            DetectorError: no such device, a setting that does not apply to it, or weights that cannot be loaded.
        """
        torch = import_torch(checkpoint.model)
        import transformers

        transformers.utils.logging.disable_progress_bar()
        self._torch = torch
        self._checkpoint = checkpoint
        self.device = choose_device(settings)
        self.dtype = choose_dtype(settings, self.device)
        source = {"revision": checkpoint.revision} if checkpoint.revision else {}
        try:
            # The same processor on every machine: without torchvision.
            self.processor = transformers.AutoImageProcessor.from_pretrained(checkpoint.model, backend="pil", **source)
            self.tokenizer: Any = (
                transformers.AutoTokenizer.from_pretrained(checkpoint.model, **source) if takes_text else None
            )
            model = getattr(transformers, model_class).from_pretrained(
                checkpoint.model, dtype=self.dtype, use_safetensors=True, **source
            )
            self.model = model.to(self.device).eval()
        except Exception as error:  # transformers, safetensors, torch and the hub share no base class
            raise DetectorError(f"cannot load the model {checkpoint.model}: {one_line(error)}") from error

    def images(self, pixels: Iterable[Pixels]) -> list[dict[str, Any]]:
        """The model's inputs for each image, each `(1, ...)`: together, some processors would pad them to one size."""
        return [
            dict(self.processor(images=[each], return_tensors="pt", input_data_format="channels_last"))
            for each in pixels
        ]

    def run(self, images: Sequence[dict[str, Any]], **text: Any) -> tuple[Any, Any]:
        """One pass over images of one shape; `text` goes to the model as it is.

        Returns:
            Logits `(n, queries, labels or tokens)` and boxes `(n, queries, 4)`, centre and size in shares of the
            model's image, as float32 on the CPU.
        """
        inputs = {name: self._torch.cat([each[name] for each in images]).to(self.device) for name in images[0]}
        inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        with self._torch.inference_mode():
            output = self.model(**inputs, **{name: tensor.to(self.device) for name, tensor in text.items()})
        # float32 before any arithmetic: half precision would round scores and boxes again.
        return output.logits.float().cpu(), output.pred_boxes.float().cpu()

    def warm_up(self, batch: int, forward: Callable[[Sequence[Pixels]], Iterable[Any]]) -> None:
        """Run the largest batch once, so that the first request finds everything allocated.

        `forward` returns the tensors that must be finite.

        Raises:
            DetectorError: it fails, or its result is not finite.
        """
        width, height = self._checkpoint.input_size.largest
        # No image of this processor becomes larger than one whose shorter side is its `shortest_edge`.
        height = min(height, getattr(self.processor.size, "shortest_edge", None) or height)
        images = list(noise(batch, height, width))
        model = self._checkpoint.model
        if not first_pass(model, batch, self.device, lambda: forward(images)):
            raise DetectorError(
                f"the model {model} gives values that are not finite in {self.dtype} on {self.device}: set "
                "DETECTOR_DTYPE=float32; with float32, the weights are damaged"
            )


def alike(images: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Indices of the images that have the same shape, group by group.

    A batch of images that are padded to one size changes their scores by up to 0.013 (DETR and its relatives).
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault(tuple(image["pixel_values"].shape), []).append(index)
    return list(groups.values())
