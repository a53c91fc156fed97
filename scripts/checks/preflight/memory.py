"""The memory budget: weights, KV cache and detector against what the device has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scripts.findings import Finding
from scripts.models.model_files import text_config
from scripts.vllm.options import Options

GIB = 2**30

# What vLLM takes of the device when nothing is said: --gpu-memory-utilization's default in 0.32.
DEFAULT_SHARE = 0.92
# A CUDA context with captured graphs: the presets' comments have the parts.
RUNTIME_GIB = 1.0
# The peak of the vision tower in one step, where it is not known by picture.
PEAK_GIB = 1.0
# Tokens of a step when nothing is said: --max-num-batched-tokens' default on a GPU.
DEFAULT_STEP_TOKENS = 2048
# The detector's own context on the same GPU, beside its share.
CONTEXT_GIB = 0.5
# Three processes with their imports: measured with vLLM 0.32 on a CPU.
CPU_PROCESSES_GIB = 3.0
# vLLM's KV cache on a CPU when nothing is said: this share of the host's memory.
CPU_DEFAULT_SHARE = 0.92

BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}


@dataclass(frozen=True, slots=True)
class Host:
    """The memory that there is."""

    gpu_mib: int | None
    """Of the first GPU; None where there is none or it is not known."""
    ram_bytes: int | None
    detector_share: float = 0.0
    """Of the GPU, as the detector's preset has it."""


@dataclass(frozen=True, slots=True)
class Part:
    """A line of the budget."""

    name: str
    gib: float | None
    note: str = ""


