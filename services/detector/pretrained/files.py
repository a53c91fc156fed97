"""What the JSON files of a transformers checkpoint say; read without torch and transformers."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from services.detector.checkpoint import BILINEAR, LONGEST_SIDE, CheckpointError, Files, InputSize

OPEN_VOCABULARY = frozenset({"grounding-dino", "mm-grounding-dino", "owlv2", "omdet-turbo", "owlvit"})
"""`model_type` of the models that take free text for labels; LLMDet is an mm-grounding-dino."""

MOONDREAM = "moondream1"
"""`model_type` of moondream2."""

# Their configuration classes take timm's backbone unless config.json says otherwise.
TIMM_BY_DEFAULT = frozenset({"detr", "conditional_detr", "deformable_detr", "dab-detr", "table-transformer"})

TIMM_IS_MISSING = (
    "its backbone comes from timm, which the detector's environment does not have: choose a checkpoint without timm; "
    "facebook/detr-resnet-50, for one, has a revision no_timm"
)
TORCHVISION_IS_MISSING = (
    "its own image processor needs torchvision, which the detector's environment does not have: in a copy of the "
    "checkpoint, set image_processor_type in preprocessor_config.json to RTDetrImageProcessor, keep size, image_mean "
    "and image_std, and compare some boxes with those of the original"
)


def model_type(files: Files) -> str | None:
    """The `model_type` of config.json, empty if it names none; None for a local model without this file.

    Raises:
        CheckpointError: config.json is damaged, or the hub does not give it.
    """
    if files.file or (files.folder and not files.names("config.json")):
        return None
    return str(files.json("config.json").get("model_type", ""))


def image_processor(files: Files) -> dict[str, Any]:
    """The image processor's settings: preprocessor_config.json, or its part of processor_config.json.

    Transformers 5 writes the second for models that take text too.

    Raises:
        CheckpointError: both are missing or damaged; the message is about the first.
    """
    try:
        return files.json("preprocessor_config.json")
    except CheckpointError as missing:
        try:
            part = files.json("processor_config.json").get("image_processor")
        except CheckpointError:
            raise missing from None
    if not isinstance(part, dict):
        raise CheckpointError(f"processor_config.json of {files.model} has no image_processor: expected its settings")
    return part


def input_size(processor: dict[str, Any]) -> InputSize:
    """The size that the decode stage scales images to for this image processor."""
    size = processor.get("size")
    if not processor.get("do_resize", True) or not isinstance(size, dict):
        return InputSize()
    resample = int(processor.get("resample") or BILINEAR)
    if "height" in size and "width" in size:
        return InputSize(exact=(int(size["width"]), int(size["height"])), resample=resample)
    return InputSize(longest=int(size.get("longest_edge") or LONGEST_SIDE), resample=resample)


def refuse_missing_packages(model: str, config: dict[str, Any], processor: dict[str, Any]) -> None:
    """Refuse a model that needs packages which this environment lacks, before torch is imported.

    Raises:
        CheckpointError: it needs timm or torchvision.
    """
    named = str(processor.get("image_processor_type", config.get("model_type"))).lower()
    if named.startswith(("rfdetr", "rf_detr")) and find_spec("torchvision") is None:
        raise CheckpointError(f"DETECTOR_MODEL={model} cannot be loaded: {TORCHVISION_IS_MISSING}")
    if _needs_timm(config) and find_spec("timm") is None:
        raise CheckpointError(f"DETECTOR_MODEL={model} cannot be loaded: {TIMM_IS_MISSING}")


def _needs_timm(config: dict[str, Any]) -> bool:
    backbone = config.get("backbone_config")
    if isinstance(backbone, dict):
        return backbone.get("model_type") == "timm_backbone"
    return bool(config.get("use_timm_backbone", config.get("model_type") in TIMM_BY_DEFAULT))
