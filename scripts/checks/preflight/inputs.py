"""Whether the input table has the columns that a job's questions take, and how long the questions become."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from pipeline.errors import UsageError
from pipeline.job import Job
from pipeline.question import Question
from pipeline.sources.inputs import InputColumns
from pipeline.sources.listing import list_images
from pipeline.sources.objects import Objects
from pipeline.template import Template
from scripts.findings import Finding, error, unchecked


def check_inputs(job: Job, user: Mapping[str, str]) -> tuple[list[Question], list[Finding]]:
    """The job's questions, each with the values of the row that makes it longest, and what is wrong with the table.

    `user`: the user's variables, which may name the images.
    """
    columns = InputColumns.of(job)
    if columns is None:
        return job.questions, []
    place = user.get("SPOTTER_IMAGES")
    if place is None:
        taken = ", ".join(columns.paths.values())
        return job.questions, [
            unchecked("inputs", f"job {job.name} takes columns ({taken}): give the table as IMAGES=")
        ]
    try:
        objects = Objects(user.get("SPOTTER_S3_ENDPOINT"))
        listed = list_images(place, user.get("SPOTTER_COLUMN"), objects, columns).sources
    except UsageError as refusal:
        required = "a table with the columns of the job's `inputs`"
        return job.questions, [error("inputs", str(refusal), required, "correct `inputs` in the job file, or IMAGES=")]
    texts = [source.inputs.text for source in listed if source.inputs and not source.inputs.fault]
    return [longest(question, texts) for question in job.questions], []


def longest(question: Question, texts: Iterable[str]) -> Question:
    """A question with the values, of those of all rows (JSON), that make it longest."""
    template = Template(question.question)
    text = max((template.fill(json.loads(each)) for each in texts), key=len, default=question.question)
    return question.model_copy(update={"question": text})
