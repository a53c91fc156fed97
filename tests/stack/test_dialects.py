"""The real model server answers the same through each API and each form of the schema that holds answers to it."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from pipeline import job as jobs
from pipeline.clients.dialects import DIALECTS, RequestForm, SchemaForm
from pipeline.clients.http import HttpClient, Limits
from pipeline.clients.model import Answer, ModelClient
from pipeline.clients.probe_model import ONLY_IN_SCHEMA
from samples.crops import labelled_crops
from samples.evaluate_vlm import BOX_SPREAD
from tests.stack.conftest import RunningStack

ROWS = 60
CONSTRAINED: tuple[SchemaForm, ...] = ("json_schema", "structured_outputs")
FORMS = [RequestForm(api, schema_form) for api in DIALECTS for schema_form in CONSTRAINED]


async def answers(stack: RunningStack, jpegs: list[bytes], form: RequestForm) -> list[Answer]:
    """An answer about each crop."""
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    http = HttpClient(stack.model_url, Limits(concurrency=8), headers=headers)
    client = ModelClient(http, "tiny-vlm", jobs.load("dog_breeds"), form)
    try:
        return await asyncio.gather(*(client.ask(jpeg) for jpeg in jpegs))
    finally:
        await http.aclose()


def test_every_way_of_asking_has_the_same_answers(stack: RunningStack) -> None:
    crops = list(itertools.islice(labelled_crops(5_000_000, BOX_SPREAD), ROWS))
    jpegs = [crop.jpeg for crop in crops]
    said = {
        form: [
            (answer.raw, answer.fields, answer.prompt_tokens, answer.completion_tokens)
            for answer in asyncio.run(answers(stack, jpegs, form))
        ]
        for form in FORMS
    }
    usual = said[RequestForm()]
    assert [fields["breed"] for _, fields, _, _ in usual] == [crop.answer["breed"] for crop in crops]
    for form, others in said.items():
        assert others == usual, form


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.api} {form.schema_form}")
def test_only_the_schema_tells_the_probes_answer(stack: RunningStack, form: RequestForm) -> None:
    """What the probe asks where a question's own text asks for JSON."""

    crop = next(labelled_crops(5_000_000, BOX_SPREAD))

    async def asked() -> Answer:
        http = HttpClient(stack.model_url, Limits(concurrency=1), headers={"Authorization": f"Bearer {stack.api_key}"})
        job = jobs.load("dog_breeds").model_copy(update={"questions": [ONLY_IN_SCHEMA]})
        try:
            return await ModelClient(http, "tiny-vlm", job, form).ask(crop.jpeg)
        finally:
            await http.aclose()

    assert asyncio.run(asked()).fields == {"mark": "qz7-vx"}
