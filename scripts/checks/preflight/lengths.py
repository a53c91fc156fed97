"""Whether image, question and answer fit the model length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from scripts.findings import Finding, error, warning
from scripts.models.model_files import Model, text_config, truthy
from scripts.vllm.options import Options

# Characters per token of a question: at most about 6 with the tokenizers in use, 2 with poor ones.
TYPICAL_CHARACTERS = 4.0
MOST_CHARACTERS = 7.0
# For the role names and markers of a chat template.
TEMPLATE_TOKENS = 10

POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
# Kinds of rotary scaling that leave config.json's length unchanged.
PLAIN_ROPE = {None, "default", "llama3", "mrope", "proportional", "longrope", "su"}


def trained_length(config: dict[str, Any]) -> int | None:
    """The longest sequence that the model was trained for, in tokens; None where config.json leaves it open."""
    text = text_config(config)
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    kinds = [part for part in rope.values() if isinstance(part, dict)] or [rope]
    if any(kind.get("rope_type", kind.get("type")) not in PLAIN_ROPE for kind in kinds):
        return None
    lengths = [text[name] for name in POSITIONS if isinstance(text.get(name), int)]
    return min(lengths) if lengths else None


def image_tokens(
    model: Model, config: dict[str, Any], max_side: int, processing: Mapping[str, Any] | None = None
) -> int | None:
    """Tokens of one square crop of `max_side` pixels; None where the files leave it open.

    `processing`: settings of the image processor (mm_processor_kwargs) in place of those of its files.
    """
    for name in ("vision_soft_tokens_per_image", "mm_tokens_per_image", "image_seq_length"):
        if isinstance(config.get(name), int):
            return int(config[name])
    processor = model.read_json("processor_config.json") or {}
    images = processor.get("image_processor") or model.read_json("preprocessor_config.json") or {}
    images = {**images, **(processing or {})}
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
) -> Iterator[Finding]:
    """One request of the job fits the model length, and the model length fits the model.

    `longest` is the length that the model was trained for, `picture` the tokens of one crop; None where unknown.
    """
    wrong = partial(error, "length")
    asked = options.number("max-model-len")
    asked = None if asked is None or asked < 0 else int(asked)
    if asked and longest and asked > longest and not truthy(options.environment.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN")):
        found = f"--max-model-len {asked} is more than the model was trained for"
        yield wrong(found, f"at most {longest}", f"set `max-model-len: {longest}` or less")
    length = asked or longest
    if length is None:
        return
    fewest = (picture or 1) + math.ceil(len(question) / MOST_CHARACTERS) + max_tokens
    likely = (picture or 0) + math.ceil(len(question) / TYPICAL_CHARACTERS) + TEMPLATE_TOKENS + max_tokens
    if fewest > length or likely > length:
        needs = f"at least {fewest}" if fewest > length else f"about {likely}"
        summands = f"{picture or 'unknown'} of the image, the question, {max_tokens} of the answer"
        found = f"job {job} needs {needs} tokens ({summands}), and the model length is {length}"
        enough = 2 ** math.ceil(math.log2(max(fewest, likely) * 1.25))
        remedy = f"set `max-model-len: {enough}`, or lower max_tokens in the job file"
        say = wrong if fewest > length else partial(warning, "length")
        yield say(found, "a request within the model length; vLLM refuses a longer one", remedy)
    batch = options.number("max-num-batched-tokens")
    if batch and picture and batch < picture:
        found = f"--max-num-batched-tokens {batch:.0f} is less than one image ({picture} tokens)"
        yield wrong(found, "a step that holds an image", f"set `max-num-batched-tokens: {8 * picture}`")
