"""Batches of multiple-choice questions about drawn dogs, for the training of the tiny vision-language model."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Idefics3Processor

from samples.build_vlm import END_TOKEN, IMAGE_TOKEN, Job, choice_answer, prompt_ids
from samples.drawn_questions import LETTERS, QUESTIONS, options, question_text


class Prompts:
    """Prompts of one picture and a text, as tokens; the picture's tokens are the same in all of them."""

    def __init__(self, processor: Idefics3Processor) -> None:
        self.tokenizer = processor.tokenizer
        ids = prompt_ids("?", processor)
        mark = int((ids == self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)).nonzero()[-1])
        self.picture = ids[: mark + 2]  # up to the token that closes the picture
        assert torch.equal(self.of("?"), ids)

    def tokens(self, text: str) -> Tensor:
        """The tokens of a text, int64, (length,)."""
        return torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def of(self, question: str) -> Tensor:
        """The same as `prompt_ids`, without the processor, which takes a millisecond."""
        return torch.cat([self.picture, self.tokens(f" {question}{END_TOKEN}\nAssistant:")])


@dataclass(frozen=True)
class ChoiceBatch:
    """Multiple-choice questions with their answers, padded: int64, (questions, length)."""

    ids: Tensor
    labels: Tensor
    """The answers' tokens; -100 elsewhere."""
    choices: Tensor
    """Where the last token of each choice is, (questions, 4)."""
    right: Tensor
    """The place of the right choice, (questions,)."""


def choice_batch(values: Tensor, job: Job, prompts: Prompts, generator: random.Random) -> ChoiceBatch:
    """A question about each crop, whose `values` are indices in the enums of the job."""
    newline = int(prompts.tokens("\n")[0])
    names = list(job.choices)
    rows, ends, places = [], [], []
    for row in values.tolist():
        about = generator.choice(list(QUESTIONS))
        place = generator.randrange(len(LETTERS))
        right = job.choices[about][row[names.index(about)]]
        prompt = prompts.of(question_text(about, options(about, right, place, generator)))
        rows.append((prompt, prompts.tokens(choice_answer(place) + END_TOKEN)))
        # The third to sixth line of the question are its choices.
        ends.append((prompt == newline).nonzero().flatten()[2:6] - 1)
        places.append(place)
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), length), prompts.tokenizer.pad_token_id)
    labels = torch.full((len(rows), length), -100)
    for number, (prompt, answer) in enumerate(rows):
        span = slice(len(prompt), len(prompt) + len(answer))
        ids[number, : len(prompt)], ids[number, span], labels[number, span] = prompt, answer, answer
    return ChoiceBatch(ids, labels, torch.stack(ends), torch.tensor(places))
