"""Labels as an open-vocabulary model reads them: labels to tokens, the model's scores back to labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from services.detector.messages import Frame
from services.detector.pretrained.network import Network

Tokens = list[int]
Prompt = Mapping[str, Tokens]
"""The labels of one pass over one image, and the tokens of each."""


class BadLabel(Exception):
    """The model cannot read a label; the message names it and the reason."""


class Prompts(Protocol):
    """How a family takes labels."""

    def tokens(self, label: str) -> Tokens:
        """The tokens of one label.

        Raises:
            BadLabel: nothing of it is left, parts of it are unknown, or it is too long.
        """
        ...

    def passes(self, labels: Prompt) -> list[Prompt]:
        """The labels in portions that fit into one pass, in their order."""
        ...

    def longest(self) -> Prompt:
        """The largest portion that `passes` returns, for a warm-up."""
        ...

    def inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """The model's text inputs for a batch, one prompt for each image."""
        ...

    def scores(self, logits: Any, prompts: Sequence[Prompt]) -> list[npt.NDArray[np.float32]]:
        """Scores `(queries, labels)` of each image, 0..1, the labels in the order of its prompt."""
        ...

    def scale(self, frame: Frame) -> tuple[float, float]:
        """Width and height, in pixels of the upright image, of what the model's boxes are shares of."""
        ...


