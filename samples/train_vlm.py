"""Train the tiny vision-language model on crops of drawn scenes, with one CPU thread.

Two stages, because a language model learns to read pictures slowly from its own loss alone: first the vision tower
and the connector learn to tell breed, coat and facing apart under linear heads that are thrown away; then the
whole model learns to write the answer of the job as JSON, and the letter of the right one of four choices. Runs in the
environment `detector-torch-cpu`.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import Idefics3ForConditionalGeneration, Idefics3Processor

from samples.build_vlm import (
    END_TOKEN,
    IMAGE_TOKENS,
    Job,
    answer_text,
    build_model,
    build_processor,
    build_tokenizer,
    load_job,
    prompt_ids,
    save,
)
from samples.choice_batches import Prompts, choice_batch
from samples.crops import LabelledCrop, labelled_crops
from samples.drawn_questions import LETTERS

DEFAULT_OUTPUT = Path(__file__).parent / "models" / "tiny-vlm"

# Scenes from these seeds on are for training and validation only: tests and the bundle draw theirs below.
TRAINING_SEED = 10_000_000
VALIDATION_SEED = 20_000_000

# How far a side of a training box may be moved, as a share of the box's width or height: more than the tiny
# detector's error, so that its boxes lie well inside of what was learned.
BOX_SPREAD = 0.08

# Width and height of the training scenes in pixels: most as the samples have them, some upright, finer or coarser.
SCENE_SIZES = ((640, 480), (640, 480), (640, 480), (480, 640), (960, 720), (400, 300))

# Other wordings of the job's question, so that an edited question still gets an answer.
OTHER_QUESTIONS = (
    "What breed is this dog?",
    "Which breed of dog is in the picture, and which colour is its coat?",
    "Name the dog's breed, its coat colour and the direction in which it looks. Answer as JSON.",
    "Describe this dog: breed, colour of its coat, side it faces.",
    "What is this?",
    "Look at the picture. What kind of dog is it, what is the main colour of its coat, does it face left or right?",
)

VISION_LEARNING_RATE = 1e-3
ANSWER_LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
LARGEST_GRADIENT_NORM = 1.0
BATCH = 64
WARM_UP_STEPS = 100


@dataclass(frozen=True)
class Examples:
    """Crops as the image processor resizes them, and the index of each right value in its enum.

    `pixels`: uint8, (crops, 3, side, side). `values`: int64, (crops, properties).
    """

    pixels: Tensor
    values: Tensor

    def __len__(self) -> int:
        return len(self.pixels)


def resized(jpeg: bytes, processor: Idefics3Processor) -> NDArray[np.uint8]:
    """Decode a JPEG and resize it with the model's own image processor: uint8, (1, 3, side, side)."""
    image = Image.open(io.BytesIO(jpeg))
    batch = processor.image_processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
    pixels: NDArray[np.uint8] = batch["pixel_values"][0].round().clip(0, 255).astype(np.uint8)
    return pixels


def to_examples(crops: Sequence[LabelledCrop], job: Job, processor: Idefics3Processor) -> Examples:
    """Turn labelled crops into what the model is trained on."""
    pixels = np.concatenate([resized(crop.jpeg, processor) for crop in crops])
    values = [[choices.index(crop.answer[name]) for name, choices in job.choices.items()] for crop in crops]
    return Examples(pixels=torch.from_numpy(pixels), values=torch.tensor(values))


def normalized(pixels: Tensor) -> Tensor:
    """Scale uint8 pixels to [-1, 1], as the image processor does, with the axis of pictures per prompt added."""
    return (pixels.float() / 127.5 - 1.0).unsqueeze(1)


def augmented(batch: Examples, job: Job) -> tuple[Tensor, Tensor]:
    """Return normalized pixels and values with mild random changes of light, colour and noise, half of them mirrored.

    A mirrored dog faces the other side, so its value changes with it.
    """
    facing = list(job.choices).index("facing")
    left, right = (job.choices["facing"].index(side) for side in ("left", "right"))
    pixels, values = normalized(batch.pixels), batch.values.clone()
    count = len(pixels)

    mirrored = torch.rand(count) < 0.5
    pixels[mirrored] = pixels[mirrored].flip(-1)
    values[mirrored, facing] = left + right - values[mirrored, facing]

    gain = 1.0 + (torch.rand(count, 1, 1, 1, 1) - 0.5) * 0.2
    tint = 1.0 + (torch.rand(count, 1, 3, 1, 1) - 0.5) * 0.06
    noise = torch.randn_like(pixels) * torch.rand(count, 1, 1, 1, 1) * 0.04
    return ((pixels + 1.0) * gain * tint - 1.0 + noise).clamp(-1.0, 1.0), values


