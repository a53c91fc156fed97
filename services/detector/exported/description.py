"""What an exported detector takes and gives: from its own metadata, the files beside it, and its family's defaults.

Later sources win: the family's defaults, `config.json` and `preprocessor_config.json` beside the model, Ultralytics'
metadata in the model, and `<model>.yaml` beside it. What none of them says is an error that names the YAML file.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.detector.checkpoint import CheckpointError
from services.detector.exported.families import FAMILIES, Family
from services.detector.exported.graph import Graph, Value, array_type, read_graph

# The inputs beside the image that can be filled in: the size to which boxes refer, and which pixels are no padding.
SIZES_INPUT = "orig_target_sizes"
MASK_INPUT = "pixel_mask"

PAGE = "docs/exported-detectors.md"

Side = Annotated[int, Field(ge=1, le=8192)]
Three = tuple[float, float, float]
Label = Annotated[str, Field(min_length=1)]


class Description(BaseModel):
    """The keys of `<model>.yaml`; a pixel becomes (value * scale - mean) / std."""

    model_config = ConfigDict(extra="forbid")

    family: str | None = None
    labels: list[Label] | dict[Annotated[int, Field(ge=0)], Label] | None = None
    size: tuple[Side, Side] | None = None
    resize: Literal["stretch", "letterbox", "corner"] | None = None
    channels: Literal["rgb", "bgr"] | None = None
    scale: Annotated[float, Field(gt=0)] | None = None
    mean: Three | None = None
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = (
        None
    )
    boxes: str | None = None
    scores: str | None = None
    outputs: dict[str, str] | None = None
    anchors: dict[Literal["layers", "stride", "min_scale", "max_scale"], float] | None = None
    batch: Annotated[int, Field(ge=1)] | None = None


@dataclass(frozen=True, slots=True)
class Exported:
    """A model with all that its use needs."""

    graph: Graph
    image: Value
    """The input that takes pixels."""
    family: Family
    labels: dict[int, str]
    complete: bool
    """Whether each class of the model must have a label."""
    size: tuple[int, int]
    """(width, height) of the input."""
    resize: str
    channels: str
    scale: float
    mean: Three
    std: Three
    boxes: str
    scores: str
    outputs: dict[str, str]
    """The family's role to the graph's name."""
    anchors: Mapping[str, float]
    batch: int | None
    """The only number of images that the graph takes; None: any."""
    channels_last: bool
    resample: int


def read_exported(path: Path) -> Exported:
    """Read an .onnx file and what is beside it.

    Raises:
        CheckpointError: the file is damaged, something is not said or does not fit; one line with the remedy.
    """
    graph = read_graph(path)
    beside = path.with_suffix(".yaml")
    written = _read_yaml(beside) if beside.exists() else Description()
    images = [value for value in graph.inputs if value.shape is None or len(value.shape) == 4]
    if not images:
        raise CheckpointError(f"{path} has no input for images (four axes): {_listed(graph.inputs)}")
    image = images[0]
    known = (image.name, SIZES_INPUT, MASK_INPUT)
    if strange := tuple(value for value in graph.inputs if value.name not in known):
        raise CheckpointError(
            f"{path} wants inputs that the service cannot fill in: {_listed(strange)}; export it with "
            f"{image.name} alone, or with {SIZES_INPUT} or {MASK_INPUT}"
        )
    said = _transformers(path) | _ultralytics(graph) | written.model_dump(exclude_none=True)
    if "labels" not in said:
        raise _unsaid(path, "which labels it has", "labels: [dog, cat]")
    labels = said["labels"]
    named = (
        dict(enumerate(labels)) if isinstance(labels, list) else {int(key): str(name) for key, name in labels.items()}
    )
    channels_last = bool(image.shape and image.shape[3] in (1, 3) and image.shape[1] != 3)
    size = _size(image, channels_last, said, path)
    family = _family(graph, said, len(named) if isinstance(labels, list) else None, size)
    fixed = image.shape[0] if image.shape else None
    for key, given, of_graph in (("size", written.size, size), ("batch", written.batch, fixed)):
        if given and of_graph and given != of_graph:
            raise CheckpointError(f"{beside}: {key}: {given}, but the graph fixes {of_graph}: remove the key")
    settled = {**_preprocessing(image, family, said, path), **_forms(graph, family, said)}
    return Exported(
        graph,
        image,
        family,
        named,
        isinstance(labels, list),
        size,
        batch=fixed or said.get("batch"),
        channels_last=channels_last,
        resample=said.get("resample", 2),
        anchors=said.get("anchors", {}),
        **settled,
    )


def _listed(values: tuple[Value, ...]) -> str:
    return ", ".join(str(value) for value in values)


def _unsaid(path: Path, what: str, key: str) -> CheckpointError:
    return CheckpointError(f"{path} does not say {what}: write {path.with_suffix('.yaml')} with `{key}` ({PAGE})")


def _read_yaml(path: Path) -> Description:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a map of keys: expected {', '.join(Description.model_fields)}")
    try:
        return Description.model_validate(content)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        name = str(fault["loc"][0])
        if fault["type"] == "extra_forbidden":
            raise CheckpointError(
                f"{path}: {name} is not a key: expected {', '.join(Description.model_fields)}"
            ) from None
        raise CheckpointError(f"{path}: {name}: {fault['msg'][0].lower()}{fault['msg'][1:]} ({PAGE})") from None


def _ultralytics(graph: Graph) -> dict[str, Any]:
    """What Ultralytics writes into its exports; its pictures are RGB, 0..1, letterboxed."""
    held = graph.metadata
    if not {"names", "stride"} <= held.keys():
        return {}
    if (task := held.get("task", "detect")) != "detect":
        raise CheckpointError(f"{graph.path} is a model for the task {task}: only `detect` can be served")
    try:
        names = ast.literal_eval(held["names"])
        names = names if isinstance(names, dict) else dict(enumerate(names))
        labels = [str(names[index]) for index in range(len(names))]
        size = [int(side) for side in ast.literal_eval(held["imgsz"])] if "imgsz" in held else []
    except (ValueError, SyntaxError, TypeError, KeyError) as error:
        raise CheckpointError(f"{graph.path} has metadata `names` or `imgsz` that cannot be read: {error}") from error
    found: dict[str, Any] = {"labels": labels, "channels": "rgb", "scale": 1 / 255, "resize": "letterbox"}
    found["boxes"] = "decoded"
    return found | ({"size": (size[1], size[0])} if len(size) == 2 else {})


def _ultralytics_family(graph: Graph) -> str | None:
    """The family by Ultralytics' metadata: exports with open sizes leave the outputs' sizes open too."""
    shape = graph.outputs[0].shape
    if "task" not in graph.metadata or (shape is not None and any(shape[-2:])):
        return None
    inside = graph.metadata.get("end2end") == "True" or "'nms': True" in graph.metadata.get("args", "")
    return "yolo-end-to-end" if inside else "yolo"


def _transformers(path: Path) -> dict[str, Any]:
    """What config.json and preprocessor_config.json say, beside the model or, for a folder `onnx`, above it."""
    folder = path.parent
    if folder.name == "onnx" and not (folder / "config.json").exists():
        folder = folder.parent
    config, processor = _json(folder / "config.json"), _json(folder / "preprocessor_config.json")
    found: dict[str, Any] = {}
    names = config.get("id2label")
    if isinstance(names, dict) and names:
        found["labels"] = [str(names.get(str(index), f"class {index}")) for index in range(max(map(int, names)) + 1)]
    if not processor:
        return found
    found |= {"channels": "rgb", "resize": "stretch", "resample": int(processor.get("resample") or 2)}
    found["scale"] = float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 1.0
    if processor.get("do_normalize", True) and "image_mean" in processor:
        found |= {"mean": tuple(processor["image_mean"]), "std": tuple(processor["image_std"])}
    size = processor.get("size")
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        found["size"] = (int(size["width"]), int(size["height"]))
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


def _size(image: Value, channels_last: bool, said: Mapping[str, Any], path: Path) -> tuple[int, int]:
    """The input's (width, height); sizes of the graph win where they are fixed, and must agree with the YAML's."""
    height, width = (image.shape[1:3] if channels_last else image.shape[2:4]) if image.shape else (None, None)
    if width and height:
        return width, height
    if "size" not in said:
        raise _unsaid(path, f"the size of its input {image}", "size: [640, 640]")
    given: tuple[int, int] = tuple(said["size"])
    return width or given[0], height or given[1]


def _family(graph: Graph, said: Mapping[str, Any], labels: int | None, size: tuple[int, int]) -> Family:
    if "family" in said:
        if said["family"] not in FAMILIES:
            beside = graph.path.with_suffix(".yaml")
            raise CheckpointError(f"{beside}: family: {said['family']} is unknown: known are {', '.join(FAMILIES)}")
        return FAMILIES[said["family"]]
    for family in FAMILIES.values():
        if family.recognise(graph, labels, size):
            return family
    if (name := _ultralytics_family(graph)) is not None:
        return FAMILIES[name]
    raise CheckpointError(
        f"{graph.path}: no family of detectors has the outputs {_listed(graph.outputs)}"
        f"{f' and {labels} labels' if labels is not None else ''}: correct the labels, or write `family:` into "
        f"{graph.path.with_suffix('.yaml')}: one of {', '.join(FAMILIES)} ({PAGE})"
    )


def _preprocessing(image: Value, family: Family, said: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """How pixels become the input."""
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    whole = array_type(image).kind != "f"
    if whole:
        plain |= {"scale": 1.0}  # type: ignore[dict-item]
    known = {**plain, **(family.defaults or {}), **said}
    # A graph says nothing of its preprocessing, and a wrong one gives wrong boxes without an error.
    if not said.keys() & {"family", "channels", "resize", "scale", "mean"}:
        raise _unsaid(path, "how pixels become its input", f"family: {family.name}")
    for key, example in (("channels", "rgb"), ("resize", "stretch"), ("scale", "0.00392157")):
        if key not in known:
            raise _unsaid(path, "how pixels become its input", f"{key}: {example}")
    if whole and (known["scale"] != 1 or known["mean"] != plain["mean"] or known["std"] != plain["std"]):
        raise CheckpointError(f"{path} takes {image.dtype} pixels: remove scale, mean and std from its description")
    return {key: known[key] for key in ("resize", "channels", "scale", "mean", "std")}


def _forms(graph: Graph, family: Family, said: Mapping[str, Any]) -> dict[str, Any]:
    """The forms of boxes and scores, and the outputs by their roles."""
    found: dict[str, Any] = {}
    for key, known in (("boxes", family.boxes), ("scores", family.scores)):
        value = said.get(key)
        if value is None or (not known and value == "decoded"):
            value = known[0] if known else ""
        elif value not in known:
            raise CheckpointError(
                f"{graph.path}: {key}: {value} is unknown: {', '.join(known) or 'this family has only one form'}"
            )
        found[key] = value
    if "anchors" in said and found["boxes"] != "anchors":
        raise CheckpointError(f"{graph.path.with_suffix('.yaml')}: anchors: they need `boxes: anchors`")
    names = [value.name for value in graph.outputs]
    roles = family.outputs
    given = said.get("outputs") or ({roles[0]: names[0]} if len(roles) == 1 and len(names) == 1 else {})
    outputs = {role: given.get(role, role) for role in roles}
    if lost := [f"{role}: {name}" for role, name in outputs.items() if name not in names]:
        example = ", ".join(f"{role}: NAME" for role in roles)
        raise CheckpointError(
            f"{graph.path} has no output {', '.join(lost)}: write `outputs: {{{example}}}` into "
            f"{graph.path.with_suffix('.yaml')}; it has {_listed(graph.outputs)}"
        )
    if strange := given.keys() - set(roles):
        raise CheckpointError(f"{graph.path}: outputs: {', '.join(sorted(strange))}: expected {', '.join(roles)}")
    return {**found, "outputs": outputs}
