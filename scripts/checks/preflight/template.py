"""Whether a chat template exists and renders this job's request: the image, then the question."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.nodes
import jinja2.sandbox

from scripts.findings import Finding, error, unchecked, warning
from scripts.models.model_files import Model
from scripts.vllm import tables
from scripts.vllm.options import Options

# vLLM's stand-in for an image, for templates that loop over the parts of a content.
IMAGE = {"type": "image"}
# Transformers' tag for training data; its content is rendered unchanged.
GENERATION = re.compile(r"{%-?\s*(?:end)?generation\s*-?%}")


def find_template(model: Model, options: Options, root: Path) -> tuple[str | None, str]:
    """The server's template and its origin; None without a template."""
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
    """The template exists and renders the job's request with the image before the question."""
    template, where = find_template(model, options, root)
    if template is None:
        if config.get("model_type") in tables.read("architectures")["template_fallbacks"] or model.has("tekken.json"):
            return []  # vLLM has one of its own, or the tokenizer renders in code
        found = f"{model.name} has no chat template: the server starts, and refuses every request"
        if where:
            found = f"--chat-template {where} is no file and no template"
        remedy = "set `chat-template:` to a file made for this model; an instruction-tuned variant brings one"
        return [error("template", found, "a chat template", remedy)]
    found_in = judge(template, special_tokens(model), question)
    return [replace(each, found=f"{where}: {each.found}") for each in found_in]


def special_tokens(model: Model) -> dict[str, str]:
    """The special tokens that templates use as variables."""
    config = (model.read_json("tokenizer_config.json") or {}).items()
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in config}
    return {name: text for name, text in texts.items() if name.endswith("_token") and isinstance(text, str)}


def judge(template: str, variables: dict[str, str], question: str) -> list[Finding]:
    """The faults of a template, with one image and one question."""
    required = "the image's place, then the question"
    try:
        compiled = environment().from_string(GENERATION.sub("", template))
    except jinja2.TemplateSyntaxError as fault:
        remedy = "correct the template, or take the model's own"
        return [error("template", f"line {fault.lineno}: {fault.message}", "a Jinja template", remedy)]
    text = {"type": "text", "text": question}
    try:
        if takes_parts(template):
            rendered = render(compiled, [IMAGE, text], variables)
            bare = render(compiled, [text], variables)
        else:
            # vLLM then writes the image's place into the text itself, at its beginning.
            return [] if question in render(compiled, question, variables) else [lost("question", required)]
    except jinja2.TemplateError as fault:
        remedy = "take the template that belongs to this model"
        return [error("template", f"cannot render this job's request: {fault.message}", required, remedy)]
    except (TypeError, ValueError, LookupError) as fault:
        return [unchecked("template", f"cannot be rendered without vLLM ({fault})")]
    if question.strip() not in rendered:
        return [lost("question", required)]
    if rendered == bare:
        return [lost("image", required)]
    if rendered.partition(question.strip())[0] == bare.partition(question.strip())[0]:
        remedy = "set `chat-template:` to one that keeps the order of a message's parts"
        return [warning("template", "puts the image after the question: models answer far worse", required, remedy)]
    return []


def lost(what: str, required: str) -> Finding:
    """A template that omits something."""
    remedy = "set `chat-template:` to the one that belongs to this model"
    return error("template", f"leaves the {what} out: the model would answer without it", required, remedy)


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
    """A user's message through the template."""
    messages = [{"role": "user", "content": content}]
    return template.render(messages=messages, add_generation_prompt=True, tools=None, documents=None, **variables)


def takes_parts(template: str) -> bool:
    """Whether the template loops over the parts of a message's content; else it expects one text.

    vLLM looks for such a loop in the same way to decide in which form it passes the content.
    """
    tree = environment().parse(GENERATION.sub("", template))
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
