"""The tiny vision-language model's files agree with each other and with the job. Needs no model library."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest

from pipeline import job as jobs
from samples.scenes import BREEDS

ROOT = Path(__file__).parent.parent.parent
MODEL = ROOT / "samples" / "models" / "tiny-vlm"

LARGEST_WEIGHTS_BYTES = 20_000_000
MOST_PARAMETERS = 5_000_000


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((MODEL / name).read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def vocabulary() -> dict[str, int]:
    """Tokens, as the byte-level alphabet spells them, and their ids; special tokens included."""
    tokenizer = read("tokenizer.json")
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    return vocabulary | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray[Any, np.dtype[np.uint16]]]:
    """The tensors of model.safetensors as the bits of their bfloat16 values."""
    content = (MODEL / "model.safetensors").read_bytes()
    (header_length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + header_length])
    header.pop("__metadata__", None)
    assert {entry["dtype"] for entry in header.values()} == {"BF16"}
    data = content[8 + header_length :]
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], dtype="<u2").reshape(entry["shape"])
        for name, entry in header.items()
    }


def render(messages: list[dict[str, Any]], add_generation_prompt: bool = True) -> str:
    """Render the chat template as transformers and vLLM do, in a sandbox with these trimming rules."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    template = environment.from_string((MODEL / "chat_template.jinja").read_text(encoding="utf-8"))
    return template.render(
        messages=messages,
        add_generation_prompt=add_generation_prompt,
        bos_token=read("tokenizer_config.json")["bos_token"],
    )


def spelled(text: str) -> str:
    """Spell an ASCII text in the byte-level alphabet: a space is Ġ, the rest stays as it is."""
    return text.replace(" ", "Ġ")


@pytest.mark.parametrize(
    "name",
    [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ],
)
def test_every_file_that_the_server_reads_is_there(name: str) -> None:
    assert (MODEL / name).stat().st_size > 0


def test_the_weights_are_small(weights: dict[str, np.ndarray[Any, np.dtype[np.uint16]]]) -> None:
    assert (MODEL / "model.safetensors").stat().st_size <= LARGEST_WEIGHTS_BYTES
    assert sum(tensor.size for tensor in weights.values()) <= MOST_PARAMETERS


def test_every_weight_is_finite(weights: dict[str, np.ndarray[Any, np.dtype[np.uint16]]]) -> None:
    exponent = 0x7F80  # all ones in an infinity or a NaN
    assert [name for name, bits in weights.items() if np.any((bits & exponent) == exponent)] == []


def test_the_architecture_is_the_one_that_needs_no_extra_vision_libraries() -> None:
    assert read("config.json")["architectures"] == ["Idefics3ForConditionalGeneration"]


def test_the_vocabulary_has_an_embedding_for_each_token(
    vocabulary: dict[str, int], weights: dict[str, np.ndarray[Any, np.dtype[np.uint16]]]
) -> None:
    size = read("config.json")["text_config"]["vocab_size"]
    assert sorted(vocabulary.values()) == list(range(size))
    assert len(weights["model.text_model.embed_tokens.weight"]) == size


def test_special_tokens_have_the_ids_that_the_configuration_names(vocabulary: dict[str, int]) -> None:
    config, generation, names = read("config.json"), read("generation_config.json"), read("tokenizer_config.json")
    assert config["image_token_id"] == vocabulary["<image>"]
    for role in ("bos", "eos", "pad"):
        identifier = vocabulary[names[f"{role}_token"]]
        assert config["text_config"][f"{role}_token_id"] == identifier
        assert generation[f"{role}_token_id"] == identifier


def test_a_picture_takes_as_many_tokens_as_the_connector_makes_of_it() -> None:
    config, processor = read("config.json"), read("processor_config.json")
    vision = config["vision_config"]
    side = vision["image_size"] // vision["patch_size"] // config["scale_factor"]
    assert processor["image_seq_len"] == side**2
    images = processor["image_processor"]
    assert images["do_image_splitting"] is False
    assert images["max_image_size"]["longest_edge"] == vision["image_size"]


def test_each_value_of_the_job_is_one_token(vocabulary: dict[str, int]) -> None:
    """So an answer is short, and each value is decided in one step."""
    values = [value for definition in jobs.load("dog_breeds").properties.values() for value in definition["enum"]]
    assert [value for value in values if spelled(value) not in vocabulary] == []


def test_the_job_knows_every_drawn_breed_and_coat() -> None:
    properties = jobs.load("dog_breeds").properties
    assert set(BREEDS) <= set(properties["breed"]["enum"])
    assert {color for breed in BREEDS.values() for color in breed.coats} <= set(properties["coat_color"]["enum"])


def test_every_byte_has_a_token_so_any_text_can_be_encoded(vocabulary: dict[str, int]) -> None:
    assert read("tokenizer.json")["pre_tokenizer"]["pretokenizers"][-1]["type"] == "ByteLevel"
    one_character = [token for token in vocabulary if len(token) == 1]
    assert len(one_character) == 256


def test_the_template_puts_the_picture_before_the_question() -> None:
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What breed?"}]}]
    assert render(messages) == ("<|im_start|>User:<image> What breed?<end_of_utterance>\nAssistant:")


def test_the_template_takes_a_question_without_a_picture() -> None:
    assert render([{"role": "user", "content": "What breed?"}]) == (
        "<|im_start|>User: What breed?<end_of_utterance>\nAssistant:"
    )


def test_the_template_takes_a_whole_conversation() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Answer as JSON."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What breed?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "{}"}]},
    ]
    assert render(messages, add_generation_prompt=False) == (
        "<|im_start|>System: Answer as JSON.<end_of_utterance>\n"
        "User:<image> What breed?<end_of_utterance>\n"
        "Assistant: {}<end_of_utterance>\n"
    )
