"""Whether this vLLM knows the model's architecture, and whether that architecture takes images."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from scripts.findings import Finding, error, warning
from scripts.models.model_files import Model
from scripts.vllm import tables
from scripts.vllm.options import Options, nearest

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "spiece.model", "tokenization.py")
PROCESSORS = ("processor_config.json", "preprocessor_config.json", "tekken.json")


def check_architecture(model: Model, config: dict[str, Any], options: Options) -> Iterator[Finding]:
    """This version of vLLM has the architecture, and it takes images."""
    known = tables.read("architectures")
    wrong = partial(error, "architecture")
    names, model_type = config.get("architectures") or [], str(config.get("model_type"))
    required = f"one of the {len(known['supported'])} architectures of vLLM {known['version']}"
    if not names:
        found, remedy = f"{model.name}: config.json names no architecture", "take a checkpoint saved with its config"
        yield wrong(found, "`architectures` in config.json", remedy)
    elif (name := str(names[0])) in known["supported"]:
        yield from check_images(model, name, known["multimodal"], options)
    elif version := known["removed"].get(name):
        yield wrong(f"vLLM removed {name} after version {version}", required, "take another model")
    elif "auto_map" in config:
        remedy = "take another model: this one runs code from its repository, which the presets do not trust"
        yield wrong(f"{name} (model_type {model_type}) is unknown", required, remedy)
    elif model_type in known["model_types"]:
        found = f"vLLM has no {name} of its own and will try to run it through Transformers"
        remedy = "check with `make preflight FULL=1` whether it takes images, or take another model"
        yield warning("architecture", found, required, remedy)
    else:
        remedy = f"take another model; {nearest(name, known['supported'])}"
        yield wrong(f"{name} (model_type {model_type}) is unknown", required, remedy)


def check_images(model: Model, name: str, multimodal: dict[str, list[str] | None], options: Options) -> list[Finding]:
    """The architecture takes images, and the options allow one."""
    wrong = partial(error, "modality")
    required, remedy = "a model that takes images: the job sends crops", "take a vision-language model"
    if name not in multimodal:
        return [wrong(f"{model.name} ({name}) takes text only and refuses every request", required, remedy)]
    modalities = multimodal[name]
    if modalities is not None and "image" not in modalities:
        return [wrong(f"{model.name} ({name}) takes {', '.join(modalities)}, but no images", required, remedy)]
    limit = options.mapping("limit-mm-per-prompt").get("image")
    limit = limit.get("count") if isinstance(limit, dict) else limit
    if limit == 0 or options.values.get("language-model-only") is True:
        option = "limit-mm-per-prompt.image is 0" if limit == 0 else "language-model-only is set"
        return [wrong(f"--{option}: vLLM would refuse every image", "one image a request", "remove the option")]
    return []


def check_files(model: Model, options: Options) -> Iterator[Finding]:
    """The tokenizer and the image processor stand beside the weights."""
    copy = "copy it from the model that this one was made from"
    if options.text("tokenizer") is None and options.values.get("skip-tokenizer-init") is not True:
        if not model.has(*TOKENIZERS):
            found = f"{model.name} has no tokenizer.json or tokenizer.model"
            yield error("tokenizer", found, "a tokenizer", f"{copy}, or set `tokenizer:`")
        elif is_cut(model, "tokenizer.json"):
            found = f"{model.name}: tokenizer.json is incomplete"
            yield error("tokenizer", found, "the whole file", "fetch it again, or copy it again")
    if not model.has(*PROCESSORS):
        found = f"{model.name} has no processor_config.json or preprocessor_config.json"
        yield error("processor", found, "an image processor", copy)


def is_cut(model: Model, file: str) -> bool:
    """Whether a JSON file lacks its end; to parse a large vocabulary would take half a second."""
    if model.folder is None or not (path := model.folder / file).is_file():
        return False
    with path.open("rb") as content:
        content.seek(max(path.stat().st_size - 64, 0))
        return not content.read().rstrip().endswith(b"}")


def check_precision(config: dict[str, Any], options: Options) -> Iterator[Finding]:
    """Data type and quantization suit the model and the device."""
    known = tables.read("architectures")
    types = {str(config.get("model_type")), str((config.get("text_config") or {}).get("model_type"))}
    # Gemma 3n is not on vLLM's list; its activations overflow float16 all the same (see the presets).
    overflowing = sorted(types & {*known["no_float16"], "gemma3n", "gemma3n_text"})
    if options.text("dtype") in ("float16", "half") and overflowing:
        found = f"--dtype {options.text('dtype')}: the activations of {overflowing[0]} overflow"
        yield error("dtype", found, "bfloat16 or float32", "set `dtype: bfloat16`")
    wrong = partial(error, "quantization")
    chosen, own = options.text("quantization"), (config.get("quantization_config") or {}).get("quant_method")
    if chosen is not None and chosen not in known["quantization"]:
        near = nearest(chosen, known["quantization"])
        yield wrong(f"--quantization {chosen} is unknown", f"one of {', '.join(known['quantization'])}", near)
    if chosen is not None and own and own.split("-")[0] not in chosen:
        found = f"--quantization {chosen}, but the checkpoint is quantized with {own}"
        yield wrong(found, "the checkpoint's own method", "remove `quantization:`: vLLM reads it from the checkpoint")
    # Measured: vLLM 0.32 dies with fp8 on a CPU when it loads the weights.
    if options.device == "cpu" and "fp8" in (chosen or own or ""):
        yield wrong("fp8 on a CPU", "a GPU with fp8, or bfloat16", "remove `quantization:`")
