"""An .onnx file's inputs, outputs and metadata, read without ONNX's own packages.

The file is a protocol buffer (https://protobuf.dev/programming-guides/encoding/) of the message ModelProto, whose field
numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3. Only the fields below are read. So a wrong
or damaged file is an error at once, and the processes that decode images stay small.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from services.detector.checkpoint import CheckpointError

# Field numbers of onnx.proto3.
MODEL_GRAPH, MODEL_METADATA = 7, 14
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT = 1, 5, 11, 12
NODE_TYPE, NODE_DOMAIN = 4, 7
TENSOR_NAME, TENSOR_EXTERNAL = 8, 13
VALUE_NAME, VALUE_TYPE, TYPE_TENSOR, TENSOR_ELEMENT, TENSOR_SHAPE, SHAPE_DIM, DIM_VALUE = 1, 2, 1, 1, 2, 1, 1

ELEMENTS = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 10: "float16", 11: "float64"}
"""NumPy's names of TensorProto.DataType, as far as detectors have them as inputs or outputs."""

# The domains of operators that ONNX Runtime brings itself.
KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")

Shape = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output: its shape has None where a size is left open, and is None where nothing is said."""

    name: str
    dtype: str
    shape: Shape | None

    def __str__(self) -> str:
        sizes = "?" if self.shape is None else " x ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name} ({sizes})"


@dataclass(frozen=True, slots=True)
class Graph:
    """What an .onnx file says of itself."""

    path: Path
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    metadata: dict[str, str]


class _Invalid(Exception):
    """The bytes are no message of this kind."""


Field = tuple[int, int | memoryview]


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
        shift += 7
    raise _Invalid("a number is cut off")


def _fields(data: memoryview) -> Iterator[Field]:
    """The fields of a message: number and content; a number or the bytes of a text or message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind not in (1, 2, 5) or not number:
            raise _Invalid(f"byte {at} begins no field")
        size, at = _varint(data, at) if kind == 2 else (8 if kind == 1 else 4, at)
        if at + size > len(data):
            raise _Invalid(f"it ends {at + size - len(data)} bytes early")
        yield number, data[at : at + size]
        at += size


def _messages(data: memoryview, wanted: int) -> list[memoryview]:
    return [value for number, value in _fields(data) if number == wanted and isinstance(value, memoryview)]


def _text(data: memoryview, wanted: int) -> str:
    found = _messages(data, wanted)
    return bytes(found[-1]).decode("utf-8", "replace") if found else ""


def _value(data: memoryview) -> Value:
    dtype, shape = "unknown", None
    for kind in _messages(data, VALUE_TYPE):
        for tensor in _messages(kind, TYPE_TENSOR):
            for number, content in _fields(tensor):
                if number == TENSOR_ELEMENT and isinstance(content, int):
                    dtype = ELEMENTS.get(content, "unknown")
                elif number == TENSOR_SHAPE and isinstance(content, memoryview):
                    shape = tuple(_size(each) for each in _messages(content, SHAPE_DIM))
    return Value(_text(data, VALUE_NAME), dtype, shape)


def _size(dimension: memoryview) -> int | None:
    """A size; 0 and less, which some exporters write for an open one, count as open."""
    values = [value for number, value in _fields(dimension) if number == DIM_VALUE and isinstance(value, int)]
    return values[-1] if values and 0 < values[-1] < 2**31 else None


def _pair(entry: memoryview) -> tuple[str, str]:
    return _text(entry, 1), _text(entry, 2)


def read_graph(path: Path) -> Graph:
    """Read an .onnx file.

    Raises:
        CheckpointError: it cannot be read, is cut short, is no ONNX file, lacks a file of weights, or has operators
            that ONNX Runtime does not bring.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # mmap refuses an empty file with ValueError
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return _model(path, memoryview(mapped))


def _model(path: Path, data: memoryview) -> Graph:
    try:
        graphs = _messages(data, MODEL_GRAPH)
        if not graphs:
            raise _Invalid("it has no graph")
        graph, metadata = graphs[-1], dict(_pair(entry) for entry in _messages(data, MODEL_METADATA))
        nodes, weights = _messages(graph, GRAPH_NODE), _messages(graph, GRAPH_INITIALIZER)
        named = {_text(each, TENSOR_NAME) for each in weights}
        # Older exporters list the weights among the inputs.
        inputs = tuple(value for each in _messages(graph, GRAPH_INPUT) if (value := _value(each)).name not in named)
        outputs = tuple(_value(each) for each in _messages(graph, GRAPH_OUTPUT))
        foreign = sorted(
            {
                f"{domain}.{_text(each, NODE_TYPE)}"
                for each in nodes
                if (domain := _text(each, NODE_DOMAIN)) not in KNOWN_DOMAINS
            }
        )
        files = {
            location
            for each in weights
            for entry in _messages(each, TENSOR_EXTERNAL)
            for key, location in [_pair(entry)]
            if key == "location"
        }
    except _Invalid as fault:
        raise CheckpointError(f"{path} is not a whole ONNX file ({fault}): export or copy it again") from None
    if not inputs or not outputs:
        raise CheckpointError(f"{path} has no inputs or no outputs: it is not an exported model")
    if foreign:
        raise CheckpointError(
            f"{path} uses operators that ONNX Runtime does not have: {', '.join(foreign)}; export it without them"
        )
    if lost := sorted(name for name in files if not (path.parent / name).is_file()):
        raise CheckpointError(f"{path} keeps weights in {', '.join(lost)}: put that file beside it")
    return Graph(path, inputs, outputs, metadata)


def array_type(value: Value) -> np.dtype[np.generic]:
    """The element type of an input or output.

    Raises:
        CheckpointError: no image has elements of this type.
    """
    if value.dtype not in ELEMENTS.values():
        raise CheckpointError(f"input {value} has elements of a type that no image has: expected float32 or uint8")
    return np.dtype(value.dtype)