def kv_bytes_per_token(config: Mapping[str, Any], options: Options) -> int | None:
    """Bytes of the KV cache for one token of context; None where config.json does not tell."""
    text = text_config(dict(config))
    layers, heads = text.get("num_hidden_layers"), text.get("num_attention_heads")
    if not isinstance(layers, int) or not isinstance(heads, int) or "kv_lora_rank" in text:
        return None
    head = text.get("head_dim") or (text["hidden_size"] // heads if isinstance(text.get("hidden_size"), int) else None)
    if not isinstance(head, int):
        return None
    own_layers = layers - (text.get("num_kv_shared_layers") or 0)
    width = 1 if "fp8" in (options.text("kv-cache-dtype") or "") else value_bytes(config, options)
    return 2 * own_layers * (text.get("num_key_value_heads") or heads) * head * width


def value_bytes(config: Mapping[str, Any], options: Options) -> int:
    """Bytes of one value in the data type that the server will use."""
    own = text_config(dict(config)).get("dtype") or config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    asked = options.text("dtype")
    return BYTES.get(own if asked in (None, "auto") else asked, 2)


def shown_gib(value: float) -> str:
    """GiB for people, also where they are few."""
    return f"{value:.1f} GiB" if value >= 0.95 else f"{value * 1024:.0f} MiB"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a model takes; None where nothing tells."""

    weights_gib: float | None
    kv_bytes: int | None
    """Of one token of context."""
    length: int | None
    """Tokens of the longest request."""
    image_tokens: int | None = None
    picture_peak_mib: float | None = None
    """Of the vision tower, for one picture."""


def runtime_gib(options: Options, needs: Needs) -> float:
    """What a GPU needs beside weights and KV cache."""
    if not needs.picture_peak_mib or not needs.image_tokens:
        return RUNTIME_GIB + PEAK_GIB
    pictures = (options.number("max-num-batched-tokens") or DEFAULT_STEP_TOKENS) // needs.image_tokens
    return RUNTIME_GIB + pictures * needs.picture_peak_mib / 1024


def check_memory(options: Options, host: Host, needs: Needs) -> tuple[list[Part], list[Finding]]:
    """The budget, and whether it holds one request of the full model length."""
    return on_gpu(options, host, needs) if options.device == "cuda" else on_cpu(options, host, needs)


def on_gpu(options: Options, host: Host, needs: Needs) -> tuple[list[Part], list[Finding]]:
    """The budget of a GPU that vLLM and the detector share."""
    if host.gpu_mib is None:
        return [], [Finding("memory", "unchecked", "no GPU's memory is known here")]
    total = host.gpu_mib / 1024
    share = options.number("gpu-memory-utilization") or DEFAULT_SHARE
    parallel = int(options.number("tensor-parallel-size") or 1)
    fixed = options.number("kv-cache-memory-bytes")
    kv_bytes, length, runtime = needs.kv_bytes, needs.length, runtime_gib(options, needs)
    weights = None if needs.weights_gib is None else needs.weights_gib / parallel
    reserve = host.detector_share * total + (CONTEXT_GIB if host.detector_share else 0.0)
    left = None if weights is None else share * total - weights - runtime
    kv = left if fixed is None else fixed / GIB
    needed = kv_bytes * length / parallel / GIB if kv_bytes and length else None
    parts = [
        Part("GPU", total),
        Part("detector", reserve, f"{host.detector_share:.0%} and its context"),
        Part("vLLM", share * total, f"{share:.0%}"),
        Part("  weights", weights),
        Part("  runtime", runtime, "estimate: context, graphs, one step's peak"),
        Part("  KV cache", kv, f"{kv * GIB / kv_bytes:,.0f} tokens" if kv and kv > 0 and kv_bytes else ""),
    ]
    findings = []
    if share * total + reserve > total:
        findings.append(
            Finding(
                "memory",
                "error",
                f"vLLM takes {shown_gib(share * total)} and the detector {shown_gib(reserve)} of {shown_gib(total)}",
                "both within the GPU",
                f"set `gpu-memory-utilization: {max((total - reserve) / total - 0.01, 0):.2f}`, or a smaller "
                "DETECTOR_MEMORY_SHARE",
            )
        )
    if kv is not None and kv < (needed or 0.0) + (0.0 if needed else 1e-9):
        findings.append(too_small(kv, needed, length, weights))
    if fixed is not None and weights is not None and weights + runtime + fixed / GIB + reserve > total:
        taken = f"weights, cache and detector take {shown_gib(weights + runtime + fixed / GIB + reserve)}"
        findings.append(
            Finding(
                "memory", "error", taken, f"at most {shown_gib(total)}", "lower `kv-cache-memory-bytes`, or quantize"
            )
        )
    if weights is None:
        findings.append(Finding("memory", "unchecked", "the weights are not on this host: their size is not known"))
    return parts, findings


def too_small(kv: float, needed: float | None, length: int | None, weights: float | None) -> Finding:
    """The finding for a KV cache that does not hold one request."""
    held = f"the weights ({shown_gib(weights or 0)}) leave no memory" if kv <= 0 else f"{shown_gib(kv)} are left"
    wanted = f"{shown_gib(needed)} for one request of {length} tokens" if needed else "some memory"
    return Finding(
        "memory",
        "error",
        f"{held} for the KV cache",
        wanted,
        "lower `max-model-len`, raise `gpu-memory-utilization` or `kv-cache-memory-bytes`, or take a smaller or "
        "quantized model",
    )


def on_cpu(options: Options, host: Host, needs: Needs) -> tuple[list[Part], list[Finding]]:
    """The budget of a host without a GPU."""
    weights_gib, kv_bytes, length = needs.weights_gib, needs.kv_bytes, needs.length
    ram = None if host.ram_bytes is None else host.ram_bytes / GIB
    fixed = options.number("kv-cache-memory-bytes")
    space = options.environment.get("VLLM_CPU_KVCACHE_SPACE", "")
    kv = fixed / GIB if fixed else float(space) if space.isdigit() and int(space) else None
    needed = kv_bytes * length / GIB if kv_bytes and length else None
    parts = [
        Part("host", ram),
        Part("  processes", CPU_PROCESSES_GIB, "measured"),
        Part("  weights", weights_gib),
        Part("  KV cache", kv, f"{kv * GIB / kv_bytes:,.0f} tokens" if kv and kv_bytes else ""),
    ]
    findings = []
    if kv is None:
        findings.append(
            Finding(
                "memory",
                "warning",
                f"no size for the KV cache: vLLM takes {CPU_DEFAULT_SHARE:.0%} of the host's memory",
                "a fixed size beside other programs",
                "set `kv-cache-memory-bytes`, 256M is enough for a tiny model",
            )
        )
    elif needed and kv < needed:
        findings.append(too_small(kv, needed, length, weights_gib))
    total = CPU_PROCESSES_GIB + (weights_gib or 0.0) + (kv or 0.0)
    if ram is not None and total > ram:
        findings.append(
            Finding(
                "memory",
                "error",
                f"processes, weights and KV cache take {shown_gib(total)}",
                f"at most the host's {shown_gib(ram)}",
                "lower `kv-cache-memory-bytes`, or take a smaller model",
            )
        )
    return parts, findings
