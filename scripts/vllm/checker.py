"""The place for vLLM's own checks: its environment on this host, or a container of its image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scripts.environments import ROOT
from scripts.vllm.tables import MODEL_INFOS

CHECKER = ROOT / "scripts" / "vllm" / "in_vllm.py"


@dataclass(frozen=True, slots=True)
class Place:
    """A place where vLLM's own code runs."""

    command: tuple[str, ...]
    """Runs `in_vllm.py` there, with stdin and stdout; empty where that is impossible."""
    preset: str | None = None
    """The preset's path there; None: the same as here."""
    why_not: str = ""
    """Why it cannot run."""
    model_infos: str = str(MODEL_INFOS)
    """The folder there of what vLLM knows of the presets' models."""
    ending: tuple[str, ...] = ()
    """Ends what the command may leave behind when it is cut off."""
    fingerprint: str = ""
    """Changes with what the answer depends on there, besides preset and job."""


def in_environment(python: Path) -> Place:
    """vLLM's environment on this host; `python` is its interpreter."""
    if not python.exists():
        return Place((), why_not=f"{python.parent.parent} is not there yet: `make up` makes it")
    return Place((str(python), "-P", str(CHECKER)), fingerprint=str(python))  # -P: its neighbours are no modules
