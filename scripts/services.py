"""What runs beside the job: each service as a command, from the same presets on every engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from dotenv import dotenv_values

from scripts import environments
from scripts.environments import ROOT
from scripts.settings import StackError, StackSettings, user_variables

VLLM_PRESETS = ROOT / "services" / "vllm" / "presets"
DETECTOR_PRESETS = ROOT / "services" / "detector" / "presets"

# How long each may finish its requests when it is stopped, in seconds: above the vLLM presets' shutdown-timeout of 60,
# and above DETECTOR_TIMEOUT_S, after which no request is open.
STOP_GRACE_S = {"vllm": 75.0, "detector": 70.0}


@dataclass(frozen=True, slots=True)
class Service:
    """One service as a process: what to start, where it listens, when it is ready."""

    name: str
    environment: str
    """The locked environment that it runs in."""
    command: tuple[str, ...]
    variables: tuple[tuple[str, str], ...]
    port: int
    port_variable: str
    ready_url: str
    """Answers 200 when, and only when, requests can be answered."""
    stop_grace_s: float
    """How long it may finish its requests after SIGTERM."""
    inputs: tuple[Path, ...]
    """Files that decide how it behaves."""

    @property
    def fingerprint(self) -> str:
        """Changes when the service has to be started anew to be what the settings say."""
        digest = hashlib.sha256(json.dumps([self.command, self.variables]).encode())
        lock = environments.LOCKS / f"{self.environment}.lock"
        for path in (lock, *self.inputs):
            digest.update(path.read_bytes())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Stack:
    """The services of one host, and what the job needs to know of them."""

    device: str
    preset: str
    services: tuple[Service, ...]
    job_variables: dict[str, str]
    """The pipeline's variables: where the services are."""


def preset_file(name: str) -> Path:
    """The YAML of a vLLM preset, by its name or path.

    Raises:
        StackError: there is none.
    """
    for path in (VLLM_PRESETS / f"{name}.yaml", Path(name).expanduser()):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in VLLM_PRESETS.glob("*.yaml")))
    raise StackError(f"STACK_PRESET={name!r} is neither a file nor one of: {known}")


def read_variables(path: Path) -> dict[str, str]:
    """The variables of an .env file; none where there is no file."""
    return {name: value or "" for name, value in dotenv_values(path).items()} if path.is_file() else {}


def vllm(settings: StackSettings, device: str, preset: Path) -> Service:
    """The model server; a VLLM_ variable that the user set wins over the preset's."""
    name = "vllm-cuda" if device == "cuda" else "vllm-cpu"
    variables_file = preset.with_suffix(".env")
    cache = {"VLLM_CACHE_ROOT": str(settings.state / "cache" / "vllm")}
    variables = cache | read_variables(variables_file) | user_variables("VLLM_") | user_variables("HF_")
    listen = ("--host", settings.host, "--port", str(settings.vllm_port))
    return Service(
        name="vllm",
        environment=name,
        command=(str(environments.folder(name) / "bin" / "vllm"), "serve", "--config", str(preset), *listen),
        variables=tuple(sorted(variables.items())),
        port=settings.vllm_port,
        port_variable="STACK_VLLM_PORT",
        ready_url=f"http://{settings.host}:{settings.vllm_port}/health",
        stop_grace_s=STOP_GRACE_S["vllm"],
        inputs=tuple(path for path in (preset, variables_file) if path.is_file()),
    )


def detector(settings: StackSettings, device: str) -> Service:
    """The detector service; a DETECTOR_ variable that the user set wins over the preset's."""
    name = "detector-cuda" if device == "cuda" else "detector-cpu"
    preset = DETECTOR_PRESETS / f"{device}.env"
    listen = {"DETECTOR_HOST": settings.host, "DETECTOR_PORT": str(settings.detector_port)}
    return Service(
        name="detector",
        environment=name,
        command=(str(environments.python(name)), "-m", "services.detector"),
        variables=tuple(sorted((read_variables(preset) | user_variables("DETECTOR_") | listen).items())),
        port=settings.detector_port,
        port_variable="STACK_DETECTOR_PORT",
        ready_url=f"http://{settings.host}:{settings.detector_port}/",
        stop_grace_s=STOP_GRACE_S["detector"],
        inputs=(preset, *sorted((ROOT / "services" / "detector").glob("*.py"))),
    )


def make_stack(settings: StackSettings, device: str, preset_name: str, job_variables: Mapping[str, str]) -> Stack:
    """The stack of a host, detector first: on a GPU, vLLM takes its share of what the detector leaves.

    A service whose address the user set (`job_variables`: the pipeline's, as the user has them) runs elsewhere and
    is not started.

    Raises:
        StackError: the preset does not exist or is no YAML.
    """
    preset = preset_file(preset_name)
    try:
        content = yaml.safe_load(preset.read_text())
    except yaml.YAMLError as error:
        raise StackError(f"preset {preset} is no YAML: {' '.join(str(error).split())}") from error
    services = []
    found: dict[str, str] = {}
    if "SPOTTER_DETECTOR_URL" not in job_variables:
        services.append(detector(settings, device))
        found["SPOTTER_DETECTOR_URL"] = f"http://{settings.host}:{settings.detector_port}"
    if "SPOTTER_MODEL_URL" not in job_variables:
        services.append(vllm(settings, device, preset))
        found["SPOTTER_MODEL_URL"] = f"http://{settings.host}:{settings.vllm_port}/v1"
        if revision := content.get("revision"):
            found["SPOTTER_MODEL_REVISION"] = revision
    return Stack(device, preset.stem, tuple(services), {**found, **job_variables})
