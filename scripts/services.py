"""The services beside the job, an entry each. Settings, commands, containers and images derive from these entries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Image:
    """One image: a target of images/Dockerfile, with the locked environment of the same name."""

    name: str
    target: str
    title: str
    sources: tuple[str, ...]
    """Files and folders that are copied into it beside the environment, relative to the repository's root."""
    base: str = "BASE_IMAGE"
    """The argument of images/Dockerfile that names its base."""
    brings_environment: bool = False
    """Whether the base holds all packages, so that the image needs no environment."""
    compiles: bool = False
    """Whether its programs compile when they run, so that it needs a compiler."""

    @property
    def tag(self) -> str:
        """The name that the compose files use."""
        return f"spotter-{self.name}:local"


@dataclass(frozen=True, slots=True)
class Kind:
    """What is the same for a service on every host."""

    name: str
    """The settings STACK_<NAME>_PORT and STACK_<NAME>_MEMORY, and all variables <NAME>_, belong to it."""
    images: Mapping[str, Image]
    """Its image and environment by device, `cpu` or `cuda`; without one for the GPU, that of the CPU.

    `placed` in scripts/stack/services.py chooses those under further names.
    """
    port: int
    """Where it listens in its container (images/health.py asks there), and by default on this host."""
    stop_grace_s: float
    """How long it may finish its requests after SIGTERM; as in compose.yaml."""
    ready_path: str = "/"
    """Answers 200 only when the service can answer requests."""
    module: str = ""
    """The Python module that serves; empty where scripts/stack/services.py has a function for the service."""
    url_variable: str = ""
    """The job's variable for its address: the service is not started here where it is set. Empty: the job has none."""
    url_path: str = ""
    """What follows its address there."""
    revision_variable: str = ""
    """The job's variable for the revision of its model."""

    @property
    def prefix(self) -> str:
        """Of the variables that go to it."""
        return f"{self.name.upper()}_"

    def image(self, device: str) -> Image:
        """Its image on a device."""
        return self.images.get(device) or self.images["cpu"]


_DETECTOR = ("imaging", "services/__init__.py", "services/detector", "samples/models/tiny-detector", "images/health.py")
_VLLM = ("images/health.py", "images/with_key.sh", "images/serve_vllm.sh", "services/vllm/tables/modelinfos")
# In the order of a start: on a GPU, vLLM takes its share of what the detector leaves.
KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            name="detector",
            images={
                "cpu": Image("detector-cpu", "detector", "the detector on a CPU, for ONNX models", _DETECTOR),
                "torch": Image("detector-torch-cpu", "detector", "the detector on a CPU, with torch", _DETECTOR),
                "cuda": Image("detector-cuda", "detector", "the detector on a GPU", _DETECTOR),
            },
            port=8001,
            stop_grace_s=70.0,  # above DETECTOR_TIMEOUT_S: then no request is open
            module="services.detector",
            url_variable="SPOTTER_DETECTOR_URL",
        ),
        Kind(
            name="vllm",
            images={
                "cpu": Image("vllm-cpu", "vllm-cpu", "vLLM on a CPU", ("samples/models/tiny-vlm", *_VLLM)),
                "cuda": Image("vllm-cuda", "vllm-cuda", "vLLM on a GPU", _VLLM, compiles=True),
                "official": Image("vllm-official", "vllm-official", "vLLM's own image", _VLLM, "VLLM_IMAGE", True),
            },
            port=8000,
            stop_grace_s=75.0,  # above the presets' shutdown-timeout of 60
            ready_path="/health",
            url_variable="SPOTTER_MODEL_URL",
            url_path="/v1",
            revision_variable="SPOTTER_MODEL_REVISION",
        ),
    )
}
"""The services by name."""


def nth(kind: str, number: int) -> str:
    """The name of a service's nth server, from 1: `vllm`, `vllm-2`."""
    return kind if number == 1 else f"{kind}-{number}"


def kind_name(name: str) -> str:
    """The name of a service's entry: `vllm-2` is a `vllm`."""
    return name.partition("-")[0]


def kind_of(name: str) -> Kind:
    """The entry of a service, or of a node of the Ray cluster."""
    return NODE if kind_name(name) == NODE.name else KINDS[kind_name(name)]


_JOB = ("images/with_key.sh", "imaging", "pipeline", "pyproject.toml")
# The image in which the job runs; on a Ray cluster, that of the job and of all nodes.
PIPELINE = Image("pipeline", "pipeline", "the job", _JOB)
RAY = Image("ray", "pipeline", "the job on a Ray cluster, and its nodes", _JOB)
# The head and the workers of that cluster; in containers only.
NODE = Kind(name="ray", images={"cpu": RAY}, port=6379, stop_grace_s=10.0)
