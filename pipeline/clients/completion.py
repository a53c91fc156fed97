"""The request of a job, in the OpenAI chat completions form: what is sent, without anything that sends it."""

from __future__ import annotations

import re
from typing import Any

from pipeline.job import Job
from pipeline.question import Question

# Stands in a request for the picture's data URL, and nowhere else: a job file holds no NUL.
PICTURE = "\x00picture\x00"
# The same for the text of a question that takes inputs.
TEXT = "\x00text\x00"


def schema_name(job: str) -> str:
    """A job's name as the API takes it for the schema: 1 to 64 letters, digits, `_` and `-`."""
    return re.sub(r"[^a-zA-Z0-9_-]+", "_", job).strip("_")[:64] or "answer"


def completion_request(question: Question, job: Job, model: str) -> dict[str, Any]:
    """One question of a job about one crop, with the fields that the job adds.

    PICTURE stands in the place of the crop's data URL, and TEXT in that of a text that takes inputs.
    """
    text = TEXT if job.inputs else question.question
    picture = [{"type": "image_url", "image_url": {"url": PICTURE}}] if question.image else []
    return {
        "model": model,
        job.limit: question.max_tokens,
        "temperature": job.temperature,
        **job.request,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": schema_name(job.name), "schema": question.answer_schema, "strict": True},
        },
        # The image stands before the text: the other order cost the whole gain from images in measurements.
        "messages": [{"role": "user", "content": [*picture, {"type": "text", "text": text}]}],
    }
