"""The full tier: vLLM's own parser, config, renderer and grammar, in the environment that will serve."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from pipeline.job import MAX_COMPLETION_TOKENS
from pipeline.question import Question
from scripts.checks.preflight.schema import Measure
from scripts.checks.preflight.static import Asked, Server
from scripts.findings import Finding, error, ok, unchecked
from scripts.vllm.checker import Place

# Measured: 11 to 16 s of CPU. A busy host takes a few times that.
TIMEOUT_S = 180.0

# What each stage of scripts/vllm/in_vllm.py requires, and the remedy.
STAGES = {
    "import": ("vLLM with all imports of the model", "make the environment anew, from a lock that holds the package"),
    "options": ("options that vLLM's parser accepts", "correct the preset"),
    "model": ("config and tokenizer that load", "correct the preset, or the model's config.json or tokenizer files"),
    "renderer": ("a tokenizer and a processor that load", "complete the model's folder; see the model's own page"),
    "request": ("a request of this job that renders", "set `chat-template:`, or take an instruction-tuned variant"),
    "picture": ("the image in the prompt", "set `chat-template:` to the one that belongs to this model"),
    "length": ("prompt + max_tokens within the model length", "raise `max-model-len`, or lower max_tokens in the job"),
    "grammar": ("a schema that the grammar's backend accepts", "simplify the schema at the part that is named"),
    "answer": ("max_tokens that holds the longest answer", "raise max_tokens in the job file"),
}


def check(server: Server, asked: Asked, root: Path, place: Place) -> list[Finding]:
    """Run vLLM's own code over the options, the model's files and one request for each question of the job."""
    if not place.command:
        return [unchecked("vllm", place.why_not)]
    request = {
        "arguments": ["--config", place.preset or str(server.preset), *server.arguments],
        "questions": [demands(question, asked) for question in asked.questions],
        "max_side": asked.max_side,
        "model_infos": place.model_infos,
    }
    variables = {**os.environ, **server.environment, "VLLM_LOGGING_LEVEL": "ERROR"}
    options = {"cwd": root, "env": variables, "capture_output": True, "text": True, "timeout": TIMEOUT_S}
    try:
        done = subprocess.run(place.command, input=json.dumps(request), **options)  # type: ignore[call-overload]
    except subprocess.TimeoutExpired:
        return [unchecked("vllm", f"vLLM's own code took longer than {TIMEOUT_S:.0f} s")]
    except OSError as failure:
        return [unchecked("vllm", f"{place.command[0]} cannot be started: {failure.strerror}")]
    finally:
        if place.ending:
            subprocess.run(place.ending, capture_output=True)
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        return [unchecked("vllm", f"the check itself failed: {one_line(said[-1])}")]
    if answer["error"] is not None:
        return [error(f"vllm {answer['stage']}", one_line(answer["error"]), *STAGES[answer["stage"]])]
    found = []
    for question, said in zip(asked.questions, answer["questions"], strict=True):
        facts = f"{said['prompt_tokens']} prompt tokens, {said['image_tokens']} of them for the image"
        if said["answer_tokens"] is not None:
            facts += f"; longest answer {said['answer_tokens']} of {question.max_tokens} tokens"
        found.append(ok("vllm", f"{answer['architecture']}: {facts}; grammar {said['backend'] or 'none'}"))
    return found


def demands(question: Question, asked: Asked) -> dict[str, Any]:
    """A question as scripts/vllm/in_vllm.py takes it."""
    measure = Measure(question.answer_schema)
    longest = measure.longest(question.answer_schema).text
    return {
        "question": asked.text(question),
        "schema": None if asked.form.in_words else question.answer_schema,
        "max_tokens": question.max_tokens + asked.thoughts,
        "answer_tokens": question.max_tokens,
        "more": {name: value for name, value in asked.more.items() if name != MAX_COMPLETION_TOKENS},
        "image": question.image,
        "longest_answer": None if any(each.likely for each in measure.endless) else longest,
    }


def one_line(message: str) -> str:
    """A message without line breaks and pydantic's addresses, cut at 400 characters."""
    text = " ".join(re.sub(r"For further information visit \S+", "", message).split())
    return text if len(text) <= 400 else f"{text[:400]}..."