def answer_table(job: Job, processor: Idefics3Processor) -> Tensor:
    """Return the tokens of every possible answer, int64, (values of each property ..., tokens of an answer).

    Raises ValueError when two answers differ in length: an enum value is then not one token of the tokenizer.
    """
    choices = job.choices
    texts = [
        answer_text(dict(zip(choices, values, strict=True))) + END_TOKEN
        for values in itertools.product(*choices.values())
    ]
    tokens = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
    lengths = {len(answer) for answer in tokens}
    if len(lengths) != 1:
        raise ValueError(
            f"answers take {min(lengths)} to {max(lengths)} tokens, expected one length: "
            "raise VOCABULARY_SIZE in samples/build_vlm.py until each enum value of the job is one token"
        )
    return torch.tensor(tokens).reshape(*map(len, choices.values()), -1)


def descend(
    name: str, parameters: list[nn.Parameter], learning_rate: float, steps: int, loss_of_step: Callable[[], Tensor]
) -> None:
    """Minimise a loss in `steps` steps of AdamW, whose rate rises for a while and then falls along a cosine to 0."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / WARM_UP_STEPS) * 0.5 * (1.0 + math.cos(math.pi * step / steps)),
    )
    started = time.monotonic()
    for step in range(steps):
        loss = loss_of_step()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT_NORM)
        optimizer.step()
        scheduler.step()
        if step % 50 == 0 or step == steps - 1:
            elapsed = time.monotonic() - started
            print(f"{name}: step {step} of {steps}, loss {loss.item():.4f}, {elapsed:.0f} s", flush=True)


def train_vision(model: Idefics3ForConditionalGeneration, examples: Examples, job: Job, steps: int) -> None:
    """Teach the vision tower and the connector to tell the values of each property apart."""
    width = model.config.text_config.hidden_size
    counts = [len(choices) for choices in job.choices.values()]
    # Heads that see where each token is find the head and the tail within minutes; heads on the mean, which alone
    # stay at chance for `facing`, then make each token say all of it, which the language model reads with ease.
    heads_on_tokens = nn.ModuleList(nn.Linear(IMAGE_TOKENS * width, count) for count in counts)
    heads_on_mean = nn.ModuleList(nn.Linear(width, count) for count in counts)

    def loss_of_step() -> Tensor:
        chosen = torch.randint(len(examples), (BATCH,))
        pixels, values = augmented(Examples(examples.pixels[chosen], examples.values[chosen]), job)
        tokens = torch.stack(model.model.get_image_features(pixels, return_dict=True).pooler_output)
        losses = [
            nn.functional.cross_entropy(head(features), values[:, index])
            for heads, features in ((heads_on_tokens, tokens.flatten(1)), (heads_on_mean, tokens.mean(dim=1)))
            for index, head in enumerate(heads)
        ]
        return torch.stack(losses).sum()

    model.train()
    modules = (model.model.vision_model, model.model.connector, heads_on_tokens, heads_on_mean)
    parameters = [parameter for module in modules for parameter in module.parameters()]
    descend("vision", parameters, VISION_LEARNING_RATE, steps, loss_of_step)


def train_answers(
    model: Idefics3ForConditionalGeneration, processor: Idefics3Processor, examples: Examples, job: Job, steps: int
) -> None:
    """Teach the model to write the job's answer, and the letter of the right one of four choices.

    Three of four steps ask multiple-choice questions. Alone from the letter's loss the model stays at chance: heads
    that are thrown away make the first layer mark, at each choice, its letter and whether the picture shows it. With
    them, the second layer learns to write the letter of the marked one within 600 steps.
    """
    answers = answer_table(job, processor)
    own_question = prompt_ids(job.question, processor)
    other_questions = [prompt_ids(question, processor) for question in OTHER_QUESTIONS]
    prompts, generator = Prompts(processor), random.Random(0)
    width = model.config.text_config.hidden_size
    shown_head, letter_head = nn.Linear(width, 1), nn.Linear(width, len(LETTERS))

    def job_loss(pixels: Tensor, values: Tensor) -> Tensor:
        is_own = bool(torch.rand(()) < 0.5)
        prompt = own_question if is_own else other_questions[int(torch.randint(len(other_questions), ()))]
        repeated = prompt.expand(len(values), -1)
        targets = answers[tuple(values.T)]
        labels = torch.cat([torch.full_like(repeated, -100), targets], dim=1)
        loss: Tensor = model(input_ids=torch.cat([repeated, targets], dim=1), pixel_values=pixels, labels=labels).loss
        return loss

    def choice_loss(pixels: Tensor, values: Tensor) -> Tensor:
        batch = choice_batch(values, job, prompts, generator)
        output = model(input_ids=batch.ids, pixel_values=pixels, labels=batch.labels, output_hidden_states=True)
        rows = torch.arange(len(values)).unsqueeze(1)
        choices = output.hidden_states[1][rows, batch.choices]
        letters = torch.arange(len(LETTERS)).repeat(len(values))
        shown = nn.functional.cross_entropy(shown_head(choices).squeeze(-1), batch.right)
        lettered = nn.functional.cross_entropy(letter_head(choices).flatten(0, 1), letters)
        loss: Tensor = output.loss + shown + lettered
        return loss

    def loss_of_step() -> Tensor:
        chosen = torch.randint(len(examples), (BATCH,))
        pixels, values = augmented(Examples(examples.pixels[chosen], examples.values[chosen]), job)
        return job_loss(pixels, values) if bool(torch.rand(()) < 0.25) else choice_loss(pixels, values)

    model.train()
    parameters = [each for each in model.parameters() if each.requires_grad]
    heads = [*shown_head.parameters(), *letter_head.parameters()]
    descend("answers", [*parameters, *heads], ANSWER_LEARNING_RATE, steps, loss_of_step)


def choice_accuracy(
    model: Idefics3ForConditionalGeneration, processor: Idefics3Processor, examples: Examples, job: Job
) -> float:
    """Return the share of multiple-choice questions, one about each crop, whose right letter is the likeliest."""
    model.eval()
    prompts, generator, right = Prompts(processor), random.Random(1), 0
    for start in range(0, len(examples), BATCH):
        pixels, values = examples.pixels[start : start + BATCH], examples.values[start : start + BATCH]
        batch = choice_batch(values, job, prompts, generator)
        with torch.no_grad():
            likeliest = model(input_ids=batch.ids, pixel_values=normalized(pixels)).logits[:, :-1].argmax(-1)
        wanted = batch.labels[:, 1:]
        right += int(((likeliest == wanted) | (wanted == -100)).all(dim=1).sum())
    return right / len(examples)


def copy_vision(model: Idefics3ForConditionalGeneration, folder: Path) -> None:
    """Take the vision tower and the connector of a checkpoint, and keep them as they are."""
    known = Idefics3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    for name in ("vision_model", "connector"):
        part = getattr(model.model, name)
        part.load_state_dict(getattr(known.model, name).state_dict())
        part.requires_grad_(False)


def accuracy(
    model: Idefics3ForConditionalGeneration, processor: Idefics3Processor, examples: Examples, job: Job
) -> dict[str, float]:
    """Return the share of right values per property, from freely generated answers to the job's question."""
    model.eval()
    prompt = prompt_ids(job.question, processor)
    right = dict.fromkeys(job.choices, 0)
    for start in range(0, len(examples), BATCH):
        pixels, values = examples.pixels[start : start + BATCH], examples.values[start : start + BATCH]
        prompts = prompt.expand(len(pixels), -1)
        generated = model.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            pixel_values=normalized(pixels),
            max_new_tokens=16,
            do_sample=False,
        )
        texts = processor.tokenizer.batch_decode(generated[:, len(prompt) :], skip_special_tokens=True)
        for text, row in zip(texts, values.tolist(), strict=True):
            try:
                answer = json.loads(text)
            except json.JSONDecodeError:
                continue
            for (name, choices), value in zip(job.choices.items(), row, strict=True):
                right[name] += answer.get(name) == choices[value]
    return {name: count / len(examples) for name, count in right.items()}


