"""The GPUs: visible, with driver, compute capability and free memory that suffice for vLLM and the detector."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from scripts.checks.doctor.context import Context
from scripts.checks.preflight.memory import DEFAULT_SHARE
from scripts.findings import Finding, error, ok, unchecked
from scripts.minimum_versions import COMPUTE_CAPABILITY, NVIDIA_DRIVER
from scripts.programs import dotted, nvidia_smi, version
from scripts.settings import StackError
from scripts.stack.vllm_server import model_servers

FIELDS = "index,name,driver_version,compute_cap,memory.total,memory.free"


def check(context: Context) -> list[Finding]:
    """The GPUs that the stack takes."""
    settings = context.settings
    if settings.device == "cpu":
        return [ok("gpu", "not used (STACK_DEVICE=cpu)")]
    rows, reason = nvidia_smi(FIELDS, settings.gpus)
    if not rows:
        if settings.device == "cuda":
            remedy = "install the NVIDIA driver, or set STACK_DEVICE=cpu"
            return [error("gpu", reason, "a GPU that nvidia-smi shows (STACK_DEVICE=cuda)", remedy)]
        return [ok("gpu", f"none: the tiny models run on the CPU ({reason})")]
    found = [of_gpu(context, row, "gpu" if len(rows) == 1 else f"gpu {row[0]}") for row in rows]
    return [*chain(*found), *shared_out(context)]


def shared_out(context: Context) -> list[Finding]:
    """An error where the settings give the model servers no GPUs that fit the preset."""
    try:
        if context.preset_file:
            model_servers(context.settings, context.device, context.preset_file)
    except StackError as fault:
        return [error("gpus", str(fault), "GPUs for each model server", "correct these settings")]
    return []


def of_gpu(context: Context, row: list[str], check: str) -> list[Finding]:
    """The findings about a GPU by nvidia-smi's values; `check` names it."""
    try:
        number, name, driver, capability, total, free = row
        found = list(judge(context, check, (name, driver, capability), int(total), int(free), int(number)))
    except ValueError:
        return [unchecked(check, f"cannot parse nvidia-smi's answer {', '.join(row)[:200]!r}")]
    return [ok(check, f"{name}, {total} MiB"), *found]


def judge(
    context: Context, check: str, gpu: tuple[str, str, str], total: int, free: int, number: int
) -> Iterator[Finding]:
    """The faults of a GPU, by its name, driver and compute capability, by its memory in MiB, and by its number."""
    name, driver, capability = gpu
    if version(driver) < NVIDIA_DRIVER:
        required = f"{dotted(NVIDIA_DRIVER)} or later, for CUDA 13"
        yield error(f"{check} driver", driver, required, "update the NVIDIA driver")
    if version(capability) < COMPUTE_CAPABILITY:
        found = f"{name} has compute capability {capability}"
        required = f"{dotted(COMPUTE_CAPABILITY)} or later: the model is bfloat16"
        yield error(f"{check} capability", found, required, "take a newer GPU, or set STACK_DEVICE=cpu")
    if context.preset is None:
        remedy = "set STACK_PRESET to a preset with a smaller model, or STACK_DEVICE=cpu"
        found = f"{total} MiB: too small for every preset"
        yield error(f"{check} memory", found, "22000 MiB, or your own preset", remedy)
    chosen = context.options.number("gpu-memory-utilization") if context.options else None
    share = chosen or DEFAULT_SHARE
    server = next((each.name for each in context.servers if number in each.gpus), "vllm")
    if free < share * total and not context.is_running(server):
        remedy = "end the other programs on the GPU (see nvidia-smi), or lower `gpu-memory-utilization`"
        yield error(f"{check} memory", f"{free} of {total} MiB are free", f"{share:.0%}, or vLLM refuses", remedy)
