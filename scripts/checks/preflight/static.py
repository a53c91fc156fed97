"""The static tier: checks of options and files, in a second, without vLLM."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.clients.completion import OF_CHAT
from pipeline.clients.dialects import RequestForm, in_words
from pipeline.question import Question
from scripts.checks.preflight.answers import check_answers
from scripts.checks.preflight.architecture import check_architecture, check_files, check_precision
from scripts.checks.preflight.lengths import check_lengths, image_tokens, trained_length
from scripts.checks.preflight.memory import Host, Needs, Part, check_memory, kv_bytes_per_token
from scripts.checks.preflight.requests import check_fields, check_form, check_served_name, check_trust
from scripts.checks.preflight.template import check_template
from scripts.findings import Finding
from scripts.minimum_versions import GIB
from scripts.models.model_files import Model, check_weights, locate, weight_bytes
from scripts.vllm import tables
from scripts.vllm.options import Options, read_options


@dataclass(frozen=True, slots=True)
class Asked:
    """The job's demands on the server."""

    job: str
    questions: tuple[Question, ...]
    max_side: int
    """Longest side of a crop, pixels."""
    fields: tuple[str, ...]
    """The fields of a request's body."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """What the job adds to each request."""
    thoughts: int = 0
    """Tokens on top of `max_tokens`."""
    model: str | None = None
    """The name that the client asks for; None: whichever is served."""
    form: RequestForm = OF_CHAT
    """Of its requests."""

    def text(self, question: Question) -> str:
        """A question as the prompt has it."""
        return question.question + (in_words(question.answer_schema) if self.form.in_words else "")

    def named(self) -> list[tuple[str, Question]]:
        """Each question, with a name for messages."""
        if len(self.questions) == 1:
            return [(self.job, self.questions[0])]
        return [(f"{self.job}, question {number}", each) for number, each in enumerate(self.questions, 1)]


@dataclass(frozen=True, slots=True)
class Server:
    """The start of the server."""

    preset: Path
    device: str
    """`cpu` or `cuda`."""
    environment: Mapping[str, str]
    """Of its process."""
    host: Host
    arguments: tuple[str, ...] = ()
    """After the preset on its command line."""


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of the static tier."""

    findings: Sequence[Finding]
    budget: Sequence[Part]
    options: Options
    model: Model | None


@cache
def known_models() -> dict[str, dict[str, Any]]:
    """Sizes of the presets' models, for hosts that do not have the files yet."""
    content: dict[str, dict[str, Any]] = json.loads((tables.FOLDER / "known_models.json").read_text())
    return content


def check(server: Server, asked: Asked, root: Path) -> Checked:
    """Compare a server's options and files with the job's demands. `root` is the server's working directory."""
    options, findings = read_options(server.preset, server.environment, server.device, server.arguments)
    findings = [*tables.check_tables(server.device), *findings]
    model, located = locate(options, root)
    findings += located
    findings += [*check_fields(asked.fields, asked.form), *check_form(asked.form), *check_trust(asked.more, options)]
    for name, question in asked.named():
        findings += check_answers(question.answer_schema, question.max_tokens, name, options)
    if model is None:
        return Checked(once(findings), [], options, None)
    findings += check_served_name(model, options, asked.model)
    known = known_models().get(model.name, {})
    config = model.read_json("config.json")
    if config is None and not known:
        return Checked(once(findings), [], options, model)

    if config is not None:
        findings += check_architecture(model, config, options)
        findings += check_files(model, options)
        findings += check_precision(config, options)
        for question in asked.questions:
            if question.image:
                findings += check_template(model, config, options, asked.text(question), root)
        findings += check_weights(model, options)
        processing = {**options.mapping("mm-processor-kwargs"), **(asked.more.get("mm_processor_kwargs") or {})}
        longest, picture = trained_length(config), image_tokens(model, config, asked.max_side, processing)
        kv_bytes = kv_bytes_per_token(config, options)
    else:
        sizes = ("max_position_embeddings", "image_tokens", "kv_bytes_per_token")
        longest, picture, kv_bytes = (known[name] for name in sizes)
    for name, question in asked.named():
        seen = picture if question.image else None
        limit = question.max_tokens + asked.thoughts
        findings += check_lengths(options, longest, seen, asked.text(question), limit, name)
    wanted = options.number("max-model-len")
    length = int(wanted) if wanted and wanted > 0 else longest
    peak = known.get("picture_peak_mib")
    needs = Needs(weights_gib(model, known, options), kv_bytes, length, picture, peak)
    budget, short = check_memory(options, server.host, needs)
    return Checked(once([*findings, *short]), budget, options, model)


def once(findings: Iterable[Finding]) -> list[Finding]:
    """The findings without repetitions: two questions may lack the same option."""
    return list(dict.fromkeys(findings))


def weights_gib(model: Model, known: Mapping[str, Any], options: Options) -> float | None:
    """GiB of weights in memory; None where unknown."""
    if (stored := weight_bytes(model)) is not None:
        return stored / GIB
    if not known or options.text("quantization"):
        return None
    no_audio = options.mapping("limit-mm-per-prompt").get("audio") == 0
    return float(known["weights_gib"]) - (float(known["audio_gib"]) if no_audio else 0.0)
