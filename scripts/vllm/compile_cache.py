"""vLLM's caches of compiled kernels and facts about models: one folder for each key.

Within a folder, vLLM separates compiled graphs by a hash of its whole configuration. Not all of its caches separate
GPUs, drivers and versions, and it never removes old entries. The key does the first, `make clean` the second.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath

from scripts import files as whole_file
from scripts.environments import LOCKS
from scripts.programs import nvidia_smi
from scripts.vllm.options import Options
from scripts.vllm.tables import MODEL_INFOS, locked_version

# Options that change which kernels are built.
OPTIONS = (
    "model",
    "revision",
    "dtype",
    "quantization",
    "kv-cache-dtype",
    "tensor-parallel-size",
    "enforce-eager",
    "optimization-level",
    "compilation-config",
)

# The form of a key; other content of the folder is not Spotter's.
NAME = re.compile(r"vllm[\d.]+\S*-[0-9a-f]{8}")

# Each program's variable for its cache, and the folder of it within a key's. vLLM moves the caches of torch and Triton
# under its own root only for torch.compile, not for kernels in Triton or from FlashInfer.
PLACES = {
    "VLLM_CACHE_ROOT": "vllm",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "CUDA_CACHE_PATH": "cuda",
}


@dataclass(frozen=True, slots=True)
class Kept:
    """A key's folder on this host."""

    name: str
    size: int
    """Bytes."""


@cache
def gpu(number: int) -> str:
    """Name, compute capability and driver of a GPU; `cpu` where none is seen."""
    seen, _ = nvidia_smi("name,compute_cap,driver_version", str(number))
    return ", ".join(seen[0]) if seen else "cpu"


def key(options: Options, device: str, locks: Path = LOCKS, number: int = 0) -> str:
    """The folder's name: versions, GPU `number` and model for people, and a hash of everything that changes kernels."""
    lock = locks / f"vllm-{device}.lock"
    vllm = locked_version(lock)
    parts = {"vllm": vllm, "torch": locked_version(lock, "torch"), "gpu": gpu(number) if device == "cuda" else "cpu"}
    parts |= {name: json.dumps(options.values.get(name), sort_keys=True) for name in OPTIONS}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]
    model = PurePath(options.text("model") or "model").name
    shown = f"vllm{vllm}-torch{parts['torch'].partition('+')[0]}-{parts['gpu'].partition(',')[0]}-{model}"
    return f"{re.sub(r'[^A-Za-z0-9.]+', '-', shown).strip('-').lower()}-{digest}"


def variables(folder: PurePath) -> dict[str, str]:
    """The variables that put a server's caches into a key's folder."""
    return {name: str(folder / place) for name, place in PLACES.items()}


def without(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables without the caches': an operator's own folder would bypass the key."""
    return {name: value for name, value in environment.items() if name not in PLACES}


def seed(root: Path) -> None:
    """Copy vLLM's facts about the presets' models into its cache, VLLM_CACHE_ROOT.

    vLLM collects them by importing itself once more: 8 s of a first start, 20 s on a busy host. It ignores facts that
    do not fit its source. In a container, images/serve_vllm.sh does the same.

    Raises:
        OSError: the folder cannot be written.
    """
    for known in MODEL_INFOS.iterdir():
        if not (kept := root / "modelinfos" / known.name).exists():
            whole_file.write(kept, known.read_bytes(), 0o644)


def size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def kept(root: Path) -> list[Kept]:
    """The keys that have a folder on this host."""
    folders = sorted(root.iterdir()) if root.is_dir() else []
    return [Kept(folder.name, size(folder)) for folder in folders if NAME.fullmatch(folder.name)]


def remove(root: Path, names: Iterable[str]) -> None:
    """Remove the folders of these keys."""
    for name in names:
        shutil.rmtree(root / name, ignore_errors=True)