class PhrasePrompts:
    """Grounding DINO and its relatives: one text for each image, labels apart by full stops, a score for each token.

    A phrase's words see each other and no other phrase. A label's score is the greatest of its own tokens' scores.
    """

    # Full stops and question marks end a phrase (the model's own list of such tokens).
    ENDS = str.maketrans(".?", "  ")

    def __init__(self, network: Network) -> None:
        """Take the network's tokenizer."""
        import torch

        self._torch = torch
        self._tokenizer = network.tokenizer
        config = network.model.config
        # The rest of a longer text would be cut off.
        self._limit = min(config.max_text_len, config.text_config.max_position_embeddings)
        self._end = self._tokenizer.convert_tokens_to_ids(".")

    def tokens(self, label: str) -> Tokens:
        """See `Prompts.tokens`."""
        return _tokens(self._tokenizer, label, label.lower().translate(self.ENDS), self._limit - 3)

    def passes(self, labels: Prompt) -> list[Prompt]:
        """See `Prompts.passes`; each label takes its tokens and a full stop, the text two more."""
        portions: list[dict[str, Tokens]] = []
        left = 0
        for label, tokens in labels.items():
            if len(tokens) + 1 > left:
                portions.append({})
                left = self._limit - 2
            portions[-1][label] = tokens
            left -= len(tokens) + 1
        return list(portions)

    def longest(self) -> Prompt:
        """See `Prompts.longest`."""
        return {str(index): [self._tokenizer.unk_token_id] for index in range((self._limit - 2) // 2)}

    def inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """See `Prompts.inputs`."""
        texts = [
            [
                self._tokenizer.cls_token_id,
                *(token for tokens in prompt.values() for token in (*tokens, self._end)),
                self._tokenizer.sep_token_id,
            ]
            for prompt in prompts
        ]
        padded = self._tokenizer.pad({"input_ids": texts}, return_tensors="pt")
        kinds = self._torch.zeros_like(padded["input_ids"])
        return {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"], "token_type_ids": kinds}

    def scores(self, logits: Any, prompts: Sequence[Prompt]) -> list[npt.NDArray[np.float32]]:
        """See `Prompts.scores`; logits of padding are -inf, so their scores are 0."""
        found = []
        for scores, prompt in zip(logits.sigmoid().numpy(), prompts, strict=True):
            columns = []
            start = 1
            for tokens in prompt.values():
                columns.append(scores[:, start : start + len(tokens)].max(1))
                start += len(tokens) + 1
            found.append(np.stack(columns, 1))
        return found

    def scale(self, frame: Frame) -> tuple[float, float]:
        """See `Prompts.scale`: of the image."""
        return frame.width, frame.height


class QueryPrompts:
    """OWLv2: a text of its own for each label, whose embedding is compared with each patch of the image."""

    TEMPLATE = "a photo of a {}"
    """The sentence that the model's authors use."""

    LABELS = 64
    """Most labels in one pass, so that memory has a bound; a pass has a text for each of them."""

    def __init__(self, network: Network) -> None:
        """Take the network's tokenizer; replace the resizing of its image processor, which needs scipy."""
        import torch

        self._torch = torch
        self._tokenizer = network.tokenizer
        self._limit = network.model.config.text_config.max_position_embeddings
        network.processor.resize = lambda image, size, *_: enlarge(image, size.width, size.height)

    def tokens(self, label: str) -> Tokens:
        """See `Prompts.tokens`; those of the whole sentence."""
        _tokens(self._tokenizer, label, label, self._limit)
        tokens = _tokens(self._tokenizer, label, self.TEMPLATE.format(label), self._limit - 2)
        return [self._tokenizer.bos_token_id, *tokens, self._tokenizer.eos_token_id]

    def passes(self, labels: Prompt) -> list[Prompt]:
        """See `Prompts.passes`."""
        items = list(labels.items())
        return [dict(items[start : start + self.LABELS]) for start in range(0, len(items), self.LABELS)]

    def longest(self) -> Prompt:
        """See `Prompts.longest`."""
        return {str(index): [self._tokenizer.eos_token_id] * self._limit for index in range(self.LABELS)}

    def inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """See `Prompts.inputs`; an image with fewer labels than another repeats its first one."""
        most = max(map(len, prompts))
        texts = [
            tokens
            for prompt in prompts
            for tokens in (*prompt.values(), *[next(iter(prompt.values()))] * (most - len(prompt)))
        ]
        padded = self._tokenizer.pad({"input_ids": texts}, "max_length", self._limit, return_tensors="pt")
        return {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}

    def scores(self, logits: Any, prompts: Sequence[Prompt]) -> list[npt.NDArray[np.float32]]:
        """See `Prompts.scores`."""
        scores = logits.sigmoid().numpy()
        return [each[:, : len(prompt)] for each, prompt in zip(scores, prompts, strict=True)]

    def scale(self, frame: Frame) -> tuple[float, float]:
        """See `Prompts.scale`: of a square with the image in its upper left corner."""
        height, width = frame.pixels.shape[:2]
        side = max(width, height)
        return frame.width * side / width, frame.height * side / height


PROMPTS: dict[str, type[PhrasePrompts] | type[QueryPrompts]] = {
    "grounding-dino": PhrasePrompts,
    "mm-grounding-dino": PhrasePrompts,
    "owlv2": QueryPrompts,
}
"""For each `model_type` that is served, how it takes labels."""


def _tokens(tokenizer: Any, label: str, text: str, most: int) -> Tokens:
    """The tokens of a text, without those that the model adds; a special token in it is text like any other."""
    tokens: Tokens = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if not tokens:
        raise BadLabel(f"{label!r} has no words: name an object")
    if tokenizer.unk_token_id in tokens:
        raise BadLabel(f"{label!r} has characters or words that the model's vocabulary lacks: use English words")
    if len(tokens) > most:
        raise BadLabel(f"{label!r} has {len(tokens)} tokens, the model reads {most}: use a shorter label")
    return tokens


def enlarge(image: npt.NDArray[np.float32], width: int, height: int) -> npt.NDArray[np.float32]:
    """Enlarge an image `(channels, height, width)`, as OWLv2's processor does with scipy: linear, mirrored at edges.

    Smaller sizes would need a low-pass filter first; the decode stage leaves nothing to scale down.
    """
    for axis, size in ((1, height), (2, width)):
        have = image.shape[axis]
        if have > size:
            raise ValueError(f"cannot scale an image of {have} pixels down to {size}")
        place = np.abs((np.arange(size) + 0.5) * (have / size) - 0.5)
        place = np.abs(have - 1 - np.abs(have - 1 - place))  # one pixel at most lies beyond an edge
        low = np.floor(place).astype(int)
        share = (place - low).astype(np.float32).reshape([-1 if each == axis else 1 for each in range(3)])
        above = np.minimum(low + 1, have - 1)
        image = np.take(image, low, axis) * (1 - share) + np.take(image, above, axis) * share
    return image
