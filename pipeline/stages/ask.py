"""The fourth stage: ask the model the job's questions about each crop."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import daft
import pyarrow as pa
from daft import DataType, col, lit

from pipeline.clients.model import Answer, BadAnswer, ModelClient
from pipeline.errors import RowError
from pipeline.metrics.stage import ASK, STORE
from pipeline.runtime.runtime import Runtime
from pipeline.stages.batches import ask_batch, in_flight_batches
from pipeline.stages.boxes import encoded_size
from pipeline.stages.reusable import ReusableAnswers
from pipeline.stages.schema import answer_type
from pipeline.tables import answer_struct

# What each request of a detection costs.
SPENT = ("latency_s", "prompt_tokens", "completion_tokens")


class Ask:
    """Asks the model about crops, a batch at a time: a coroutine and a conversion by Daft for each row cost a fifth of
    the CPU."""

    def __init__(self, client: ModelClient, runtime: Runtime, reusable: ReusableAnswers) -> None:
        self.client = client
        self.runtime = runtime
        self.reusable = reusable
        self.type = answer_type(answer_struct(client.job.properties))
        self.about = cache(client.job.about)

    async def ask(
        self,
        jpegs: daft.Series,
        labels: daft.Series,
        inputs: daft.Series,
        keys: daft.Series | None = None,
        indices: daft.Series | None = None,
        boxes: daft.Series | None = None,
    ) -> pa.Array:
        """For each crop the checked answer, or why there is none; null without a crop.

        `keys` and `indices` name the crops in the trace. An answer of an earlier run about the same box of the same
        image is taken instead of asking again.
        """
        crops = jpegs.to_pylist()
        nothing = [None] * len(crops)
        key, index, box = (nothing if column is None else column.to_pylist() for column in (keys, indices, boxes))
        values = inputs.to_pylist()
        known = list(map(self.reusable.find, key, box))
        asked = [None if answer else crop for crop, answer in zip(crops, known, strict=True)]
        with self.runtime.budget.asking(len(crops)):
            new = await asyncio.gather(*map(self.answer, asked, labels.to_pylist(), values, key, index))
        answers = [before or answer for before, answer in zip(known, new, strict=True)]
        self.count(known, new)
        return pa.array(answers, self.type)

    def count(self, known: list[dict[str, Any] | None], new: list[dict[str, Any] | None]) -> None:
        """Count a batch, which goes on as a whole."""
        asked = [answer for answer in new if answer is not None]
        rows = len(asked) + sum(answer is not None for answer in known)
        if rows:
            self.runtime.metrics.stages[ASK].count(
                rows,
                sum(answer["failure"] is not None for answer in asked),
                sum(answer.get("prompt_tokens") or 0 for answer in asked),
                sum(answer.get("completion_tokens") or 0 for answer in asked),
            )
            self.runtime.metrics.stages[STORE].arrive(time.perf_counter(), rows)

    async def answer(
        self, jpeg: bytes | None, label: str, inputs: str | None, key: str | None, index: int | None
    ) -> dict[str, Any] | None:
        """One crop's answers to the questions about its label, or why there is none.

        They are asked one after the other: a server then has the picture of the second one in its prefix cache.
        """
        if jpeg is None:
            return None
        row: dict[str, Any] = {}
        with self.runtime.request(ASK, key, index) as step:
            values = json.loads(inputs) if inputs else {}
            ended = [await self.one(jpeg, number, values) for number in self.about(label)]
            row = merged(ended, as_list=len(self.client.forms) > 1)
            if failed := next((each for each in ended if isinstance(each, RowError)), None):
                raise failed
            step.latency_s = row["latency_s"]
            if step.traced:
                step.size = encoded_size(jpeg)
        if step.failure:
            row["attempts"] = row.get("attempts") or step.failure["attempts"]
        row["failure"] = step.failure
        return row

    async def one(self, jpeg: bytes, number: int, inputs: dict[str, Any]) -> Answer | RowError:
        """The answer to one question, or why there is none; the others are asked all the same."""
        try:
            return await self.client.ask(jpeg, number, inputs)
        except RowError as error:
            return error


def merged(ended: Sequence[Answer | RowError], *, as_list: bool) -> dict[str, Any]:
    """The answers to a detection's questions as one, with the texts of the model `as_list` (JSON) or as one text."""
    if len(ended) == 1 and isinstance(one := ended[0], Answer) and not as_list:  # most rows
        spent = {name: getattr(one, name) for name in ("attempts", *SPENT)}
        return {"fields": one.columns or None, "raw_answer": one.raw, **spent}
    answers = [each for each in ended if isinstance(each, Answer)]
    said = [each.raw if isinstance(each, Answer | BadAnswer) else None for each in ended]
    fields: dict[str, Any] = {}
    for answer in answers:
        fields |= answer.columns
    return {
        "fields": fields or None,
        "raw_answer": json.dumps(said) if as_list else said[0],
        "attempts": sum(each.attempts for each in ended),
        **{name: total(getattr(answer, name) for answer in answers) for name in SPENT},
    }


def total(numbers: Iterable[float | None]) -> float | None:
    """The sum of what is known; None where nothing is."""
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def ask(
    crops: daft.DataFrame, client: ModelClient, runtime: Runtime | None = None, reusable: ReusableAnswers | None = None
) -> daft.DataFrame:
    """`detection` -> + `answer`. With a runtime, `key` and the detection's index name the rows in its trace."""
    concurrency = client.http.limits.concurrency
    batch = ask_batch(concurrency)
    # Each job has columns of its own, and so an answer type.
    answered = DataType.from_arrow_type(answer_type(answer_struct(client.job.properties)))
    typed = type("Ask", (Ask,), {"__call__": daft.method.batch(return_dtype=answered)(Ask.ask)})
    asking = daft.cls(typed, max_concurrency=in_flight_batches(concurrency, batch))
    stage = asking(client, runtime or Runtime.alone(), reusable or ReusableAnswers())
    detection = col("detection")
    names = [detection["label"], col("inputs") if client.job.inputs else lit(None)]
    names += [col("key"), detection["index"]] if runtime else []
    names += [detection["box"]] if runtime and reusable else []
    return crops.into_batches(batch).with_column("answer", stage(detection["jpeg"], *names))
