"""The production preset, chat template rules and image-token arithmetic, as the real server has them.

The model is a stand-in of the production architecture with random weights: what it answers is not looked at, only
that the answer fits.
"""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from PIL import Image

from pipeline import job
from pipeline.stages import boxes
from tests.services import preset_server
from tests.services.preset_server import Server

JOB = job.load("dog_breeds")
QUESTION = JOB.questions[0]
IMAGE_TOKENS = 256
# The stand-in's tokenizer is small, and an untrained model may spell an answer letter by letter.
MAX_TOKENS = 2 * QUESTION.max_tokens

pytestmark = pytest.mark.timeout(1200)  # the first test waits for the server


@pytest.fixture(scope="module")
def server(vllm_python: Path, uv: Path, cache_dir: Path) -> Iterator[Server]:
    """The running server."""
    with preset_server.serve(vllm_python, uv, cache_dir) as running:
        yield running


def post(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Send a JSON request; its status and answer."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def image(width: int, height: int) -> dict[str, Any]:
    """A crop as the pipeline cuts it, of the given size in pixels."""
    picture = Image.effect_noise((width, height), 90).convert("RGB")
    jpeg = boxes.cut(picture, (0, 0, width, height), JOB.crop.margin, JOB.crop.max_side)
    return {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()}}


def turn(role: str, *items: dict[str, Any]) -> dict[str, Any]:
    return {"role": role, "content": list(items)}


def ask(server: Server, *turns: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Ask as the job does, in a conversation of these turns."""
    schema = {"name": JOB.name, "schema": QUESTION.answer_schema, "strict": True}
    body = {
        "model": server.model,
        "messages": list(turns),
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "response_format": {"type": "json_schema", "json_schema": schema},
    }
    return post(f"{server.url}/v1/chat/completions", body)


def count_tokens(server: Server, prompt: str) -> int:
    """How many tokens a text has that already holds its special tokens."""
    body = {"model": server.model, "prompt": prompt, "add_special_tokens": False}
    status, answer = post(f"{server.url}/tokenize", body)
    assert status == 200
    return int(answer["count"])


def refusal(result: tuple[int, dict[str, Any]]) -> str:
    """The message of a request that was refused as the client's mistake."""
    status, answer = result
    assert status == 400, answer
    return str(answer["error"]["message"])


def test_a_question_of_the_job_is_answered_in_its_schema(server: Server) -> None:
    status, answer = ask(server, turn("user", image(300, 200), text(QUESTION.question)))
    assert status == 200, answer
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    jsonschema_rs.validate(QUESTION.answer_schema, json.loads(choice["message"]["content"]))


@pytest.mark.parametrize("size", [(300, 200), (40, 500)], ids=["wide", "narrow"])
def test_a_picture_of_any_size_is_256_tokens_between_its_markers(server: Server, size: tuple[int, int]) -> None:
    before = "<bos><start_of_turn>user\n" + "\n\n<start_of_image>"
    after = "<end_of_image>\n\n" + QUESTION.question + "<end_of_turn>\n<start_of_turn>model\n"
    status, answer = ask(server, turn("user", image(*size), text(QUESTION.question)))
    assert status == 200, answer
    expected = count_tokens(server, before) + IMAGE_TOKENS + count_tokens(server, after)
    assert answer["usage"]["prompt_tokens"] == expected


def test_the_system_text_opens_the_first_user_turn(server: Server) -> None:
    prompt = "<bos><start_of_turn>user\nBe brief.\n\n" + QUESTION.question + "<end_of_turn>\n<start_of_turn>model\n"
    status, answer = ask(server, turn("system", text("Be brief.")), turn("user", text(QUESTION.question)))
    assert status == 200, answer
    assert answer["usage"]["prompt_tokens"] == count_tokens(server, prompt)


def test_roles_that_do_not_alternate_are_refused_by_the_template(server: Server) -> None:
    result = ask(server, turn("user", image(300, 200)), turn("user", text(QUESTION.question)))
    assert "roles must alternate" in refusal(result)


def test_a_second_picture_is_refused(server: Server) -> None:
    result = ask(server, turn("user", image(300, 200), image(300, 200), text(QUESTION.question)))
    assert "At most 1 image(s)" in refusal(result)


def test_audio_is_refused(server: Server) -> None:
    sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"}}
    assert "At most 0 audio(s)" in refusal(ask(server, turn("user", sound, text(QUESTION.question))))


def test_a_prompt_beyond_the_presets_length_is_refused(server: Server) -> None:
    assert "maximum context length is 2048" in refusal(ask(server, turn("user", image(300, 200), text("dog " * 3000))))


def test_a_picture_to_be_fetched_is_refused(server: Server) -> None:
    elsewhere = {"type": "image_url", "image_url": {"url": f"{server.url}/health"}}
    assert "allowed domains" in refusal(ask(server, turn("user", elsewhere, text(QUESTION.question))))
