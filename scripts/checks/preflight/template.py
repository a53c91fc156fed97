"""Whether a chat template exists and puts this job's request into words: the picture, then the question."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.nodes
import jinja2.sandbox

from scripts.findings import Finding
from scripts.models.model_files import Model
from scripts.vllm import tables
from scripts.vllm.options import Options

# What vLLM gives a template in place of a picture, when the template goes through the content's parts by itself.
PICTURE = {"type": "image"}


def find_template(model: Model, options: Options, root: Path) -> tuple[str | None, str]:
    """The template that the server will use, and where it is from; None where there is none."""
    if given := options.text("chat-template"):
        path = root / given
        try:
            return path.read_text(), given
        except OSError:
            return (given, "--chat-template") if re.search(r"[{}\n]", given) else (None, given)
    if model.folder is not None:
        for name in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json", "processor_config.json"):
            if name.endswith(".jinja") and model.has(name):
                return (model.folder / name).read_text(), name
            template = (model.read_json(name) or {}).get("chat_template")
            if isinstance(template, list):  # several, by name
                named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
                template = named.get("default")
            if isinstance(template, str):
                return template, name
    return None, ""


def check_template(model: Model, config: dict[str, Any], options: Options, question: str, root: Path) -> list[Finding]:
    """There is a template, and it renders the job's request with the picture before the question."""
    template, where = find_template(model, options, root)
    if template is None:
        if config.get("model_type") in tables.read("architectures")["template_fallbacks"] or model.has("tekken.json"):
            return []  # vLLM has one of its own, or the tokenizer does it in code
        found = f"{model.name} has no chat template: the server starts, and refuses every request"
        if where:
            found = f"--chat-template {where} is no file and no template"
        return [
            Finding(
                "template",
                "error",
                found,
                "a chat template",
                "set `chat-template:` to a file made for this model; an instruction-tuned variant brings one",
            )
        ]
    return [
        Finding("template", each.severity, f"{where}: {each.found}", each.required, each.remedy)
        for each in judge(template, special_tokens(model), question)
    ]


def special_tokens(model: Model) -> dict[str, str]:
    """The special tokens that templates use as variables."""
    found = {}
    for name, value in (model.read_json("tokenizer_config.json") or {}).items():
        if name.endswith("_token"):
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                found[name] = text
    return found


def judge(template: str, variables: dict[str, str], question: str) -> list[Finding]:
    """What is wrong with a template's words for one picture and one question."""
    required = "the picture's place, then the question"
    try:
        # Transformers' tag for training data; what it encloses is rendered as it stands.
        compiled = environment().from_string(re.sub(r"{%-?\s*(?:end)?generation\s*-?%}", "", template))
    except jinja2.TemplateSyntaxError as error:
        remedy = "correct the template, or take the model's own"
        return [Finding("template", "error", f"line {error.lineno}: {error.message}", "a Jinja template", remedy)]
    text = {"type": "text", "text": question}
    try:
        if takes_parts(template):
            rendered = render(compiled, [PICTURE, text], variables)
            bare = render(compiled, [text], variables)
        else:
            # vLLM then writes the picture's place into the text itself, at its beginning.
            return [] if question in render(compiled, question, variables) else [lost("question", required)]
    except jinja2.TemplateError as error:
        remedy = "take the template that belongs to this model"
        return [Finding("template", "error", f"cannot render this job's request: {error.message}", required, remedy)]
    except (TypeError, ValueError, LookupError) as error:
        return [Finding("template", "unchecked", f"cannot be rendered without vLLM ({error})")]
    if question.strip() not in rendered:
        return [lost("question", required)]
    if rendered == bare:
        return [lost("picture", required)]
    if rendered.partition(question.strip())[0] == bare.partition(question.strip())[0]:
        return [
            Finding(
                "template",
                "warning",
                "puts the picture behind the question: models answer far worse in that order",
                required,
                "set `chat-template:` to one that keeps the order of a message's parts",
            )
        ]
    return []


def lost(what: str, required: str) -> Finding:
    """The finding for a template that leaves something out."""
    return Finding(
        "template",
        "error",
        f"leaves the {what} out: the model would answer without it",
        required,
        "set `chat-template:` to the one that belongs to this model",
    )


def environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """Jinja as Transformers sets it up for chat templates."""

    def refuse(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def render(template: jinja2.Template, content: str | Sequence[dict[str, Any]], variables: dict[str, str]) -> str:
    """One user's message as the template puts it."""
    messages = [{"role": "user", "content": content}]
    return template.render(messages=messages, add_generation_prompt=True, tools=None, documents=None, **variables)


def takes_parts(template: str) -> bool:
    """Whether the template goes through the parts of a message's content; else it wants one text.

    vLLM looks for such a loop in the same way to decide in which form it hands the content over.
    """
    tree = environment().parse(re.sub(r"{%-?\s*(?:end)?generation\s*-?%}", "", template))
    parameters = {argument.name for macro in tree.find_all(jinja2.nodes.Macro) for argument in macro.args}
    for loop in tree.find_all(jinja2.nodes.For):
        source: Any = loop.iter
        while isinstance(source, jinja2.nodes.Filter | jinja2.nodes.Test) or (
            isinstance(source, jinja2.nodes.Getitem) and isinstance(source.arg, jinja2.nodes.Slice)
        ):
            source = source.node
        is_attribute = isinstance(source, jinja2.nodes.Getattr) and source.attr == "content"
        is_item = isinstance(source, jinja2.nodes.Getitem) and getattr(source.arg, "value", None) == "content"
        is_name = isinstance(source, jinja2.nodes.Name) and source.name in {"content", *parameters}
        if is_attribute or is_item or is_name:
            return True
    return False
