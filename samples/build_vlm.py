"""Build the untrained tiny vision-language model: architecture, tokenizer, image processor and chat template.

It is an Idefics3, because vLLM serves that architecture with neither torchvision nor timm, and it is small enough to
be trained on one CPU core. `samples/train_vlm.py` trains what this module builds.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

from samples.drawn_questions import LETTERS, VALUES, options, question_text

JOB_FILE = Path(__file__).parent.parent / "pipeline" / "jobs" / "dog_breeds.yaml"

# Every crop becomes a square of this side, in pixels. A whole number of patches that is a power of two keeps the
# fractions from which Idefics3 derives patch positions exact, in bfloat16 too.
IMAGE_SIDE = 128
PATCH_SIDE = 16
# Side of the square of patches that the connector folds into one image token: (128 / 16 / 2)^2 = 16 tokens a picture.
PATCHES_PER_TOKEN_SIDE = 2
IMAGE_TOKENS = (IMAGE_SIDE // PATCH_SIDE // PATCHES_PER_TOKEN_SIDE) ** 2

# Longest sequence, in tokens. The longest prompt of the tests, a page of text, stays below it.
CONTEXT_LENGTH = 2048

PAD_TOKEN = "<|pad|>"
START_TOKEN = "<|im_start|>"
END_TOKEN = "<end_of_utterance>"
IMAGE_TOKEN = "<image>"
# The names of the image tokens are fixed by Idefics3Processor.
SPECIAL_TOKENS = (PAD_TOKEN, START_TOKEN, END_TOKEN, "<fake_token_around_image>", IMAGE_TOKEN, "<global-img>")

# Multiple-choice questions that the tokenizer learns from.
CHOICE_TEXTS = 3000

# Room for the 256 bytes, the special tokens and each word and JSON key of the job as one token.
VOCABULARY_SIZE = 768

# Cuts a text into the pieces that byte pairs are merged in. The first two alternatives make one piece of the JSON
# between two values and of a whole enum value, so that an answer takes 8 tokens instead of 25.
PIECES = Regex(r'\{"\w+":"|","\w+":"|"\}|[a-z]+(?: [a-z]+)*(?=")| ?\w+| ?[^\w\s]+|\s+')

# Parts keep the order in which the client sent them; the pipeline sends the picture before the question.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}:"
    "{% if message['content'] is string %} {{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% elif part['type'] == 'text' %} {{ part['text'] }}{% endif %}"
    "{% endfor %}"
    "{% endif %}"
    "<end_of_utterance>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


@dataclass(frozen=True)
class Job:
    """What the tiny model is trained to do: the question of a job file and the JSON Schema of its answers."""

    question: str
    schema: Mapping[str, Any]

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """The enum of each property, in the schema's order."""
        return {name: tuple(definition["enum"]) for name, definition in self.schema["properties"].items()}


def load_job(path: Path = JOB_FILE) -> Job:
    """Read the question and the schema of a job file. Each property of the schema has to be an enum."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    return Job(question=document["question"], schema=document["schema"])


def answer_text(answer: Mapping[str, str]) -> str:
    """Return an answer in the bytes that the server's grammar allows.

    vLLM with the backend xgrammar and `disable_any_whitespace` allows `,` and `:` as separators, without spaces.
    """
    return json.dumps(answer, separators=(",", ":"))


def tokenizer_texts(job: Job) -> Iterator[str]:
    """Yield the texts that decide which byte pairs become tokens: every possible answer, the job's question, and
    multiple-choice questions with their answers."""
    for values in itertools.product(*job.choices.values()):
        yield answer_text(dict(zip(job.choices, values, strict=True)))
        yield f"User: {job.question}{END_TOKEN}\nAssistant:"
    generator = random.Random(0)
    for number in range(CHOICE_TEXTS):
        about = ("breed", "coat_color")[number % 2]
        place = generator.randrange(len(LETTERS))
        text = question_text(about, options(about, generator.choice(VALUES[about]), place, generator))
        yield f"User: {text}{END_TOKEN}\nAssistant:"
        yield choice_answer(place)


def choice_answer(place: int) -> str:
    """The answer to a multiple-choice question whose right choice is at this place."""
    return answer_text({"answer": LETTERS[place]})


def build_tokenizer(job: Job) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer: it encodes any text, and an answer of the job in few tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(PIECES, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(tokenizer_texts(job), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START_TOKEN,
        eos_token=END_TOKEN,
        pad_token=PAD_TOKEN,
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Idefics3Processor:
    """Return the processor that resizes each picture to one square, without tiles and without padding."""
    image_processor = Idefics3ImageProcessorPil(
        do_image_splitting=False,
        size={"longest_edge": IMAGE_SIDE},
        max_image_size={"longest_edge": IMAGE_SIDE},
    )
    return Idefics3Processor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        image_seq_len=IMAGE_TOKENS,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Idefics3ForConditionalGeneration:
    """Return the model with random float32 weights, drawn from torch's global generator."""
    vision = Idefics3VisionConfig(
        image_size=IMAGE_SIDE,
        patch_size=PATCH_SIDE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
    )
    # 32 is the smallest head that vLLM's attention on CPU takes.
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = Idefics3Config(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        scale_factor=PATCHES_PER_TOKEN_SIDE,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    return Idefics3ForConditionalGeneration(config)


def prompt_ids(question: str, processor: Idefics3Processor) -> torch.Tensor:
    """Return the tokens, (length,), of the prompt that vLLM renders for one picture and a question."""
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    prompt = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    encoded = processor(text=prompt, images=[Image.new("RGB", (8, 8), "gray")], return_tensors="pt")
    ids: torch.Tensor = encoded["input_ids"][0]
    return ids


def save(model: Idefics3ForConditionalGeneration, processor: Idefics3Processor, directory: Path) -> None:
    """Write everything that vLLM reads: weights in bfloat16, configuration, tokenizer, processor, chat template."""
    tokenizer = processor.tokenizer
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.to(torch.bfloat16).save_pretrained(directory)
    processor.save_pretrained(directory)
