#!/usr/bin/env python3
"""Take one request through vLLM's own parser, config, renderer and grammar, without weights and GPU.

Reads the request as JSON from stdin and prints one line of JSON. Runs in vLLM's environment, which has none of the
operator's packages, so it imports nothing of Spotter.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import importlib.util
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

# Packages that an architecture imports only with its weights, in an engine process, far from any message.
IMPORTED_LATE = {"Gemma3nForConditionalGeneration": "timm"}


def seed(known: Path) -> None:
    """Copy vLLM's facts about the presets' models into its cache, as a start does (scripts/vllm/compile_cache.py)."""
    from vllm import envs

    folder = Path(envs.VLLM_CACHE_ROOT) / "modelinfos"
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        folder.mkdir(parents=True, exist_ok=True)
        for file in known.iterdir():
            if not (folder / file.name).exists():
                shutil.copy(file, folder)


class Wrong(Exception):
    """The server would refuse the request or answer wrongly."""


class Check:
    """The stages, in order; `stage` is the current one."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.stage = "import"
        self.facts: dict[str, Any] = {"questions": []}

    def parse(self) -> Any:
        """The options, as `vllm serve` has them."""
        from vllm.entrypoints.cli import serve
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        self.stage = "options"
        parser = FlexibleArgumentParser(prog="vllm")
        (command,) = serve.cmd_init()
        command.subparser_init(parser.add_subparsers(required=False, dest="subparser"))
        complaint = io.StringIO()
        try:
            with contextlib.redirect_stderr(complaint):
                arguments = parser.parse_args(["serve", *self.request["arguments"]])
                command.validate(arguments)
        except SystemExit as error:
            said = [line for line in complaint.getvalue().splitlines() if line.strip()]
            raise Wrong(said[-1].partition("error: ")[2] or said[-1] if said else "refused") from error
        if getattr(arguments, "model_tag", None):
            arguments.model = arguments.model_tag
        return arguments

    def chat(self, arguments: Any) -> None:
        """The model's config, its renderer, and a request for each question of the job through both."""
        self.stage = "model"
        seed(Path(self.request["model_infos"]))
        from vllm import AsyncEngineArgs
        from vllm.config import VllmConfig

        engine = AsyncEngineArgs.from_cli_args(arguments)
        model = engine.create_model_config()
        self.facts["architecture"] = model.architectures[0]
        if not model.is_multimodal_model:
            raise Wrong(f"{model.architectures[0]} takes text only and refuses every request with an image")

        self.stage = "import"
        late = IMPORTED_LATE.get(model.architectures[0])
        if late and importlib.util.find_spec(late) is None:
            raise Wrong(f"{model.architectures[0]} needs the package {late}, which is not beside vLLM")

        self.stage = "renderer"
        from vllm.renderers import renderer_from_config
        from vllm.renderers.chat_utils import load_chat_template
        from vllm.renderers.online_renderer import OnlineRenderer

        model.quantization = None  # its check needs a device
        config = VllmConfig(model_config=model, structured_outputs_config=arguments.structured_outputs_config)
        renderer = renderer_from_config(config)
        online = OnlineRenderer(
            model_config=model,
            renderer=renderer,
            request_logger=None,
            chat_template=load_chat_template(arguments.chat_template),
            chat_template_content_format=arguments.chat_template_content_format,
            trust_request_mm_kwargs=arguments.trust_request_mm_kwargs,
            default_chat_template_kwargs=arguments.default_chat_template_kwargs,
        )

        for question in self.request["questions"]:
            self.ask(question, model, config, online, renderer)

    def ask(self, question: dict[str, Any], model: Any, config: Any, online: Any, renderer: Any) -> None:
        """One request for a question of the job through the renderer and the grammar."""
        self.stage = "request"
        chat = self.make_request(question)
        rendered = asyncio.run(online.render_chat(chat))
        if not isinstance(rendered, tuple):
            raise Wrong(rendered.error.message)
        prompt = rendered[1][0]
        pictures = (prompt.get("mm_placeholders") or {}).get("image") or []
        tokens = len(prompt["prompt_token_ids"])
        facts = {"prompt_tokens": tokens, "image_tokens": sum(each.length for each in pictures), "answer_tokens": None}

        self.stage = "picture"
        if question["image"] and not pictures:
            raise Wrong("the image is not in the prompt: the chat template leaves it out")
        self.stage = "length"
        limit = question["max_tokens"]
        if tokens + limit > model.max_model_len:
            raise Wrong(f"prompt of {tokens} tokens + max_tokens {limit} > model length {model.max_model_len}")

        self.stage = "grammar"
        sampling = chat.to_sampling_params(limit, model.get_diff_sampling_param())
        sampling.verify(model, None, config.structured_outputs_config, renderer.tokenizer)
        if question["schema"] is not None and sampling.structured_outputs is None:
            raise Wrong("response_format did not become a constraint: answers would be free text")
        facts["backend"] = sampling.structured_outputs._backend if sampling.structured_outputs else None

        self.stage = "answer"
        if (longest := question["longest_answer"]) is not None:
            needed = len(renderer.tokenizer.encode(longest, add_special_tokens=False)) + 1  # and the end
            facts["answer_tokens"] = needed
            if needed > (most := question["answer_tokens"]):
                raise Wrong(f"the longest answer takes {needed} tokens, max_tokens is {most}: {longest[:120]}")
        self.facts["questions"].append(facts)

    def make_request(self, question: dict[str, Any]) -> Any:
        """One request as the job's client makes it, with an image of the crops' size."""
        from PIL import Image
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        side = self.request["max_side"]
        encoded = io.BytesIO()
        Image.new("RGB", (side, side), (127, 127, 127)).save(encoded, "JPEG")
        url = "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()
        picture = [{"type": "image_url", "image_url": {"url": url}}] if question["image"] else []
        content = [*picture, {"type": "text", "text": question["question"]}]
        schema = {"name": "answer", "schema": question["schema"], "strict": True}
        form = {"response_format": {"type": "json_schema", "json_schema": schema}} if question["schema"] else {}
        return ChatCompletionRequest(
            model="preflight",
            messages=[{"role": "user", "content": content}],
            **{"temperature": 0.0} | question["more"] | {"max_tokens": question["max_tokens"]} | form,
        )

    def run(self) -> dict[str, Any]:
        """All stages, up to the first that fails."""
        error = None
        try:
            self.chat(self.parse())
        except (Wrong, ValueError, OSError) as caught:  # messages for people
            error = str(caught) or type(caught).__name__
        except Exception as caught:  # whatever vLLM raises is the finding
            error = f"{type(caught).__name__}: {caught}"
        return {"stage": self.stage, "error": error, **self.facts}


def main() -> int:
    """Check the request on stdin; the last line of stdout is always JSON."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(json.dumps(Check(json.load(sys.stdin)).run()), flush=True)
    # Skip the interpreter's end: vLLM's threads would delay it for seconds.
    os._exit(0)


if __name__ == "__main__":
    main()
