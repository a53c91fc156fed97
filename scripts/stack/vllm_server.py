"""vLLM as a service: its preset, its compile cache, its command."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from scripts import environments
from scripts.environments import ROOT
from scripts.services import KINDS, nth
from scripts.settings import InvalidStackSetting, StackSettings, read_variables
from scripts.stack import api_key
from scripts.stack.devices import numbers
from scripts.stack.service import TOKEN_VARIABLES, Service, host_variables, without_secrets
from scripts.vllm import compile_cache
from scripts.vllm.options import Options, read_options, read_preset

PRESETS = ROOT / "services" / "vllm" / "presets"
STARTS = ROOT / "services" / "vllm" / "starts"


def preset_file(name: str) -> Path:
    """The YAML of a preset, by its name or path.

    Raises:
        InvalidStackSetting: there is none.
    """
    for path in (PRESETS / f"{name}.yaml", Path(name).expanduser()):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in PRESETS.glob("*.yaml")))
    raise InvalidStackSetting(f"STACK_PRESET={name!r} is neither a file nor one of: {known}")


def usable_preset(name: str) -> Path:
    """The YAML of a preset that a stack may use.

    Raises:
        InvalidStackSetting: there is none, or it is invalid, gives away a secret, or runs code that nobody has read.
    """
    preset = preset_file(name)
    content, invalid = read_preset(preset)
    if invalid:
        raise InvalidStackSetting(str(invalid[0]))
    refuse_unsafe(preset, content)
    return preset


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


def start_file(settings: StackSettings) -> Path | None:
    """The options that `STACK_START` puts over the preset; none for a full start."""
    return None if settings.start == "full" else STARTS / f"{settings.start}.yaml"


def start_arguments(settings: StackSettings) -> tuple[str, ...]:
    """These options as arguments of `vllm serve`."""
    file = start_file(settings)
    options: dict[str, object] = yaml.safe_load(file.read_text()) if file else {}
    return tuple(f"--{name}" if value is True else f"--{name}={json.dumps(value)}" for name, value in options.items())


def cache_root(settings: StackSettings) -> Path:
    """The folder of this host's compile caches: the user's VLLM_CACHE_ROOT, or one in the state folder."""
    chosen = settings.user_variables("VLLM_").get("VLLM_CACHE_ROOT")
    return Path(chosen).expanduser() if chosen else settings.state / "cache" / "vllm"


@dataclass(frozen=True, slots=True)
class ModelServer:
    """One vLLM of a stack."""

    name: str
    gpus: tuple[int, ...]
    """Their numbers at nvidia-smi: one, or as many as the preset spreads a model over; none on a CPU."""
    port: int
    """On this host."""
    cache: str
    """The name of its compile cache."""


def model_servers(settings: StackSettings, device: str, preset: Path) -> list[ModelServer]:
    """The model servers of a stack: one for each GPU, or STACK_REPLICAS on a CPU; the first is called `vllm`.

    A preset with `tensor-parallel-size` or `pipeline-parallel-size` gives each server so many GPUs.

    Raises:
        InvalidStackSetting: the GPUs cannot be shared out among servers, or there is no port for one.
    """
    options, _ = read_options(preset, {}, device, start_arguments(settings))
    groups = share_out(settings, preset, options) if device == "cuda" else [()] * settings.replicas
    others = {settings.port(name) for name in KINDS if name != "vllm"}
    free = (port for port in range(settings.port("vllm"), 65536) if port not in others)
    ports = list(islice(free, len(groups)))
    if len(ports) < len(groups):
        raise InvalidStackSetting(f"STACK_VLLM_PORT={ports[0]} leaves no port for {len(groups)} servers: lower it")
    caches = [compile_cache.key(options, device, number=gpus[0] if gpus else 0) for gpus in groups]
    return [
        ModelServer(nth("vllm", number), gpus, port, cache)
        for number, (gpus, port, cache) in enumerate(zip(groups, ports, caches, strict=True), start=1)
    ]


def share_out(settings: StackSettings, preset: Path, options: Options) -> list[tuple[int, ...]]:
    """The GPUs of each model server, by their numbers.

    Raises:
        InvalidStackSetting: some GPUs are left over, or settings contradict each other.
    """
    gpus = numbers(settings)
    width = int(options.number("tensor-parallel-size") or 1) * int(options.number("pipeline-parallel-size") or 1)
    if settings.replicas > 1:
        raise InvalidStackSetting("STACK_REPLICAS is for a CPU: unset it, and name the GPUs in STACK_GPUS")
    if len(gpus) > 1 and (visible := settings.environment.get("CUDA_VISIBLE_DEVICES")):
        raise InvalidStackSetting(
            f"CUDA_VISIBLE_DEVICES={visible} and STACK_GPUS={settings.gpus} both choose GPUs: unset the first, and "
            "name the GPUs in STACK_GPUS"
        )
    if not gpus or len(gpus) % width:
        raise InvalidStackSetting(
            f"preset {preset} spreads its model over {width} GPUs, and STACK_GPUS={settings.gpus} names {len(gpus)}: "
            f"name {width}, or a multiple"
        )
    return [gpus[first : first + width] for first in range(0, len(gpus), width)]


def vllm(settings: StackSettings, device: str, preset: Path, server: ModelServer | None = None) -> Service:
    """A model server, by default the first; a VLLM_ variable that the user set wins over the preset's."""
    kind, server = KINDS["vllm"], server or model_servers(settings, device, preset)[0]
    name, port = kind.image(device).name, server.port
    variables_file = preset.with_suffix(".env")
    cache = compile_cache.variables(cache_root(settings) / server.cache)
    chosen = compile_cache.without(settings.user_variables(kind.prefix))
    host = host_variables(settings, device, server.gpus)
    variables = without_secrets(cache | read_variables(variables_file) | chosen) | host
    listen = ("--host", settings.host, "--port", str(port))
    start = start_arguments(settings)
    options, _ = read_options(preset, {}, device, start)
    return Service(
        name=server.name,
        environment=name,
        command=(str(environments.folder(name) / "bin" / "vllm"), "serve", "--config", str(preset), *listen, *start),
        variables=tuple(sorted(variables.items())),
        port=port,
        ready_url=f"http://{settings.host}:{port}{kind.ready_path}",
        stop_grace_s=kind.stop_grace_s,
        inputs=tuple(path for path in (preset, variables_file, start_file(settings)) if path and path.is_file()),
        key_file=api_key.file_in(settings.state),
        model=options.text("model") or "",
        revision=options.text("revision"),
        cache="" if options.values.get("enforce-eager") else server.cache,
    )
