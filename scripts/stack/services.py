"""The services beside the job: each as a command, from the same presets on every engine."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scripts import environments
from scripts.environments import ROOT
from scripts.settings import InvalidStackSetting, StackSettings, read_variables
from scripts.stack import api_key
from scripts.vllm import compile_cache
from scripts.vllm.options import read_options

VLLM_PRESETS = ROOT / "services" / "vllm" / "presets"
VLLM_STARTS = ROOT / "services" / "vllm" / "starts"
DETECTOR_PRESETS = ROOT / "services" / "detector" / "presets"
DETECTOR_CODE = ("imaging", "services/detector")


@dataclass(frozen=True, slots=True)
class Kind:
    """What is the same for a service on every host."""

    url_variable: str
    """The job's variable for its address."""
    container_port: int
    """Where it listens in its container; images/health.py asks there."""
    ready_path: str
    """Answers 200 only when the service can answer requests."""
    stop_grace_s: float
    """How long it may finish its requests after SIGTERM."""


KINDS = {
    "detector": Kind("SPOTTER_DETECTOR_URL", 8001, "/", 70.0),  # above DETECTOR_TIMEOUT_S: then no request is open
    "vllm": Kind("SPOTTER_MODEL_URL", 8000, "/health", 75.0),  # above the presets' shutdown-timeout of 60
}
"""The services, by the name of their STACK_ settings."""

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
    port_variable: str
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


@dataclass(frozen=True, slots=True)
class Stack:
    """The services of one host, and the job's variables for them."""

    device: str
    preset: str
    preset_file: Path
    services: tuple[Service, ...]
    job_variables: dict[str, str]
    """The job's variables: where the services are, and those that the user set."""

    @property
    def key_file(self) -> Path | None:
        """Holds the model server's API key; None where that server runs elsewhere."""
        return next((service.key_file for service in self.services if service.key_file), None)


def preset_file(name: str) -> Path:
    """The YAML of a vLLM preset, by its name or path.

    Raises:
        InvalidStackSetting: there is none.
    """
    for path in (VLLM_PRESETS / f"{name}.yaml", Path(name).expanduser()):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in VLLM_PRESETS.glob("*.yaml")))
    raise InvalidStackSetting(f"STACK_PRESET={name!r} is neither a file nor one of: {known}")


def read_preset(path: Path) -> dict[str, Any]:
    """The options of a vLLM preset.

    Raises:
        InvalidStackSetting: it is no YAML, or holds no options.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidStackSetting(f"preset {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        holds = "is empty" if content is None else f"holds a {type(content).__name__}, not options"
        raise InvalidStackSetting(f"preset {path} {holds}: write vLLM's options as `name: value`, at least `model:`")
    return content


def without_secrets(variables: Mapping[str, str]) -> dict[str, str]:
    """Variables without keys and tokens, which files and `docker inspect` would show."""
    return {name: value for name, value in api_key.without(variables).items() if name not in TOKEN_VARIABLES}


def start_file(settings: StackSettings) -> Path | None:
    """The options that `STACK_START` puts over the preset; none for a full start."""
    return None if settings.start == "full" else VLLM_STARTS / f"{settings.start}.yaml"


def start_arguments(settings: StackSettings) -> tuple[str, ...]:
    """These options as arguments of `vllm serve`."""
    file = start_file(settings)
    options: dict[str, object] = yaml.safe_load(file.read_text()) if file else {}
    return tuple(f"--{name}" if value is True else f"--{name}={json.dumps(value)}" for name, value in options.items())


def hub_variables(settings: StackSettings) -> dict[str, str]:
    """The hub's variables for a service: the user's, without the token, and no network: `fetch` gets the models."""
    return without_secrets(settings.user_variables("HF_")) | {"HF_HUB_OFFLINE": "1"}


def gpu_variables(settings: StackSettings, device: str) -> dict[str, str]:
    """The variables that show a process one GPU, by nvidia-smi's number; a CUDA_VISIBLE_DEVICES of the user's wins."""
    if device != "cuda" or settings.environment.get("CUDA_VISIBLE_DEVICES"):
        return {}
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(settings.gpu)}


def cache_root(settings: StackSettings) -> Path:
    """The folder of this host's compile caches: the user's VLLM_CACHE_ROOT, or one in the state folder."""
    chosen = settings.user_variables("VLLM_").get("VLLM_CACHE_ROOT")
    return Path(chosen).expanduser() if chosen else settings.state / "cache" / "vllm"


def cache_key(settings: StackSettings, device: str, preset: Path) -> str:
    """The name of the compile cache that this preset has on this host."""
    return compile_cache.key(
        read_options(preset, {}, device, start_arguments(settings))[0], device, number=settings.gpu
    )


def vllm(settings: StackSettings, device: str, preset: Path) -> Service:
    """The model server; a VLLM_ variable that the user set wins over the preset's."""
    name = "vllm-cuda" if device == "cuda" else "vllm-cpu"
    variables_file = preset.with_suffix(".env")
    cache = compile_cache.variables(cache_root(settings) / cache_key(settings, device, preset))
    chosen = compile_cache.without(settings.user_variables("VLLM_"))
    variables = without_secrets(cache | read_variables(variables_file) | chosen | hub_variables(settings))
    variables |= gpu_variables(settings, device)
    listen = ("--host", settings.host, "--port", str(settings.vllm_port))
    start = start_arguments(settings)
    options, _ = read_options(preset, {}, device, start)
    return Service(
        name="vllm",
        environment=name,
        command=(str(environments.folder(name) / "bin" / "vllm"), "serve", "--config", str(preset), *listen, *start),
        variables=tuple(sorted(variables.items())),
        port=settings.vllm_port,
        port_variable="STACK_VLLM_PORT",
        ready_url=f"http://{settings.host}:{settings.vllm_port}/health",
        stop_grace_s=KINDS["vllm"].stop_grace_s,
        inputs=tuple(path for path in (preset, variables_file, start_file(settings)) if path and path.is_file()),
        key_file=api_key.file_in(settings.state),
        model=options.text("model") or "",
        revision=options.text("revision"),
    )


