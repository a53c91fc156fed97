"""Servers that answer anything: each row ends with what the model said, or with a reason, and no command with a
traceback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline import job as jobs
from pipeline.clients import probe, probe_model, rate_limit
from pipeline.clients.detector import DetectorClient
from pipeline.clients.http import HttpClient, Limits
from pipeline.clients.model import Answer, ModelClient
from pipeline.clients.retries import JSON, MESSAGE_PACK, Refused, Temporary, error_in_good_answer, judge
from pipeline.clients.waits import in_seconds
from pipeline.errors import RowError, UsageError
from pipeline.settings import Settings
from tests.doubles.odd import in_thread

# The same examples in each run, so that a failure is one of the code and not of luck.
FUZZ = settings(
    derandomize=True,
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# The first byte of a TLS handshake.
TLS_HANDSHAKE = b"\x16"

TRUE = {"breed": "pug", "coat_color": "tan", "facing": "left"}
FALSE = json.dumps({"breed": "poodle", "coat_color": "white", "facing": "right"})

# Names and words that a client may trip over, beside any others.
KEYS = st.sampled_from(
    [
        *("choices", "message", "content", "error", "code", "status", "type", "detail", "data", "id", "root", "usage"),
        *("object", "reasoning", "refusal", "tool_calls", "function", "name", "arguments", "finish_reason", "text"),
        *("boxes", "width", "model", "retryDelay"),
    ]
)
WORDS = st.sampled_from(
    ["", "rate limit", "invalid_api_key", "insufficient_quota", "model not found", "try again in 2s", FALSE, "\ud800"]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | WORDS
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
STATUSES = st.sampled_from([status.value for status in HTTPStatus if status >= 200]) | st.integers(200, 999)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            *("Retry-After", "retry-after-ms", "RateLimit-Reset", "Location", "Content-Type", "Set-Cookie"),
            *("x-ratelimit-reset-requests", "x-ratelimit-remaining-requests", "WWW-Authenticate"),
        ]
    ),
    st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=20)
    | st.sampled_from(["1e400", "nan", "-1", "9" * 400, "6m0s", "Wed, 99 Foo 2015", "http://[::1", "//", "0x10"]),
    max_size=4,
)


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


BODIES = VALUES.map(encoded) | st.binary(max_size=60) | st.sampled_from([b"", b"<html>", b"[" * 5000, b"data: [DONE]"])


@dataclass
class Raw:
    """A server that sends the same bytes to every request."""

    response: bytes = b""
    port: int = 0

    def set(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """What is sent from now on."""
        lines = [f"HTTP/1.1 {status} x", *(f"{name}: {value}" for name, value in headers.items())]
        head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "Connection: close", "", ""])
        self.response = head.encode("latin-1") + body

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read a whole request and answer it; end a TLS handshake at once, as a server of plain HTTP does."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            first = await reader.readexactly(1)
            if first == TLS_HANDSHAKE:
                writer.close()
                return
            head = (first + await reader.readuntil(b"\r\n\r\n")).lower()
            _, _, length = head.partition(b"content-length:")
            await reader.readexactly(int(length.split(b"\r\n")[0] or 0))
            writer.write(self.response)
            await writer.drain()
        writer.close()


@pytest.fixture(scope="module")
def raw() -> Iterator[Raw]:
    server = Raw()

    @asynccontextmanager
    async def serving() -> AsyncIterator[int]:
        listening = await asyncio.start_server(server.handle, "127.0.0.1", 0)
        yield listening.sockets[0].getsockname()[1]
        listening.close()

    with in_thread(serving) as port:
        server.port = port
        yield server


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "FIRST_PAUSE_S", 0.0)


def ask(raw: Raw) -> Answer | None:
    """The answer of the model behind the server; None when there is a reason instead."""

    async def main() -> Answer | None:
        http = HttpClient(f"http://127.0.0.1:{raw.port}/v1", Limits(concurrency=1, attempts=1, timeout_s=5.0))
        try:
            return await ModelClient(http, "m", jobs.load("dog_breeds")).ask(b"jpeg")
        except RowError as error:
            reasons.append(str(error))
            return None
        finally:
            await http.aclose()

    reasons: list[str] = []
    answer = asyncio.run(main())
    assert all(0 < len(reason) < 700 for reason in reasons)
    return answer


@FUZZ
@given(status=STATUSES, headers=HEADERS, body=BODIES)
@example(status=200, headers={}, body=encoded({"choices": [{"message": {"content": "\ud800"}}]}))
@example(status=200, headers={}, body=encoded({"choices": [{"message": {"content": [None, 3]}}]}))
@example(status=429, headers={"Retry-After": "9" * 400}, body=b"")
@example(status=302, headers={"Location": "http://[::1"}, body=b"")
def test_any_answer_ends_the_row_with_a_reason(raw: Raw, status: int, headers: dict[str, str], body: bytes) -> None:
    raw.set(status, headers, body)
    assert ask(raw) is None


def in_prose(text: str) -> str:
    return f"It could be {text}, I think."


# Where the answer may stand, and around it what no reading takes.
PLACES: dict[str, Any] = {
    "content": lambda text: {"content": text, "reasoning": FALSE},
    "parts": lambda text: {"content": [{"type": "thinking", "thinking": FALSE}, {"type": "text", "text": text}]},
    "object": lambda text: {"content": json.loads(text), "reasoning_content": FALSE},
    "think": lambda text: {"content": f"<think>{FALSE}</think>{text}"},
    "fence": lambda text: {"content": f"{in_prose(FALSE)}\n```json\n{text}\n```"},
    "reasoning": lambda text: {"content": None, "reasoning": text, "tool_calls": []},
    "tool": lambda text: {"content": "", "tool_calls": [{"function": {"name": "dog_breeds", "arguments": text}}]},
}
NOWHERE: dict[str, Any] = {
    "refusal": lambda text: {"content": None, "refusal": text},
    "other tool": lambda text: {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": text}}]},
    "prose": lambda text: {"content": in_prose(text)},
    "prose in reasoning": lambda text: {"content": None, "reasoning": in_prose(text)},
    "two fences": lambda text: {"content": f"```\n{text}\n```\n```\n{FALSE}\n```"},
    "unfinished thoughts": lambda text: {"content": f"<think>{text}"},
    "nothing": lambda text: {"content": None},
}
NOISE = st.dictionaries(st.text(max_size=5).map("x-{}".format), VALUES, max_size=3)


@FUZZ
@given(place=st.sampled_from([*PLACES, *NOWHERE]), message=NOISE, around=NOISE, headers=HEADERS, others=VALUES)
def test_a_column_holds_only_what_the_model_said(
    raw: Raw, place: str, message: dict[str, Any], around: dict[str, Any], headers: dict[str, str], others: Any
) -> None:
    said = {**message, **(PLACES | NOWHERE)[place](json.dumps(TRUE))}
    second = {"message": {"content": FALSE}, "finish_reason": "stop"}
    choices = [{"message": said, "finish_reason": "stop"}, second, others]
    raw.set(200, headers, encoded({**around, "choices": choices}))
    answer = ask(raw)
    if place in NOWHERE:
        assert answer is None
    else:
        assert answer is not None
        assert answer.fields == TRUE


@FUZZ
@given(status=STATUSES, headers=HEADERS, body=BODIES)
def test_the_detectors_answer_is_boxes_or_a_reason(raw: Raw, status: int, headers: dict[str, str], body: bytes) -> None:
    async def main() -> None:
        http = HttpClient(f"http://127.0.0.1:{raw.port}", Limits(concurrency=1, attempts=1, timeout_s=5.0))
        try:
            await DetectorClient(http, {"dog": None}).detect(b"picture")
        finally:
            await http.aclose()

    raw.set(status, headers, body)
    with pytest.raises(RowError):
        asyncio.run(main())


@FUZZ
@given(status=STATUSES, headers=HEADERS, body=BODIES, model=st.sampled_from([None, "m", "[/red]"]))
@example(status=302, headers={"Location": "http://[::1"}, body=b"", model="m")
@example(status=200, headers={}, body=encoded({"data": [{"id": "a"}, {"id": None}]}), model=None)
@example(status=200, headers={}, body=encoded({"data": [{"id": 7, "root": []}]}), model=None)
def test_a_command_ends_with_one_line(
    raw: Raw, monkeypatch: pytest.MonkeyPatch, status: int, headers: dict[str, str], body: bytes, model: str | None
) -> None:
    """Both services are asked, each by itself: the first that cannot be used ends the command."""
    for module in (probe, probe_model):
        monkeypatch.setattr(module, "LIMITS", Limits(concurrency=1, attempts=1, timeout_s=5.0))
    url, job = f"http://127.0.0.1:{raw.port}/v1", jobs.load("dog_breeds")
    chosen = Settings.model_construct().model_copy(update={"model_url": url, "detector_url": url, "model": model})

    async def ask_model() -> None:
        await probe_model.try_model(chosen, job, await probe_model.find_model(chosen))

    raw.set(status, headers, body)
    for asking in (ask_model(), probe.try_detector(chosen, job)):
        with pytest.raises(UsageError) as raised:
            asyncio.run(asking)
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 800


@FUZZ
@given(status=STATUSES, headers=HEADERS, body=BODIES)
def test_a_verdict_is_short_and_its_wait_is_a_time(status: int, headers: dict[str, str], body: bytes) -> None:
    for judged in (
        judge(status, headers, body),
        *(error_in_good_answer(body, headers, kind) for kind in (JSON, MESSAGE_PACK)),
    ):
        assert isinstance(judged, (Temporary, Refused)) or judged is None
        assert len(str(judged)) < 400
        assert not isinstance(judged, Temporary) or 0 <= judged.wait_s < float("inf")


@FUZZ
@given(value=st.text(max_size=30))
@example(value="Thu, 01 Jan 99999 00:00:00 GMT")
@example(value="1" * 500 + "d")
def test_any_text_is_a_time_or_none(value: str) -> None:
    assert 0 <= in_seconds(value) < float("inf")
