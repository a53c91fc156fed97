#!/usr/bin/env python3
"""Write this vLLM's options, architectures and request fields into tables for the preflight.

The preflight reads them without vLLM, whose import takes a quarter of a minute. The folder modelinfos holds vLLM's
facts about the classes of the presets' models, in the form of its own cache. Run this in vLLM's environment when its
version changes; tests/contract/test_preflight_tables.py fails until then.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib.util
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from vllm import __version__
from vllm.config.model import _FLOAT16_NOT_SUPPORTED_MODELS
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
from vllm.model_executor.models import registry
from vllm.transformers_utils.chat_templates.registry import _MODEL_TYPE_TO_CHAT_TEMPLATE_FALLBACK
from vllm.transformers_utils.config import _CONFIG_REGISTRY
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.structured_output.backend_xgrammar import STRING_SUPPORTED_FORMATS

HERE = Path(__file__).resolve().parent

# The architectures of the presets' models. For each, vLLM imports itself once more, unless its cache has the facts.
INSPECTED = ("Gemma3nForConditionalGeneration", "Idefics3ForConditionalGeneration")

# Kinds of values, each with samples that vLLM's converter accepts and refuses. The first kind that fits counts. Samples
# also work for converters that are closures, which show no type.
KINDS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("text", ("x", '{"a": 1'), ()),
    ("text or json", ("x",), ('{"a": 1}}}',)),
    ("count or auto", ("1", "1k", "auto"), ("x", "1.5")),
    ("count", ("1", "1k"), ("x", "1.5")),
    ("json", ("{}",), ("x",)),
    ("integer", ("1",), ("x", "1.5")),
    ("number", ("1", "1.5"), ("x",)),
)


def takes(convert: Callable[[str], Any], text: str) -> bool:
    """Whether a converter takes a text."""
    try:
        convert(text)
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        return False
    return True


def kind_of(convert: Callable[[str], Any] | None) -> str:
    """What kind of value a converter takes."""
    if convert is None:
        return "text"
    for kind, taken, refused in KINDS:
        if all(takes(convert, text) for text in taken) and not any(takes(convert, text) for text in refused):
            return kind
    return "other"


def keys_of(convert: Any, depth: int = 4) -> list[str]:
    """The keys of a JSON option that becomes one of vLLM's configuration objects; none for other options."""
    if isinstance(convert, type) and dataclasses.is_dataclass(convert):
        return sorted(field.name for field in dataclasses.fields(convert) if field.init)
    inner = [cell.cell_contents for cell in getattr(convert, "__closure__", None) or ()]
    inner += getattr(convert, "__defaults__", None) or ()
    found = (keys_of(candidate, depth - 1) for candidate in inner if candidate is not None and depth)
    return next((keys for keys in found if keys), [])


def options() -> dict[str, dict[str, Any]]:
    """Each option of `vllm serve`, by its first name without dashes."""
    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    table = {}
    for action in parser._actions:
        names = [name for name in action.option_strings if name.startswith("--")]
        if not names or action.dest == "help":
            continue
        off = [name for name in names if name.startswith("--no-") and f"--{name[5:]}" in names]
        entry: dict[str, Any] = {"kind": "switch" if action.nargs == 0 else kind_of(action.type)}
        if also := [name[2:] for name in names[1:] if name not in off]:
            entry["also"] = also
        if off:
            entry["off"] = off[0][2:]
        if action.nargs in ("+", "*"):
            entry["many"] = True
        if action.nargs == "?":
            entry["optional"] = True
        if action.choices is not None:
            entry["choices"] = [str(choice) for choice in action.choices]
        if keys := keys_of(action.type):
            entry["keys"] = keys
        table[names[0][2:]] = entry
    return dict(sorted(table.items()))


def modalities(module: str) -> list[str] | None:
    """The modalities that a model's module says it takes; None where its source does not tell."""
    spec = importlib.util.find_spec(module if "." in module else f"vllm.model_executor.models.{module}")
    if spec is None or spec.origin is None:
        return None
    found: set[str] = set()
    for node in ast.walk(ast.parse(Path(spec.origin).read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == "get_supported_mm_limits":
            for inner in ast.walk(node):
                if isinstance(inner, ast.Constant) and inner.value in ("image", "audio", "video"):
                    found.add(inner.value)
    return sorted(found) or None


def architectures() -> dict[str, Any]:
    """The architectures of the registry and what is known of them without loading one."""
    multimodal = {name: modalities(module) for name, (module, _) in registry._MULTIMODAL_MODELS.items()}
    return {
        "supported": sorted(registry.ModelRegistry.get_supported_archs()),
        "multimodal": dict(sorted(multimodal.items())),
        "removed": dict(sorted(registry._PREVIOUSLY_SUPPORTED_MODELS.items())),
        "model_types": sorted({*CONFIG_MAPPING_NAMES, *_CONFIG_REGISTRY}),
        "template_fallbacks": sorted(_MODEL_TYPE_TO_CHAT_TEMPLATE_FALLBACK),
        "no_float16": sorted(_FLOAT16_NOT_SUPPORTED_MODELS),
        "quantization": sorted(QUANTIZATION_METHODS),
    }


def model_infos() -> dict[str, dict[str, Any]]:
    """What vLLM keeps of the classes in INSPECTED, by the names of its files; it holds each against its own source."""
    found = {}
    for name in INSPECTED:
        model = registry.ModelRegistry.models[name]
        loaded = model.load_model_cls()
        found[model._get_cache_filename()] = {
            "hash": model._get_modelinfo_module_hash(Path(inspect.getfile(loaded))),
            "modelinfo": dataclasses.asdict(registry._ModelInfo.from_model_cls(loaded)),
        }
    return found


def tables() -> dict[str, dict[str, Any]]:
    """All tables by the name of their file."""
    version = {"version": __version__.partition("+")[0]}
    return {
        "options.json": version | {"options": options()},
        "architectures.json": version | architectures(),
        "request.json": version
        | {
            "fields": {
                "chat": sorted(ChatCompletionRequest.model_fields),
                "responses": sorted(ResponsesRequest.model_fields),
            },
            "formats": sorted(STRING_SUPPORTED_FORMATS),
        },
    }


def main() -> int:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, nargs="?", default=HERE, help="folder to write to; by default this one")
    arguments = parser.parse_args()
    for name, table in tables().items():
        (arguments.output / name).write_text(json.dumps(table, indent=1) + "\n")
    folder = arguments.output / "modelinfos"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():  # another version may give its files other names
        old.unlink()
    for name, info in model_infos().items():
        (folder / name).write_text(json.dumps(info, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
