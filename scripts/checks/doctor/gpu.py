"""The GPU: visible, with a driver, a compute capability and free memory that suffice for vLLM and the detector."""

from __future__ import annotations

from collections.abc import Iterator

from scripts.checks.doctor.context import Context
from scripts.checks.preflight.memory import DEFAULT_SHARE
from scripts.findings import Finding, error, ok, unchecked
from scripts.minimum_versions import COMPUTE_CAPABILITY, NVIDIA_DRIVER
from scripts.programs import ask, dotted, version

QUERY = "--query-gpu=name,driver_version,compute_cap,memory.total,memory.free"


def check(context: Context) -> list[Finding]:
    """The GPU that the stack takes."""
    settings = context.settings
    if settings.device == "cpu":
        return [ok("gpu", "not used (STACK_DEVICE=cpu)")]
    shown, reason = ask("nvidia-smi", QUERY, "--format=csv,noheader,nounits", f"--id={settings.gpu}")
    if shown is None:
        if settings.device == "cuda":
            remedy = "install the NVIDIA driver, or set STACK_DEVICE=cpu"
            return [error("gpu", reason, "a GPU that nvidia-smi shows (STACK_DEVICE=cuda)", remedy)]
        return [ok("gpu", f"none: the tiny models run on the CPU ({reason})")]
    try:
        name, driver, capability, total, free = (part.strip() for part in shown.splitlines()[0].split(","))
        found = list(judge(context, (name, driver, capability), int(total), int(free)))
    except (ValueError, IndexError):
        return [unchecked("gpu", f"cannot parse nvidia-smi's answer {shown[:200]!r}")]
    return [ok("gpu", f"{name}, {total} MiB"), *found]


def judge(context: Context, gpu: tuple[str, str, str], total: int, free: int) -> Iterator[Finding]:
    """The faults of a GPU, by its name, driver and compute capability, and by its memory in MiB."""
    name, driver, capability = gpu
    if version(driver) < NVIDIA_DRIVER:
        required = f"{dotted(NVIDIA_DRIVER)} or later, for CUDA 13"
        yield error("gpu driver", driver, required, "update the NVIDIA driver")
    if version(capability) < COMPUTE_CAPABILITY:
        found = f"{name} has compute capability {capability}"
        required = f"{dotted(COMPUTE_CAPABILITY)} or later: the model is bfloat16"
        yield error("gpu capability", found, required, "take a newer GPU, or set STACK_DEVICE=cpu")
    if context.preset is None:
        remedy = "set STACK_PRESET to a preset with a smaller model, or STACK_DEVICE=cpu"
        yield error("gpu memory", f"{total} MiB: too small for every preset", "22000 MiB, or your own preset", remedy)
    chosen = context.options.number("gpu-memory-utilization") if context.options else None
    share = chosen or DEFAULT_SHARE
    if free < share * total and not context.is_running("vllm"):
        remedy = "end the other programs on the GPU (see nvidia-smi), or lower `gpu-memory-utilization`"
        yield error("gpu memory", f"{free} of {total} MiB are free", f"{share:.0%}, or vLLM refuses to start", remedy)
