"""`make try`: what is shown of one picture, and that nothing is written."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web
from rich.console import Console

from pipeline import settings as pipeline_settings
from pipeline.try_one import try_one
from scripts.__main__ import parse
from scripts.settings import load_job
from tests.doubles.simulated import ANSWER, Simulated, completion
from tests.pictures import encoded, gradient

Shown = Callable[..., tuple[int, str]]


@pytest.fixture
def shown(simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shown:
    """Try the bundled job on a picture; the exit code, and what was printed."""
    for name, value in simulated.settings.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "a.jpg").write_bytes(encoded(gradient(640, 480)))
    monkeypatch.chdir(tmp_path)

    def do(*options: str) -> tuple[int, str]:
        out = io.StringIO()
        code = try_one(pipeline_settings.load(["--images", "a.jpg", *options]), Console(file=out, width=200))
        return code, out.getvalue()

    return do


def test_boxes_request_answers_and_times_are_shown(shown: Shown, simulated: Simulated, tmp_path: Path) -> None:
    simulated.boxes = lambda image: [[10, 20, 110, 120], [300, 200, 400, 260]]
    code, text = shown()
    assert code == 0
    lines = text.splitlines()
    assert lines[0].startswith("image     a.jpg: 640 x 480 pixels, JPEG")
    assert lines[1].startswith("detector  simulated: 2 objects in ")
    assert lines[3].split()[:7] == ["0", "dog", "0.900", "10,", "20,", "110,", "120"]
    request = json.loads(text[text.index("{\n") : text.rindex("\n}") + 2])
    assert request["response_format"]["json_schema"]["name"] == "dog_breeds"
    assert request["messages"][0]["content"][0]["image_url"]["url"].startswith("<the crop as JPEG, 110 x 110")
    assert [line.split("  ")[:2] for line in lines[-2:]] == [[f"object {n}", json.dumps(ANSWER)] for n in range(2)]
    assert "40 tokens in, 12 out" in lines[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


def test_a_failure_is_shown_with_what_the_model_wrote(shown: Shown, simulated: Simulated) -> None:
    simulated.model_fault = lambda number: completion('{"breed": "cat"}') if number > 1 else None
    code, text = shown()
    assert code == 1
    assert "does not fit the schema" in text
    assert 'the model wrote \'{"breed": "cat"}\'' in text


def test_a_server_that_counts_no_tokens_is_shown_without(shown: Shown, simulated: Simulated) -> None:
    choice = {"message": {"content": json.dumps(ANSWER)}, "finish_reason": "stop"}
    simulated.model_fault = lambda number: web.json_response({"choices": [choice]})
    code, text = shown()
    assert code == 0
    assert "tokens" not in text.splitlines()[-1]


def test_a_picture_without_an_object_asks_nothing(shown: Shown, simulated: Simulated) -> None:
    simulated.boxes = lambda image: []
    code, text = shown()
    assert (code, simulated.model.requests) == (0, 1)  # the probe's
    assert "0 objects" in text


def test_a_broken_picture_is_told(shown: Shown, tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(encoded(gradient())[:500])
    code, text = shown("--images", "b.jpg")
    assert code == 1
    assert "failed    cannot be decoded" in text


def test_the_command_takes_the_jobs_options() -> None:
    name, given = parse(["try", "--images", "x.jpg", "--job", "visual_qa"])
    assert name == "try"
    assert given["job"].options == ("--images", "x.jpg", "--job", "visual_qa")
    assert load_job([*given["job"].options, "--try-one"]).settings.try_one
