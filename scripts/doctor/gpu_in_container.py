"""The GPU from inside a container, which a driver on the host does not promise."""

from __future__ import annotations

from scripts.doctor.context import Context, ask
from scripts.findings import Finding
from scripts.images import IMAGES

REMEDY = "install nvidia-container-toolkit, run `nvidia-ctk runtime configure`, restart Docker"


def check(context: Context) -> list[Finding]:
    """A container of an image that is there already sees the GPU."""
    if context.device != "cuda" or context.settings.engine == "process":
        return []
    runtimes, reason = ask("docker", "info", "--format", "{{json .Runtimes}}")
    if runtimes is None:
        if context.settings.engine == "auto":
            return []  # the services run as processes
        return [Finding("gpu in containers", "unchecked", reason)]
    if "nvidia" not in runtimes:
        return [Finding("gpu in containers", "error", "Docker has no NVIDIA runtime", "one", REMEDY)]
    for name in ("detector-cuda", "vllm"):
        tag = IMAGES[name].tag
        if ask("docker", "image", "inspect", "--format", "{{.Id}}", tag)[0] is None:
            continue
        command = ("docker", "run", "--rm", "--network=none", "--gpus=all", "--entrypoint=nvidia-smi", tag, "-L")
        seen, reason = ask(*command)
        if seen:
            return [Finding("gpu in containers", "ok", seen.splitlines()[0])]
        return [Finding("gpu in containers", "error", reason, "a GPU that nvidia-smi shows in a container", REMEDY)]
    return [Finding("gpu in containers", "unchecked", "no image of the stack is there yet: `make build` makes them")]
