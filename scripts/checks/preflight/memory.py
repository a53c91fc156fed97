"""The memory budget: weights, KV cache and detector against what the device has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from scripts.findings import Finding, error, unchecked, warning
from scripts.minimum_versions import GIB
from scripts.models.model_files import text_config
from scripts.vllm.options import Options

wrong = partial(error, "memory")

# The default of --gpu-memory-utilization in vLLM 0.32.
DEFAULT_SHARE = 0.92
# A CUDA context with captured graphs; the comments of the presets list the parts.
RUNTIME_GIB = 1.0
# The peak of the vision tower in one step, where the peak of one image is unknown.
PEAK_GIB = 1.0
# The default of --max-num-batched-tokens on a GPU.
DEFAULT_STEP_TOKENS = 2048
# The detector's CUDA context on the same GPU, beside its share.
CONTEXT_GIB = 0.5
# Three processes with their imports: measured with vLLM 0.32 on a CPU.
CPU_PROCESSES_GIB = 3.0
# The default share of the host's memory that vLLM takes on a CPU for its KV cache.
CPU_DEFAULT_SHARE = 0.92

BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}


@dataclass(frozen=True, slots=True)
class Host:
    """The memory of this host."""

    gpu_mib: int | None
    """Of the first GPU; None without a GPU, or where it is unknown."""
    ram_bytes: int | None
    detector_share: float = 0.0
    """Of the first GPU, from the detector's preset."""
    further_mib: int | None = None
    """Of the smallest further GPU, which has a model server and no detector; None without one."""
    replicas: int = 1
    """The number of model servers on a CPU."""


@dataclass(frozen=True, slots=True)
class Part:
    """A line of the budget."""

    name: str
    gib: float | None
    note: str = ""


def kv_bytes_per_token(config: Mapping[str, Any], options: Options) -> int | None:
    """Bytes of the KV cache for one token of context; None where config.json leaves it open."""
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
    """GiB for people; small amounts as MiB."""
    return f"{value:.1f} GiB" if value >= 0.95 else f"{value * 1024:.0f} MiB"


@dataclass(frozen=True, slots=True)
class Needs:
    """The memory that a model needs; None where unknown."""

    weights_gib: float | None
    kv_bytes: int | None
    """Of one token of context."""
    length: int | None
    """Tokens of the longest request."""
    image_tokens: int | None = None
    picture_peak_mib: float | None = None
    """Of the vision tower, for one image."""


def runtime_gib(options: Options, needs: Needs) -> float:
    """GiB that a GPU needs beside weights and KV cache."""
    if not needs.picture_peak_mib or not needs.image_tokens:
        return RUNTIME_GIB + PEAK_GIB
    pictures = (options.number("max-num-batched-tokens") or DEFAULT_STEP_TOKENS) // needs.image_tokens
    return RUNTIME_GIB + pictures * needs.picture_peak_mib / 1024


def check_memory(options: Options, host: Host, needs: Needs) -> tuple[list[Part], list[Finding]]:
    """The budget, and whether it holds one request of the full model length."""
    if options.device != "cuda":
        return on_cpu(options, host, needs)
    parts, findings = on_gpu(options, host, needs)
    if host.gpu_mib is not None and host.further_mib is not None:
        further, found = on_gpu(options, replace(host, gpu_mib=host.further_mib, detector_share=0.0), needs)
        parts += [replace(further[0], name="further GPU", note="the smallest; without a detector"), *further[2:]]
        findings += [each for each in found if each.severity == "error" and each not in findings]
    return parts, findings


def on_gpu(options: Options, host: Host, needs: Needs) -> tuple[list[Part], list[Finding]]:
    """The budget of a GPU that vLLM and the detector share."""
    if host.gpu_mib is None:
        return [], [unchecked("memory", "the GPU's memory is unknown on this host")]
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
        fits = max((total - reserve) / total - 0.01, 0)
        findings.append(
            wrong(
                f"vLLM takes {shown_gib(share * total)} and the detector {shown_gib(reserve)} of {shown_gib(total)}",
                "both within the GPU",
                f"set `gpu-memory-utilization: {fits:.2f}`, or a smaller DETECTOR_MEMORY_SHARE",
            )
        )
    if kv is not None and kv < (needed or 1e-9):
        findings.append(too_small(kv, needed, length, weights))
    if fixed is not None and weights is not None and weights + runtime + fixed / GIB + reserve > total:
        found = f"weights, cache and detector take {shown_gib(weights + runtime + fixed / GIB + reserve)}"
        findings.append(wrong(found, f"at most {shown_gib(total)}", "lower `kv-cache-memory-bytes`, or quantize"))
    if weights is None:
        findings.append(unchecked("memory", "the weights are not on this host: their size is unknown"))
    return parts, findings


def too_small(kv: float, needed: float | None, length: int | None, weights: float | None) -> Finding:
    """A KV cache that does not hold one request."""
    held = f"the weights ({shown_gib(weights or 0)}) leave no memory" if kv <= 0 else f"{shown_gib(kv)} are left"
    required = f"{shown_gib(needed)} for one request of {length} tokens" if needed else "some memory"
    raise_ = "raise `gpu-memory-utilization` or `kv-cache-memory-bytes`"
    remedy = f"lower `max-model-len`, {raise_}, or take a smaller or quantized model"
    return wrong(f"{held} for the KV cache", required, remedy)


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
        found = f"the KV cache has no size: vLLM takes {CPU_DEFAULT_SHARE:.0%} of the host's memory"
        remedy = "set `kv-cache-memory-bytes`; 256M is enough for a tiny model"
        findings.append(warning("memory", found, "a fixed size beside other programs", remedy))
    elif needed and kv < needed:
        findings.append(too_small(kv, needed, length, weights_gib))
    total = host.replicas * (CPU_PROCESSES_GIB + (weights_gib or 0.0) + (kv or 0.0))
    if host.replicas > 1:
        parts.append(Part(f"{host.replicas} servers", total))
    if ram is not None and total > ram:
        remedy = "lower `kv-cache-memory-bytes` or STACK_REPLICAS, or take a smaller model"
        of = f" of {host.replicas} servers" if host.replicas > 1 else ""
        found = f"processes, weights and KV cache{of} take {shown_gib(total)}"
        findings.append(wrong(found, f"at most the host's {shown_gib(ram)}", remedy))
    return parts, findings
