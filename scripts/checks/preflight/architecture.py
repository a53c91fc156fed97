"""Whether this vLLM knows the model's architecture, and whether that takes pictures."""

from __future__ import annotations

from typing import Any

from scripts.findings import Finding
from scripts.models.model_files import Model
from scripts.vllm import tables
from scripts.vllm.options import Options, nearest


def check_architecture(model: Model, config: dict[str, Any], options: Options) -> list[Finding]:
    """The architecture is known to this version and takes pictures."""
    known = tables.read("architectures")
    names = config.get("architectures") or []
    model_type = str(config.get("model_type"))
    if not names:
        return [
            Finding(
                "architecture",
                "error",
                f"{model.name}: config.json names no architecture",
                "`architectures` in config.json",
                "take a checkpoint that was saved with its config",
            )
        ]
    name = str(names[0])
    if version := known["removed"].get(name):
        return [
            Finding(
                "architecture",
                "error",
                f"{name} was removed after vLLM {version}",
                f"an architecture of vLLM {known['version']}",
                "take another model",
            )
        ]
    if name not in known["supported"]:
        return [not_supported(name, model_type, config, known)]
    return check_pictures(model, name, known, options)


def not_supported(name: str, model_type: str, config: dict[str, Any], known: dict[str, Any]) -> Finding:
    """The finding for an architecture that is not in vLLM's registry."""
    required = f"one of the {len(known['supported'])} architectures of vLLM {known['version']}"
    if model_type in known["model_types"] and "auto_map" not in config:
        return Finding(
            "architecture",
            "warning",
            f"vLLM has no {name} of its own, and will try to run it through Transformers",
            required,
            "see with `make preflight FULL=1` whether it takes pictures, or take another model",
        )
    remedy = f"take another model; {nearest(name, known['supported'])}"
    if "auto_map" in config:
        remedy = "it needs code from its repository, which the presets do not trust: take another model"
    return Finding("architecture", "error", f"{name} (model_type {model_type}) is not known", required, remedy)


def check_pictures(model: Model, name: str, known: dict[str, Any], options: Options) -> list[Finding]:
    """The architecture, and the options, let a picture through."""
    required = "a model that takes pictures, for the job shows it crops"
    if name not in known["multimodal"]:
        return [
            Finding(
                "modality",
                "error",
                f"{model.name} ({name}) takes text only: every request with a picture would be refused",
                required,
                "take a vision-language model",
            )
        ]
    modalities = known["multimodal"][name]
    if modalities is not None and "image" not in modalities:
        return [
            Finding(
                "modality",
                "error",
                f"{model.name} ({name}) takes {', '.join(modalities)}, not pictures",
                required,
                "take a vision-language model",
            )
        ]
    limit = options.mapping("limit-mm-per-prompt").get("image")
    if isinstance(limit, dict):
        limit = limit.get("count")
    if options.values.get("language-model-only") is True or limit == 0:
        option = "limit-mm-per-prompt.image is 0" if limit == 0 else "language-model-only is set"
        return [
            Finding(
                "modality", "error", f"--{option}: every picture would be refused", "one picture a request", "remove it"
            )
        ]
    return []


def check_files(model: Model, options: Options) -> list[Finding]:
    """A tokenizer and a picture processor are beside the weights."""
    findings = []
    tokenizers = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "spiece.model", "tokenization.py")
    has_own = options.text("tokenizer") is None and options.values.get("skip-tokenizer-init") is not True
    if has_own and not model.has(*tokenizers):
        findings.append(
            Finding(
                "tokenizer",
                "error",
                f"{model.name} has no tokenizer.json or tokenizer.model",
                "a tokenizer",
                "copy it from the model that this one was made from, or set `tokenizer:`",
            )
        )
    elif has_own and is_cut(model, "tokenizer.json"):
        findings.append(
            Finding(
                "tokenizer",
                "error",
                f"{model.name}: tokenizer.json is cut",
                "the whole file",
                "fetch or copy it again",
            )
        )
    if not model.has("processor_config.json", "preprocessor_config.json", "tekken.json"):
        findings.append(
            Finding(
                "processor",
                "error",
                f"{model.name} has no processor_config.json or preprocessor_config.json",
                "a picture processor",
                "copy it from the model that this one was made from",
            )
        )
    return findings


def is_cut(model: Model, file: str) -> bool:
    """Whether a JSON file does not end as it began; reading it whole takes half a second for a large vocabulary."""
    if model.folder is None or not (path := model.folder / file).is_file():
        return False
    with path.open("rb") as content:
        content.seek(max(path.stat().st_size - 64, 0))
        return not content.read().rstrip().endswith(b"}")


def check_precision(config: dict[str, Any], options: Options) -> list[Finding]:
    """Data type and quantization go with the model and the device."""
    known = tables.read("architectures")
    findings = []
    text_type = str((config.get("text_config") or {}).get("model_type"))
    types = {str(config.get("model_type")), text_type}
    # Gemma 3n is not on vLLM's list; its activations overflow float16 all the same (see the presets).
    unfit = types & {*known["no_float16"], "gemma3n", "gemma3n_text"}
    if options.text("dtype") in ("float16", "half") and unfit:
        findings.append(
            Finding(
                "dtype",
                "error",
                f"--dtype {options.text('dtype')} for {sorted(unfit)[0]}: its activations overflow",
                "bfloat16 or float32",
                "set `dtype: bfloat16`",
            )
        )
    quantization = options.text("quantization")
    if quantization is not None and quantization not in known["quantization"]:
        findings.append(
            Finding(
                "quantization",
                "error",
                f"--quantization {quantization} is not known",
                f"one of {', '.join(known['quantization'])}",
                nearest(quantization, known["quantization"]),
            )
        )
    own = (config.get("quantization_config") or {}).get("quant_method")
    if quantization is not None and own and own.split("-")[0] not in quantization:
        findings.append(
            Finding(
                "quantization",
                "error",
                f"--quantization {quantization}, but the checkpoint is quantized with {own}",
                "the checkpoint's own method",
                "remove `quantization:`, it is found by itself",
            )
        )
    # Measured: vLLM 0.32 dies with fp8 on a CPU when it loads the weights.
    if options.device == "cpu" and "fp8" in (quantization or own or ""):
        findings.append(
            Finding("quantization", "error", "fp8 on a CPU", "a GPU with fp8, or bfloat16", "remove `quantization:`")
        )
    return findings
