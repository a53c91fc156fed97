"""The real model server tells how sure its model is of each choice, through each API."""

from __future__ import annotations

import asyncio
import itertools

from pipeline.clients.dialects import DIALECTS, RequestForm
from samples.crops import labelled_crops
from samples.evaluate_vlm import BOX_SPREAD
from tests.stack.conftest import RunningStack
from tests.stack.test_dialects import answers

ROWS = 8


def test_each_choice_has_a_confidence(stack: RunningStack) -> None:
    crops = list(itertools.islice(labelled_crops(5_000_000, BOX_SPREAD), ROWS))
    jpegs = [crop.jpeg for crop in crops]
    said = {api: asyncio.run(answers(stack, jpegs, RequestForm(api, logprobs=True))) for api in DIALECTS}
    plain = asyncio.run(answers(stack, jpegs, RequestForm()))
    assert [each.fields for each in said["chat"]] == [each.fields for each in plain]
    for found in said.values():
        for each in found:
            confidences = [each.columns[f"{name}_confidence"] for name in each.fields]
            # The bundled model is sure of clean crops.
            assert all(0.5 < confidence <= 1 for confidence in confidences), confidences
