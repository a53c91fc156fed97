"""One service of a stack: what to start, where it listens, when it is ready."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts import environments
from scripts.services import kind_name
from scripts.settings import StackSettings
from scripts.stack import api_key

# The hub's token: only `fetch` gets it, no service.
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@dataclass(frozen=True, slots=True)
class Service:
    """One service: what to start, where it listens, when it is ready."""

    name: str
    environment: str
    """The locked environment that it runs in."""
    command: tuple[str, ...]
    variables: tuple[tuple[str, str], ...]
    port: int
    ready_url: str
    """Answers 200 only when the service can answer requests."""
    stop_grace_s: float
    """How long it may finish its requests after SIGTERM."""
    inputs: tuple[Path, ...]
    """Files that decide how it behaves."""
    key_file: Path | None = None
    """Holds its API key, once it was started; None: it asks for none."""
    model: str = ""
    """A folder, or a model of the hub."""
    revision: str | None = None
    """Of the model, at the hub."""
    cache: str = ""
    """The name of its compile cache, if it compiles graphs: servers on GPUs of one kind share it."""

    @property
    def kind(self) -> str:
        """The name of its entry in scripts/services.py."""
        return kind_name(self.name)

    @property
    def port_variable(self) -> str:
        """The setting of its port; the ports of further servers follow."""
        return f"STACK_{self.kind.upper()}_PORT"

    @property
    def fingerprint(self) -> str:
        """Changes when the settings require a new start of the service."""
        digest = hashlib.sha256(json.dumps([self.command, self.variables]).encode())
        lock = environments.LOCKS / f"{self.environment}.lock"
        for path in (lock, *self.inputs):
            digest.update(path.read_bytes())
        if self.key_file and self.key_file.exists():
            # Not the key: fingerprints are written to files, and a weak key could be guessed from one.
            digest.update(str(self.key_file.stat().st_mtime_ns).encode())
        return digest.hexdigest()


def without_secrets(variables: Mapping[str, str]) -> dict[str, str]:
    """Variables without keys and tokens, which files and `docker inspect` would show."""
    return {name: value for name, value in api_key.without(variables).items() if name not in TOKEN_VARIABLES}


def host_variables(settings: StackSettings, device: str, gpus: Sequence[int]) -> dict[str, str]:
    """What a service's process is told of the hub and its GPUs.

    The hub's variables are the user's, without the token; no network, because `fetch` gets the models. GPUs have
    nvidia-smi's numbers; a CUDA_VISIBLE_DEVICES of the user's wins.
    """
    hub = without_secrets(settings.user_variables("HF_")) | {"HF_HUB_OFFLINE": "1"}
    if device != "cuda" or settings.environment.get("CUDA_VISIBLE_DEVICES"):
        return hub
    return hub | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
