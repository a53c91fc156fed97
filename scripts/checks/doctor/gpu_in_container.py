"""The GPU from inside a container, which a driver on the host does not promise."""

from __future__ import annotations

from scripts.checks.doctor.context import Context
from scripts.docker import gpu as docker_gpu
from scripts.docker.client import ask
from scripts.docker.host import find_engine
from scripts.docker.images import IMAGES, has
from scripts.findings import Finding
from scripts.programs import ANSWER_S

REMEDY = "install nvidia-container-toolkit, run `nvidia-ctk runtime configure`, restart Docker"


def check(context: Context) -> list[Finding]:
    """A container of an image that is there already sees the GPU."""
    if context.device != "cuda" or context.settings.engine == "process":
        return []
    engine, reason = find_engine()
    if engine is None:
        if context.settings.engine == "auto":
            return []  # the services run as processes
        return [Finding("gpu in containers", "unchecked", reason)]
    driver = docker_gpu.driver()
    if driver is None:
        found = "Docker has no NVIDIA runtime, and no description of a GPU"
        return [Finding("gpu in containers", "error", found, "one of them", REMEDY)]
    for name in ("detector-cuda", "vllm"):
        tag = IMAGES[name].tag
        if not has(tag):
            continue
        given = docker_gpu.option(driver, context.settings.gpu)
        command = ("run", "--rm", "--network=none", given, "--entrypoint=nvidia-smi", tag, "-L")
        seen, reason = ask(*command, timeout_s=ANSWER_S)
        if seen:
            return [Finding("gpu in containers", "ok", seen.splitlines()[0])]
        return [Finding("gpu in containers", "error", reason, "a GPU that nvidia-smi shows in a container", REMEDY)]
    return [Finding("gpu in containers", "unchecked", "no image of the stack is there yet: `make build` makes them")]
