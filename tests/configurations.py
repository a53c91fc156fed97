"""Right and wrong configurations of the model server, made from the CPU preset and the bundled tiny model."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from pipeline import job as jobs
from scripts.checks.preflight import command, static
from scripts.checks.preflight.memory import Host
from scripts.environments import ROOT
from scripts.stack.vllm_server import PRESETS as VLLM_PRESETS

TINY_VLM = ROOT / "samples" / "models" / "tiny-vlm"


@dataclass
class Configuration:
    """A preset and a job, to be spoilt; `folder` takes the preset's file and the model's copy."""

    folder: Path
    preset: dict[str, Any] = field(
        default_factory=lambda: dict(yaml.safe_load((VLLM_PRESETS / "cpu.yaml").read_text()) or {})
    )
    environment: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    device: str = "cpu"
    host: Host = field(default_factory=lambda: Host(None, 8 * 2**30))
    asked: static.Asked = field(default_factory=lambda: command.asked_of(jobs.load("dog_breeds"), {}))

    def set(self, **options: Any) -> None:
        """Set options of the preset; None removes one."""
        for name, value in options.items():
            self.preset[name.replace("_", "-")] = value
        self.preset = {name: value for name, value in self.preset.items() if value is not None}

    def ask(self, **changes: Any) -> None:
        """Change what the job asks of the server."""
        self.asked = replace(self.asked, **changes)

    def question(self, **changes: Any) -> None:
        """Change the job's question, as its class names the parts."""
        self.asked = replace(self.asked, questions=(self.asked.questions[0].model_copy(update=changes),))

    def model(self) -> Path:
        """A copy of the tiny model that the preset serves from now on."""
        copy = self.folder / "model"
        if not copy.exists():
            shutil.copytree(TINY_VLM, copy)
        self.preset["model"] = str(copy)
        return copy

    def edit(self, file: str, **changes: Any) -> None:
        """Change keys of a JSON file of the model's copy; None removes one."""
        path = self.model() / file
        content = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    @property
    def server(self) -> static.Server:
        """The server of this configuration; writes its preset."""
        path = self.folder / "preset.yaml"
        path.write_text(yaml.safe_dump(self.preset))
        return static.Server(path, self.device, {"HF_HUB_OFFLINE": "1", **self.environment}, self.host, self.arguments)

    def check(self) -> static.Checked:
        """The static tier's findings."""
        return static.check(self.server, self.asked, ROOT)


def write_safetensors(path: Path, tensors: int = 1) -> None:
    """A file that is right by its header, with tensors of two bytes."""
    header = {f"tensor{n}": {"dtype": "BF16", "shape": [1], "data_offsets": [2 * n, 2 * n + 2]} for n in range(tensors)}
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + b"\0" * 2 * tensors)


def drop_tensor(model: Path, name: str) -> None:
    """Leave a tensor out of a checkpoint; its header stays right."""
    path = model / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    del header[name]
    data, kept = content[8 + length :], b""
    for entry in (entry for key, entry in header.items() if key != "__metadata__"):
        begin, end = entry["data_offsets"]
        entry["data_offsets"] = [len(kept), len(kept) + end - begin]
        kept += data[begin:end]
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + kept)


def cache_model(cache: Path, name: str, commit: str, *, refs: str | None = None) -> Path:
    """A hub cache that holds the tiny model under a hub's name; its snapshot."""
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    shutil.copytree(TINY_VLM, snapshot)
    if refs:
        (home / "refs").mkdir(parents=True)
        (home / "refs" / refs).write_text(commit)
    return snapshot
