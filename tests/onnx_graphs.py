"""Small .onnx files that give known boxes: constants, tied to the input so that a batch has as many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}


def write_graph(
    path: Path,
    outputs: Mapping[str, npt.NDArray[Any]],
    shape: Sequence[int | str] = ("batch", 3, 64, 64),
    *,
    dtype: str = "float32",
    metadata: Mapping[str, str] | None = None,
    more_inputs: Mapping[str, Sequence[int | str]] | None = None,
    open_outputs: bool = False,
) -> Path:
    """Write a graph whose outputs are constants for one image, repeated for each image of the batch.

    Each output gets the mean of its image's pixels, times 0, added, so that a NaN in the input reaches it.
    `open_outputs`: the graph says only how many axes they have.
    """
    nodes, tensors, values = [], [], []
    inputs = [helper.make_tensor_value_info("images", TYPES[dtype], shape)]
    inputs += [
        helper.make_tensor_value_info(name, TensorProto.INT64, each) for name, each in (more_inputs or {}).items()
    ]
    tensors.append(numpy_helper.from_array(np.array(0, np.float32), "zero"))
    nodes += [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),  # batch x 1 x 1 x 1
    ]
    for name, value in outputs.items():
        whole = value.dtype.kind == "i"
        tensors.append(numpy_helper.from_array(np.asarray(value, np.float32)[None], f"{name}_constant"))
        tensors.append(numpy_helper.from_array(np.array([-1] + [1] * value.ndim, np.int64), f"{name}_shape"))
        nodes.append(helper.make_node("Reshape", ["nothing", f"{name}_shape"], [f"{name}_nothing"]))
        nodes.append(helper.make_node("Add", [f"{name}_constant", f"{name}_nothing"], [f"{name}_sum"]))
        kind = TensorProto.INT64 if whole else TensorProto.FLOAT
        nodes.append(helper.make_node("Cast", [f"{name}_sum"], [name], to=kind))
        sizes = [f"{name}_{axis}" for axis in range(value.ndim)] if open_outputs else value.shape
        values.append(helper.make_tensor_value_info(name, kind, [shape[0], *sizes]))
    graph = helper.make_graph(nodes, "known", inputs, values, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, dict(metadata or {}))
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def ultralytics(names: Sequence[str], side: int = 64, task: str = "detect") -> dict[str, str]:
    """The metadata of an export by Ultralytics."""
    return {
        "names": str(dict(enumerate(names))),
        "imgsz": str([side, side]),
        "stride": "32",
        "task": task,
        "batch": "1",
    }
