"""The GPU: seen, with a driver, a capability and free memory that vLLM and the detector can do with."""

from __future__ import annotations

from dataclasses import dataclass

from scripts import minimum_versions as floors
from scripts.checks.doctor.context import Context
from scripts.checks.preflight.memory import DEFAULT_SHARE
from scripts.findings import Finding
from scripts.programs import ask, dotted, version

QUERY = "name,driver_version,compute_cap,memory.total,memory.free"


@dataclass(frozen=True, slots=True)
class Seen:
    """One GPU by nvidia-smi; memory in MiB."""

    name: str
    driver: str
    capability: str
    total: int
    free: int


def check(context: Context) -> list[Finding]:
    """The GPU that the stack takes."""
    if context.settings.device == "cpu":
        return [Finding("gpu", "ok", "not used (STACK_DEVICE=cpu)")]
    found, reason = ask(
        "nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits", f"--id={context.settings.gpu}"
    )
    if found is None:
        if context.settings.device == "cuda":
            remedy = "install the NVIDIA driver, or set STACK_DEVICE=cpu"
            return [Finding("gpu", "error", reason, "a GPU that nvidia-smi shows (STACK_DEVICE=cuda)", remedy)]
        return [Finding("gpu", "ok", f"none: the tiny models run on the CPU ({reason})")]
    rows = [[field.strip() for field in line.split(",")] for line in found.splitlines()]
    try:
        name, driver, capability, total, free = rows[0]
        gpu = Seen(name, driver, capability, int(total), int(free))
    except (ValueError, IndexError):
        return [Finding("gpu", "unchecked", f"nvidia-smi says {found[:200]!r}, which this check cannot read")]
    return [Finding("gpu", "ok", f"{gpu.name}, {gpu.total} MiB"), *judge(gpu, context)]


def judge(gpu: Seen, context: Context) -> list[Finding]:
    """What the GPU lacks."""
    findings = []
    if version(gpu.driver) < floors.NVIDIA_DRIVER:
        required = f"{dotted(floors.NVIDIA_DRIVER)} or later, for CUDA 13"
        findings.append(Finding("gpu driver", "error", gpu.driver, required, "update the NVIDIA driver"))
    if version(gpu.capability) < floors.COMPUTE_CAPABILITY:
        findings.append(
            Finding(
                "gpu capability",
                "error",
                f"{gpu.name} has compute capability {gpu.capability}",
                f"{dotted(floors.COMPUTE_CAPABILITY)} or later: the model is bfloat16",
                "take a newer GPU, or set STACK_DEVICE=cpu",
            )
        )
    if context.preset is None:
        findings.append(
            Finding(
                "gpu memory",
                "error",
                f"{gpu.total} MiB: too small for every preset",
                "22000 MiB, or a preset of yours",
                "set STACK_PRESET to a preset with a smaller model, or STACK_DEVICE=cpu",
            )
        )
    share = DEFAULT_SHARE
    if context.options is not None:
        share = context.options.number("gpu-memory-utilization") or DEFAULT_SHARE
    if gpu.free < share * gpu.total and not context.is_running("vllm"):
        findings.append(
            Finding(
                "gpu memory",
                "error",
                f"{gpu.free} of {gpu.total} MiB are free",
                f"{share:.0%}, or vLLM refuses to start",
                "end what else uses the GPU (nvidia-smi shows it), or lower `gpu-memory-utilization`",
            )
        )
    return findings
