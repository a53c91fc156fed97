"""Whether picture, question and answer fit the model length."""

from __future__ import annotations

import math
from typing import Any

from scripts.findings import Finding
from scripts.models.model_files import Model, text_config, truthy
from scripts.vllm.options import Options

# Characters per token of a question in words: no tokenizer in use takes more than about 6, poor ones take 2.
TYPICAL_CHARACTERS = 4.0
MOST_CHARACTERS = 7.0
# Role names and markers that a chat template adds.
TEMPLATE_TOKENS = 10

POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
# Kinds of rotary scaling that leave the length as config.json has it.
PLAIN_ROPE = {None, "default", "llama3", "mrope", "proportional", "longrope", "su"}


def trained_length(config: dict[str, Any]) -> int | None:
    """The longest sequence that the model was made for; None where config.json does not tell for sure."""
    text = text_config(config)
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    kinds = [part for part in rope.values() if isinstance(part, dict)] or [rope]
    if any(kind.get("rope_type", kind.get("type")) not in PLAIN_ROPE for kind in kinds):
        return None
    lengths = [text[name] for name in POSITIONS if isinstance(text.get(name), int)]
    return min(lengths) if lengths else None


def image_tokens(model: Model, config: dict[str, Any], max_side: int) -> int | None:
    """Tokens of one square crop of `max_side` pixels; None where the files do not tell."""
    for name in ("vision_soft_tokens_per_image", "mm_tokens_per_image", "image_seq_length"):
        if isinstance(config.get(name), int):
            return int(config[name])
    processor = model.read_json("processor_config.json") or {}
    images = processor.get("image_processor") or model.read_json("preprocessor_config.json") or {}
    vision = config.get("vision_config") or {}
    patch = vision.get("patch_size") or images.get("patch_size")
    if isinstance(sequence := processor.get("image_seq_len"), int):  # Idefics3, SmolVLM
        longest = (images.get("size") or {}).get("longest_edge")
        tile = (images.get("max_image_size") or {}).get("longest_edge")
        if not images.get("do_image_splitting", True) or not (longest and tile):
            return int(sequence)
        return int(sequence) * (math.ceil(float(longest) / float(tile)) ** 2 + 1)
    if isinstance(patch, int) and (merge := images.get("merge_size") or vision.get("spatial_merge_size")):  # Qwen-VL
        pixels = min(max_side**2, images.get("max_pixels") or (images.get("size") or {}).get("longest_edge") or 1 << 62)
        return math.ceil(int(pixels) / (patch * int(merge)) ** 2)
    if (
        isinstance(patch, int)
        and isinstance(size := vision.get("image_size"), int)
        and "llava" in str(config.get("model_type"))
    ):
        return int(size // patch) ** 2
    return None


def check_lengths(
    options: Options, longest: int | None, picture: int | None, question: str, max_tokens: int, job: str
) -> list[Finding]:
    """One request of the job fits the model length, and that fits the model.

    `longest` is what the model was made for, `picture` a crop's tokens; None where they are not known.
    """
    findings = []
    asked = options.number("max-model-len")
    asked = None if asked is None or asked < 0 else int(asked)
    if asked and longest and asked > longest and not truthy(options.environment.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN")):
        findings.append(
            Finding(
                "length",
                "error",
                f"--max-model-len {asked} is more than the model was made for",
                f"at most {longest}",
                f"set `max-model-len: {longest}` or less",
            )
        )
    length = asked or longest
    if length is None:
        return findings
    fewest = (picture or 1) + math.ceil(len(question) / MOST_CHARACTERS) + max_tokens
    likely = (picture or 0) + math.ceil(len(question) / TYPICAL_CHARACTERS) + TEMPLATE_TOKENS + max_tokens
    parts = f"{picture if picture else 'an unknown number of'} image tokens, the question, {max_tokens} of answer"
    if fewest > length or likely > length:
        needs = f"at least {fewest}" if fewest > length else f"about {likely}"
        findings.append(
            Finding(
                "length",
                "error" if fewest > length else "warning",
                f"job {job} needs {needs} tokens ({parts}), and the model length is {length}",
                "one request within the model length, or each is refused",
                f"set `max-model-len: {2 ** math.ceil(math.log2(max(fewest, likely) * 1.25))}`, "
                "or lower max_tokens in the job file",
            )
        )
    batch = options.number("max-num-batched-tokens")
    if batch and picture and batch < picture:
        findings.append(
            Finding(
                "length",
                "error",
                f"--max-num-batched-tokens {batch:.0f} is less than one picture ({picture} tokens)",
                "a step that holds a picture",
                f"set `max-num-batched-tokens: {8 * picture}`",
            )
        )
    return findings
