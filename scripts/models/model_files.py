"""A model's files: their place, a local folder or a snapshot in the hub's cache, and whether they are complete."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from scripts.findings import Finding, error, unchecked, warning
from scripts.vllm.options import Options, nearest

# Bytes of a safetensors header; the format's own library refuses more.
LONGEST_HEADER = 100_000_000

GIT_LFS_POINTER = b"version https://git-lfs"

wrong = partial(error, "model")


@dataclass(frozen=True, slots=True)
class Model:
    """A model's name, and its folder if the files are on this host."""

    name: str
    revision: str | None
    folder: Path | None

    def read_json(self, file: str) -> dict[str, Any] | None:
        """A JSON file of the model, or None where it is missing or broken."""
        if self.folder is None:
            return None
        try:
            content = json.loads((self.folder / file).read_text())
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def has(self, *files: str) -> bool:
        """Whether one of the files is there."""
        return self.folder is not None and any((self.folder / file).exists() for file in files)


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a config.json."""
    for name in ("text_config", "llm_config", "language_config"):
        if isinstance(config.get(name), dict):
            part: dict[str, Any] = config[name]
            return part
    return config


def truthy(value: str | None) -> bool:
    """Whether the hub's client reads a variable's value as true."""
    return (value or "").strip().upper() in ("1", "ON", "YES", "TRUE")


def is_offline(environment: Mapping[str, str]) -> bool:
    """Whether the environment forbids requests to the hub."""
    return truthy(environment.get("HF_HUB_OFFLINE")) or truthy(environment.get("TRANSFORMERS_OFFLINE"))


def hub_cache(environment: Mapping[str, str]) -> Path:
    """The folder of the hub's cache, by the hub client's own rules."""
    return Path(environment.get("HF_HUB_CACHE") or hub_home(environment) / "hub").expanduser()


def hub_home(environment: Mapping[str, str]) -> Path:
    """The folder of the hub's client."""
    return Path(environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")


def hub_token(environment: Mapping[str, str]) -> str | None:
    """The hub's token, from HF_TOKEN or from the file of `hf auth login`."""
    if token := environment.get("HF_TOKEN", "").strip():
        return token
    path = Path(environment.get("HF_TOKEN_PATH") or hub_home(environment) / "token").expanduser()
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def is_hub_name(name: str) -> bool:
    """Whether a name can be a repository of the hub: `name` or `owner/name`; a path to an .onnx file is none."""
    named = re.fullmatch(r"(?:[\w.-]+/)?[\w.-]+", name) is not None
    return named and not name.startswith((".", "~")) and not name.endswith(".onnx")


def locate(options: Options, root: Path) -> tuple[Model | None, list[Finding]]:
    """The model that the options name, and the obstacles to its files.

    `root` is the server's working directory, where relative paths begin.
    """
    name, revision = options.text("model"), options.text("revision")
    if not name:
        return None, [wrong("the preset names no model", "`model:`", "name a folder, or a model of the hub")]
    folder = (root / Path(name).expanduser()).resolve()
    if folder.is_dir():
        return Model(name, revision, folder), check_folder(name, folder)
    if not is_hub_name(name):
        near = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        hint = nearest(folder.name, near) if near else f"{folder.parent} does not exist either"
        return None, [wrong(f"{name} does not exist", "a folder, or a model of the hub as owner/name", hint)]
    return locate_in_cache(name, revision, options.environment, Path(options.text("download-dir") or ""))


def locate_in_cache(
    name: str, revision: str | None, environment: Mapping[str, str], download_dir: Path
) -> tuple[Model, list[Finding]]:
    """A hub model's snapshot, or a finding that says what the cache lacks."""
    cache = download_dir if download_dir != Path() else hub_cache(environment)
    home = cache / f"models--{name.replace('/', '--')}"
    wanted = revision or "main"
    reference = home / "refs" / wanted
    commit = reference.read_text().strip() if reference.is_file() else wanted
    snapshot = home / "snapshots" / commit
    if (snapshot / "config.json").exists():
        return Model(name, revision, snapshot), []
    cached = sorted(path.name for path in (home / "snapshots").glob("*"))
    found = f"{name}@{wanted[:12]} is not in the cache {cache}"
    if cached:
        found += f", which has {', '.join(commit[:12] for commit in cached)}"
    if partial_files := list((home / "blobs").glob("*.incomplete")):
        found += f"; {len(partial_files)} of its files are incomplete"
    if is_offline(environment):
        found += ", and STACK_OFFLINE or HF_HUB_OFFLINE forbids to fetch it"
        remedy = "`make fetch` where there is a network, or unset HF_HUB_OFFLINE and STACK_OFFLINE"
        remedy = f"set `revision:` to {cached[-1]}, or {remedy}" if cached else remedy
        return Model(name, revision, None), [wrong(found, "a cached model", remedy)]
    remedy = "nothing, if this host reaches the hub: `make fetch` gets it, and so does the first start"
    if hub_token(environment) is None:
        gated = "there is no hub token: for a gated model, accept its licence at the hub and set HF_TOKEN"
        remedy = f"the first start fetches it; {gated}"
    return Model(name, revision, None), [warning("model", found, "its files, for the checks before a start", remedy)]


def check_folder(name: str, folder: Path) -> list[Finding]:
    """A folder is a checkpoint."""
    if (folder / "config.json").exists() or (folder / "params.json").exists():
        return []
    inside = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    remedy = "name the folder that holds config.json, tokenizer and weights"
    return [wrong(f"{name} has no config.json (it holds {inside})", "a checkpoint in the hub's format", remedy)]


def check_weights(model: Model, options: Options) -> list[Finding]:
    """Every shard is there and complete."""
    folder = model.folder
    if folder is None or options.text("load-format") == "dummy":
        return []
    files = sorted(folder.glob("*.safetensors"))
    index = model.read_json("model.safetensors.index.json")
    if index is None and model.has("model.safetensors.index.json"):
        return [broken(model, "model.safetensors.index.json", "is not JSON")]
    needed = set(index.get("weight_map", {}).values()) if index else set()
    missing = sorted(needed - {path.name for path in files})
    findings = [broken(model, name, f"is missing; the index names {len(needed)} shards") for name in missing]
    if not files and not findings:
        if any([*folder.glob("*.bin"), *folder.glob("*.pt")]):
            return [unchecked("weights", f"{model.name} has pickled weights, which this check does not read")]
        return [broken(model, "model.safetensors", "is missing, and there are no other weights")]
    shapes: dict[str, list[int]] = {}
    for path in files:
        try:
            shapes |= read_header(path)
        except Damaged as damage:
            findings.append(broken(model, path.name, str(damage)))
    config = model.read_json("config.json") or {}
    if not findings and "quantization_config" not in config:
        findings += check_shapes(model, text_config(config), shapes) + check_layers(model, shapes)
    return findings


def broken(model: Model, file: str, reason: str) -> Finding:
    """A weight file that vLLM cannot load."""
    again = "copy it again from its source"
    if model.folder is not None and model.folder.parent.name == "snapshots":
        again = "`make fetch` verifies the model and replaces missing and damaged files"
    return error("weights", f"{model.name}: {file} {reason}", "complete safetensors files", again)


class Damaged(Exception):
    """A weight file that cannot be loaded; the message says why."""


def read_header(path: Path) -> dict[str, list[int]]:
    """The shapes of a safetensors file's tensors, from its header.

    Raises:
        Damaged: the header or the file's length is wrong.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            if size < 8:
                raise Damaged(f"has {size} bytes")
            if GIT_LFS_POINTER.startswith(head):
                raise Damaged("is a Git LFS pointer, not the weights: run `git lfs pull`")
            length = struct.unpack("<Q", head)[0]
            if length > min(LONGEST_HEADER, size - 8):
                raise Damaged(f"is incomplete or no safetensors file: its header would take {length} of {size} bytes")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        shapes = {name: list(entry["shape"]) for name, entry in header.items()}
    except OSError as fault:
        raise Damaged(f"cannot be read: {fault.strerror}") from fault
    except (ValueError, LookupError, TypeError, AttributeError) as fault:
        raise Damaged("has a header that is not JSON of tensors") from fault
    if size != end:
        raise Damaged(
            f"is incomplete: {size} bytes of {end}" if size < end else f"has {size} bytes, {end} by its header"
        )
    return shapes


# A tensor of the language model's layers whose shape config.json tells.
LAYER = r"(?:^|\.)(?:language_model|text_model|model)\.(?:model\.)?layers\.\d+\.mlp\.gate_proj\.weight$"


def check_shapes(model: Model, text: Mapping[str, Any], shapes: Mapping[str, list[int]]) -> list[Finding]:
    """The weights have the sizes of config.json; `text` is its language model's part.

    vLLM 0.32 silently cuts larger tensors to the size that it expects, and answers nonsense.
    """
    wanted = [text.get("intermediate_size"), text.get("hidden_size")]
    if not all(isinstance(size, int) for size in wanted):
        return []
    for name, shape in shapes.items():
        if re.search(LAYER, name) and shape != wanted:
            found = f"{model.name}: {name} is {shape}, but config.json says {wanted}"
            return [
                error("weights", found, "config.json and weights of one model", "copy both again from their source")
            ]
    return []


def check_layers(model: Model, names: Iterable[str]) -> list[Finding]:
    """Every layer has the tensors that all other layers of its stack have.

    vLLM 0.32 starts without a tensor, and computes with the leftovers in its memory.
    """
    stacks: dict[str, dict[str, set[str]]] = {}
    for name in names:
        if match := re.fullmatch(r"(.*\blayers)\.(\d+)\.(.+)", name):
            stacks.setdefault(match[1], {}).setdefault(match[2], set()).add(match[3])
    for stack, layers in stacks.items():
        for number, own in layers.items():
            others = [tensors for other, tensors in layers.items() if other != number]
            # A layer of another kind has tensors of its own, and the stack has several layers of that kind.
            if others and own < set.intersection(*others) and all(own < tensors for tensors in others):
                missing = min(set.intersection(*others) - own)
                found = (
                    f"{model.name}: {stack}.{number} has no {missing}, unlike all other layers: vLLM answers nonsense"
                )
                return [warning("weights", found, "all tensors of the model", "fetch or copy the model again")]
    return []


def weight_bytes(model: Model) -> int | None:
    """Bytes of all safetensors files; None where there are none on this host."""
    sizes = [path.stat().st_size for path in model.folder.glob("*.safetensors")] if model.folder else []
    return sum(sizes) or None
