"""The detector's client: an answer in another form is refused before it becomes a row."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgpack
import pytest

from pipeline.clients.address import Address
from pipeline.clients.detector import BadReply, DetectorClient
from pipeline.clients.http import HttpClient, Limits, Reply

BOX = {"box": [1, 2.5, 30, 40], "label": "dog", "score": 0.5}
ANSWER = {"boxes": [BOX], "width": 64, "height": 48, "model": "tiny", "revision": None}


@pytest.fixture
def client() -> DetectorClient:
    return DetectorClient(HttpClient("http://nowhere", Limits(concurrency=1)), {"dog": None})


def answered(client: DetectorClient, monkeypatch: pytest.MonkeyPatch, answer: Any) -> Any:
    """What the client makes of an answer."""

    async def post(path: str, body: bytes, content_type: str) -> Reply:
        return Reply(msgpack.packb(answer), 1, 0.1, cast(Address, None))

    monkeypatch.setattr(client.http, "post", post)
    return asyncio.run(client.detect(b"picture"))


def test_boxes_come_by_score_and_ties_by_place(client: DetectorClient, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = [BOX | {"score": 0.2}, BOX | {"score": 0.9, "box": [9, 9, 20, 20]}, BOX | {"score": 0.9}]
    found = answered(client, monkeypatch, ANSWER | {"boxes": boxes})
    assert [(box.score, box.box[0]) for box in found.boxes] == [(0.9, 1), (0.9, 9), (0.2, 1)]
    assert (found.width, found.height, found.model, found.revision) == (64, 48, "tiny", None)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"boxes": [BOX | {"label": ["dog"]}]}, id="a list for a label"),
        pytest.param({"boxes": [BOX | {"box": [1, 2, 3]}]}, id="three sides"),
        pytest.param({"boxes": [BOX | {"box": [1, 2, 3, "four"]}]}, id="no number"),
        pytest.param({"boxes": [BOX | {"score": "high"}]}, id="a word for a score"),
        pytest.param({"boxes": None}, id="no boxes"),
        pytest.param({"width": 0}, id="no width"),
        pytest.param({"model": {"name": "tiny"}}, id="a mapping for a name"),
    ],
)
def test_another_form_is_refused(
    client: DetectorClient, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]
) -> None:
    with pytest.raises(BadReply, match="validation error"):
        answered(client, monkeypatch, ANSWER | wrong)