def drawn_examples(
    name: str, count: int, boxes_per_dog: int, seed: int, job: Job, processor: Idefics3Processor
) -> Examples:
    """Draw scenes from `seed` on until they give `count` crops."""
    started = time.monotonic()
    crops = list(itertools.islice(labelled_crops(seed, BOX_SPREAD, boxes_per_dog, SCENE_SIZES), count))
    examples = to_examples(crops, job, processor)
    print(f"{name}: {count} crops drawn in {time.monotonic() - started:.0f} s", flush=True)
    return examples


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the tiny vision-language model on crops of drawn scenes.")
    parser.add_argument(
        "--output", type=Path, default=DEFAULT_OUTPUT, help="checkpoint to write (default: %(default)s)"
    )
    parser.add_argument("--crops", type=int, default=16000, help="crops to train on (default: %(default)s)")
    parser.add_argument("--boxes-per-dog", type=int, default=2, help="crops of each dog (default: %(default)s)")
    parser.add_argument("--vision-steps", type=int, default=1000, help="steps of stage one (default: %(default)s)")
    parser.add_argument("--answer-steps", type=int, default=1200, help="steps of stage two (default: %(default)s)")
    parser.add_argument(
        "--vision-from", type=Path, help="keep the vision tower and the connector of this checkpoint, without stage one"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches (default: %(default)s)")
    arguments = parser.parse_args()

    # One thread: two threads that compete for cores with another process were four times slower.
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    job = load_job()
    processor = build_processor(build_tokenizer(job))
    model = build_model(processor.tokenizer)

    examples = drawn_examples("training", arguments.crops, arguments.boxes_per_dog, TRAINING_SEED, job, processor)
    validation = drawn_examples("validation", 500, 1, VALIDATION_SEED, job, processor)
    if arguments.vision_from:
        copy_vision(model, arguments.vision_from)
    else:
        train_vision(model, examples, job, arguments.vision_steps)
    train_answers(model, processor, examples, job, arguments.answer_steps)

    save(model, processor, arguments.output)
    shares = accuracy(model, processor, validation, job)
    print("right answers on crops that were not trained on, weights in bfloat16:")
    for name, share in shares.items():
        print(f"  {name}: {share:.1%}")
    print(f"  multiple choice: {choice_accuracy(model, processor, validation, job):.1%}")


if __name__ == "__main__":
    main()