def detector(settings: StackSettings, device: str) -> Service:
    """The detector service; a DETECTOR_ variable that the user set wins over the preset's."""
    name = "detector-cuda" if device == "cuda" else "detector-cpu"
    preset = DETECTOR_PRESETS / f"{device}.env"
    listen = {"DETECTOR_HOST": settings.host, "DETECTOR_PORT": str(settings.detector_port)}
    variables = read_variables(preset) | settings.user_variables("DETECTOR_") | hub_variables(settings) | listen
    variables |= gpu_variables(settings, device)
    return Service(
        name="detector",
        environment=name,
        command=(str(environments.python(name)), "-m", "services.detector"),
        variables=tuple(sorted(variables.items())),
        port=settings.detector_port,
        port_variable="STACK_DETECTOR_PORT",
        ready_url=f"http://{settings.host}:{settings.detector_port}/",
        stop_grace_s=KINDS["detector"].stop_grace_s,
        inputs=(preset, *sorted(file for room in DETECTOR_CODE for file in (ROOT / room).glob("*.py"))),
        model=variables.get("DETECTOR_MODEL", ""),
        revision=variables.get("DETECTOR_REVISION"),
    )


def refuse_unsafe(preset: Path, content: Mapping[str, Any]) -> None:
    """Raise InvalidStackSetting where a preset or its .env gives away a secret, or runs code that nobody has read."""
    options = {str(name).replace("_", "-"): value for name, value in content.items()}
    if "api-key" in options:
        raise InvalidStackSetting(
            f"preset {preset} holds `api-key`, which vLLM would write into its log: remove it, and set "
            f"{api_key.JOB_VARIABLE} for a key of yours"
        )
    held = read_variables(preset.with_suffix(".env"))
    for name in held.keys() - without_secrets(held).keys():
        remedy = "HF_TOKEN where `make fetch` runs" if name in TOKEN_VARIABLES else f"{api_key.JOB_VARIABLE} instead"
        raise InvalidStackSetting(
            f"{preset.with_suffix('.env')} holds {name}, which `docker inspect` would show: remove it, and set {remedy}"
        )
    if options.get("trust-remote-code") and not re.fullmatch(r"[0-9a-f]{40}", str(options.get("revision"))):
        raise InvalidStackSetting(
            f"preset {preset} holds `trust-remote-code`, which runs whatever the model's owner publishes next: pin "
            "`revision:` to the commit that you have read, by its 40 digits"
        )


def make_stack(settings: StackSettings, device: str, preset_name: str, job_variables: Mapping[str, str]) -> Stack:
    """The stack of a host, detector first: on a GPU, vLLM takes its share of what the detector leaves.

    A service with an address among `job_variables`, the user's SPOTTER_ variables, runs elsewhere and is not started.
    """
    preset = preset_file(preset_name)
    content = read_preset(preset)
    refuse_unsafe(preset, content)
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
    return Stack(device, preset.stem, preset, tuple(services), {**found, **job_variables})
