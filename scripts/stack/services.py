"""The services of a host, made from their entries in scripts/services.py and from the settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.settings import PREFIX, Settings
from scripts import environments
from scripts.environments import ROOT
from scripts.services import KINDS, Image, Kind
from scripts.settings import StackSettings, read_variables
from scripts.stack.devices import numbers
from scripts.stack.service import Service, host_variables
from scripts.stack.vllm_server import model_servers, usable_preset, vllm

# The job's variable for its most requests in flight, at all model servers together.
CONCURRENCY = f"{PREFIX}MODEL_CONCURRENCY"


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


def presets_of(kind: Kind, device: str) -> Path:
    """The file of a service's variables on a device; it need not exist."""
    return ROOT / "services" / kind.name / "presets" / f"{device}.env"


def own_variables(settings: StackSettings, kind: Kind, device: str) -> dict[str, str]:
    """A service's variables: its preset's on the device where it runs, and over them the user's.

    The preset's revision belongs to the preset's model: it does not apply to another one.
    """
    preset = read_variables(presets_of(kind, placed(settings, kind, device)[0]))
    chosen = settings.user_variables(kind.prefix)
    model, revision = f"{kind.prefix}MODEL", f"{kind.prefix}REVISION"
    if chosen.get(model, preset.get(model)) != preset.get(model):
        preset.pop(revision, None)
    return preset | chosen


def placed(settings: StackSettings, kind: Kind, device: str) -> tuple[str, Image]:
    """The device on which a service of a stack runs, and its image, whose name is that of its environment too.

    The detector's ONNX models run on the CPU, also beside a GPU, without torch; its other models need torch.
    """
    image = kind.image(device)
    if kind.name == "vllm" and device == "cuda" and settings.vllm_image == "official":
        return device, kind.images["official"]
    if kind.name != "detector":
        return device, image
    told = read_variables(presets_of(kind, device)) | settings.user_variables(kind.prefix)
    backend, model = told.get("DETECTOR_BACKEND", "auto"), ROOT / Path(told.get("DETECTOR_MODEL", "")).expanduser()
    # As `claims` of services/detector/backends/onnx_runtime.py has it.
    held = any(model.glob("*.onnx")) or any(model.glob("onnx/*.onnx"))
    exported = model.suffix == ".onnx" or (held and not any(model.glob("*.safetensors")))
    if backend == "onnx" or (backend == "auto" and exported):
        return "cpu", kind.images["cpu"]
    return device, kind.images["torch"] if device == "cpu" else image


def images_of(settings: StackSettings, device: str) -> list[Image]:
    """The images of a stack's services; their environments have the same names."""
    return [placed(settings, kind, device)[1] for kind in KINDS.values()]


def python_service(settings: StackSettings, device: str, kind: Kind) -> Service:
    """A service that a Python module of this repository serves.

    <NAME>_HOST and <NAME>_PORT tell it where to listen, <NAME>_MODEL and <NAME>_REVISION name its model, if it has one.
    """
    device, image = placed(settings, kind, device)
    port, preset = settings.port(kind.name), presets_of(kind, device)
    listen = {f"{kind.prefix}HOST": settings.host, f"{kind.prefix}PORT": str(port)}
    variables = own_variables(settings, kind, device) | host_variables(settings, device, numbers(settings)[:1]) | listen
    code = {file for source in image.sources for file in (ROOT / source).rglob("*.py")}
    return Service(
        name=kind.name,
        environment=image.name,
        command=(str(environments.python(image.name)), "-m", kind.module),
        variables=tuple(sorted(variables.items())),
        port=port,
        ready_url=f"http://{settings.host}:{port}{kind.ready_path}",
        stop_grace_s=kind.stop_grace_s,
        inputs=(*([preset] if preset.is_file() else []), *sorted(code)),
        model=variables.get(f"{kind.prefix}MODEL", ""),
        revision=variables.get(f"{kind.prefix}REVISION"),
    )


def variables_for(kind: Kind, addresses: Sequence[str]) -> dict[str, str]:
    """The job's variables for a service's addresses; at several, the bound of requests in flight grows with them."""
    found = {kind.url_variable: ",".join(addresses)}
    if len(addresses) > 1:
        found[CONCURRENCY] = str(int(Settings.model_fields["model_concurrency"].default) * len(addresses))
    return found


def make_stack(settings: StackSettings, device: str, preset_name: str, job_variables: Mapping[str, str]) -> Stack:
    """The stack of a host, its services in the order of their start.

    A service with an address among `job_variables`, the user's SPOTTER_ variables, runs elsewhere and is not started.
    """
    preset = usable_preset(preset_name)
    services = list[Service]()
    found: dict[str, str] = {}
    for kind in KINDS.values():
        if kind.url_variable in job_variables:
            continue
        if kind.module:
            made = [python_service(settings, device, kind)]
        else:
            made = [vllm(settings, device, preset, server) for server in model_servers(settings, device, preset)]
        services += made
        if kind.url_variable:
            found |= variables_for(kind, [f"http://{settings.host}:{each.port}{kind.url_path}" for each in made])
        if kind.revision_variable and made[0].revision:
            found[kind.revision_variable] = made[0].revision
    return Stack(device, preset.stem, preset, tuple(services), {**found, **job_variables})


def idle(job: Settings) -> frozenset[str]:
    """The services that a run never asks: the detector, where boxes or an earlier run's detections are given.

    Raises:
        UsageError: there is no such job, or its file is invalid.
    """
    from pipeline.job import load  # not above: most commands read no job
    from pipeline.labels import DETECTOR

    asks = load(job.job).boxes == DETECTOR and job.from_run is None
    return frozenset() if asks else frozenset({"detector"})


def without(stack: Stack, names: Collection[str]) -> Stack:
    """The stack without some of its services."""
    return replace(stack, services=tuple(each for each in stack.services if each.name not in names))
