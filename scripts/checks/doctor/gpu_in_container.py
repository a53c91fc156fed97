"""The GPU from inside a container, which a driver on the host does not promise."""

from __future__ import annotations

from scripts.checks.doctor.context import Context
from scripts.docker import gpu as docker_gpu
from scripts.docker.client import ask
from scripts.docker.host import find_engine
from scripts.docker.images import has
from scripts.findings import Finding, error, ok, unchecked
from scripts.programs import ANSWER_S
from scripts.services import KINDS
from scripts.stack.devices import numbers

NAME = "gpu in containers"
REMEDY = "install nvidia-container-toolkit, run `nvidia-ctk runtime configure`, restart Docker"


def check(context: Context) -> list[Finding]:
    """A container of an image that exists already sees the GPU."""
    if context.device != "cuda" or context.settings.engine == "process":
        return []
    engine, reason = find_engine()
    if engine is None:  # with `auto`, the services run as processes
        return [] if context.settings.engine == "auto" else [unchecked(NAME, reason)]
    driver = docker_gpu.driver()
    if driver is None:
        found = "Docker has no NVIDIA runtime, and no CDI description of a GPU"
        return [error(NAME, found, "one of them", REMEDY)]
    tag = next(filter(has, (kind.image("cuda").tag for kind in KINDS.values())), None)
    if tag is None:
        return [unchecked(NAME, "the stack has no image yet: `make build` makes them")]
    given = docker_gpu.options(driver, numbers(context.settings))
    command = ("run", "--rm", "--network=none", *given, "--entrypoint=nvidia-smi", tag, "-L")
    seen, reason = ask(*command, timeout_s=ANSWER_S)
    if seen:
        return [ok(NAME, "; ".join(seen.splitlines()))]
    return [error(NAME, reason, "the GPUs that nvidia-smi shows on this host", REMEDY)]
