"""The request of a job's question, in the form that a model server wants."""

from __future__ import annotations

from typing import Any

from pipeline.clients.dialects import PICTURE, TEXT, Asked, RequestForm, in_words, schema_name
from pipeline.job import MAX_COMPLETION_TOKENS, Job
from pipeline.question import Question
from pipeline.tables import confidence_columns

OF_CHAT = RequestForm()


def limit_of(job: Job, form: RequestForm) -> str:
    """The request's field of the longest answer: the one that the job or the probe has chosen, or the API's own."""
    own = MAX_COMPLETION_TOKENS if form.api == "chat" and MAX_COMPLETION_TOKENS in job.request else None
    return own or form.limit or form.dialect.LIMIT


def completion_request(question: Question, job: Job, model: str, form: RequestForm = OF_CHAT) -> dict[str, Any]:
    """One question of a job about one crop, with the fields that the job adds.

    PICTURE stands in the place of the crop's data URL, and TEXT in that of a text that takes inputs.
    """
    text = TEXT if job.inputs else question.question
    return form.dialect.request(
        Asked(
            model=model,
            text=text + (in_words(question.answer_schema) if form.in_words else ""),
            picture=PICTURE if question.image else None,
            limit=limit_of(job, form),
            max_tokens=question.max_tokens + job.reasoning_tokens,
            temperature=job.temperature,
            schema_name=schema_name(job.name),
            schema=question.answer_schema,
            schema_form=form.schema_form,
            logprobs=form.logprobs and bool(confidence_columns(question.properties)),
            more={name: value for name, value in job.request.items() if name != MAX_COMPLETION_TOKENS},
        )
    )
