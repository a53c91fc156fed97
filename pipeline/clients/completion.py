"""The request of a job, in the OpenAI chat completions form: what is sent, without anything that sends it."""

from __future__ import annotations

from typing import Any

from pipeline.job import Job

# Stands in a request for the picture's data URL, and nowhere else: job files are text.
PICTURE = "\x00picture\x00"


def completion_request(job: Job, model: str) -> dict[str, Any]:
    """One request about one crop, with PICTURE in the place of its data URL."""
    return {
        "model": model,
        "max_tokens": job.max_tokens,
        "temperature": job.temperature,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": job.name or "answer", "schema": job.answer_schema, "strict": True},
        },
        # The picture stands before the text: the other order cost the whole gain from pictures in the friction log.
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": PICTURE}},
                    {"type": "text", "text": job.question},
                ],
            }
        ],
    }
