"""What a server's answer means, by status, body and headers, as real servers send them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from pipeline.clients.retries import (
    JSON,
    KEY,
    MESSAGE_PACK,
    MODEL,
    PROXY,
    QUOTA,
    REDIRECT,
    REQUEST,
    RateLimited,
    Refused,
    Temporary,
    error_in_good_answer,
    judge,
)
from pipeline.clients.waits import in_seconds, wait_asked_for

GOOD = {"choices": [{"message": {"content": "{}"}, "finish_reason": "stop"}]}


def verdict(status: int, body: Any = "", headers: Mapping[str, str] | None = None) -> str:
    """`waits`, `heals`, or the cause of a refusal."""
    text = body if isinstance(body, str) else json.dumps(body)
    return kind(judge(status, headers or {}, text.encode()))


def kind(judged: Temporary | Refused | None) -> str:
    if judged is None:
        return "answer"
    if isinstance(judged, Refused):
        return judged.cause
    return "waits" if isinstance(judged, RateLimited) else "heals"


def error(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


@pytest.mark.parametrize(
    ("status", "expected"),
    [(status, "heals") for status in (408, 409, 421, 424, 425, 460, 498, 499, 500, 502, 503, 504, 507, 529, 598)]
    + [(status, "heals") for status in range(520, 531)]
    + [(status, REQUEST) for status in (202, 204, 400, 403, 404, 405, 413, 415, 422, 451, 501, 505, 508, 511)]
    + [(status, REDIRECT) for status in (301, 302, 303, 307, 308)]
    + [(401, KEY), (402, QUOTA), (407, PROXY), (429, "waits")],
)
def test_statuses_go_by_class(status: int, expected: str) -> None:
    assert verdict(status, "<html>") == expected


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        pytest.param(401, error("Authentication Error, No api key passed in."), KEY, id="LiteLLM, no key"),
        pytest.param(401, error("Invalid proxy server token passed", type="token_not_found_in_db"), KEY, id="LiteLLM"),
        pytest.param(400, error("No connected db.", type="no_db_connection", code="400"), KEY, id="LiteLLM without db"),
        pytest.param(500, error("Authentication Error, LiteLLM Virtual Key expected."), KEY, id="old LiteLLM"),
        pytest.param(400, error("API key not valid. Please pass a valid API key."), KEY, id="Google"),
        pytest.param(400, error("Incorrect API key provided", code="invalid_api_key"), KEY, id="invalid_api_key"),
        pytest.param(403, {"detail": "Forbidden"}, KEY, id="forbidden"),
        pytest.param(403, "<html><title>Attention Required! | Cloudflare</title>", REQUEST, id="Cloudflare's block"),
        pytest.param(404, error("The model `x` does not exist.", type="NotFoundError"), MODEL, id="vLLM"),
        pytest.param(400, error("Invalid model name passed in model=x."), MODEL, id="LiteLLM, model"),
        pytest.param(400, error("There are no healthy deployments for this model"), MODEL, id="LiteLLM, patterns"),
        pytest.param(401, error("key not allowed to access model.", type="key_model_access_denied"), MODEL, id="team"),
        pytest.param(404, error('model "x" not found, try pulling it first'), MODEL, id="Ollama"),
        pytest.param(429, error("You exceeded your current quota", code="insufficient_quota"), QUOTA, id="OpenAI"),
        pytest.param(402, error("Insufficient credits", code=402), QUOTA, id="OpenRouter"),
        pytest.param(400, error("Your credit balance is too low to access the API."), QUOTA, id="Anthropic"),
        pytest.param(
            400, error("ExceededBudget: Current spend: 2", type="budget_exceeded"), QUOTA, id="LiteLLM budget"
        ),
        pytest.param(429, error("Your account is not active", code="billing_not_active"), QUOTA, id="billing"),
        pytest.param(429, error("Quota exceeded for quota metric 'x' per minute"), "waits", id="Google, per minute"),
        pytest.param(
            429,
            {"error": {"message": "You exceeded your current quota", "details": [{"retryDelay": "34s"}]}},
            "waits",
            id="Google, with a time",
        ),
        pytest.param(403, error("User Rate Limit Exceeded", reason="rateLimitExceeded"), "waits", id="403"),
        pytest.param(400, {"__type": "ThrottlingException", "message": "Rate exceeded: throttling"}, "waits", id="AWS"),
        pytest.param(429, error("Request too large for m: Limit 10000, Requested 12000."), REQUEST, id="too large"),
        pytest.param(503, {"error": "Model x is currently loading", "estimated_time": 20.0}, "heals", id="loading"),
        pytest.param(424, {"error": "Request failed during generation"}, "heals", id="TGI"),
        pytest.param(500, "image too small", "heals", id="server error"),
    ],
)
def test_words_name_the_cause(status: int, body: Any, expected: str) -> None:
    judged = judge(status, {}, (body if isinstance(body, str) else json.dumps(body)).encode())
    assert kind(judged) == expected
    assert str(judged).startswith(f"HTTP {status}: ")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(GOOD, "answer", id="answer"),
        pytest.param(GOOD | {"error": None}, "answer", id="no error"),
        pytest.param({"choices": [{"message": {"content": '{"error": "{"}'}}]}, "answer", id="an answer about errors"),
        pytest.param("", "heals", id="empty"),
        pytest.param(" \n", "heals", id="white space"),
        pytest.param("<!DOCTYPE html><title>502 Bad Gateway</title>", "heals", id="page"),
        pytest.param("upstream connect error or disconnect/reset before headers", "heals", id="text"),
        pytest.param(json.dumps(GOOD)[:-9], "heals", id="broken off"),
        pytest.param(json.dumps(GOOD)[:-1], "heals", id="broken off at a brace"),
        pytest.param("data: {}", "heals", id="stream"),
        pytest.param("[" * 5000, "heals", id="nested"),
        pytest.param({}, "heals", id="nothing"),
        pytest.param({"choices": None}, "heals", id="null for choices"),
        pytest.param({"choices": [], "error": None}, "heals", id="no choices"),
        pytest.param([], "heals", id="list"),
        pytest.param(error("Provider returned error", code=502), "heals", id="OpenRouter, 502"),
        pytest.param(error("Provider returned error", code=429), "waits", id="OpenRouter, 429"),
        pytest.param(error("Rate limit exceeded: free-models-per-min"), "waits", id="words of a rate limit"),
        pytest.param({"error": "model overloaded", "error_type": "overloaded"}, "heals", id="TGI"),
        pytest.param({"object": "error", "message": "rate limit", "code": 40001}, "waits", id="FastChat"),
        pytest.param(error("No auth", code=401), KEY, id="401"),
        pytest.param(error("Insufficient balance"), QUOTA, id="DeepSeek"),
        pytest.param(error("bad", type="invalid_request_error"), REQUEST, id="invalid request"),
        pytest.param({"error": {"code": 404, "message": "model x not found"}}, MODEL, id="model"),
        pytest.param({"choices": [{"error": {"code": 502}, "message": {"content": ""}}]}, "heals", id="in the choice"),
        pytest.param(
            {"choices": [{"message": {"content": "a"}, "finish_reason": "error"}]}, "heals", id="finish error"
        ),
        pytest.param({"choices": [{"message": {"content": "a"}, "finish_reason": "abort"}]}, "heals", id="abort"),
    ],
)
def test_a_good_status_does_not_make_an_answer(body: Any, expected: str) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    judged = error_in_good_answer(text.encode(), {}, JSON)
    assert kind(judged) == expected
    assert judged is None or str(judged).startswith("HTTP 200 ")


@pytest.mark.parametrize(("body", "expected"), [(b"\x85\xa5boxes", "answer"), (b"", "heals"), (b"<html>", "heals")])
def test_a_page_is_no_message_of_the_detector(body: bytes, expected: str) -> None:
    assert kind(error_in_good_answer(body, {}, MESSAGE_PACK)) == expected


def test_of_a_page_the_title_is_shown() -> None:
    page = "<!DOCTYPE html>\n<html>" + " " * 500 + "<title>x | 524: A\n timeout occurred</title>"
    assert str(judge(524, {}, page.encode())) == "HTTP 524: x | 524: A timeout occurred"
    assert len(str(judge(500, {}, b"x" * 9000))) <= len("HTTP 500: ") + 300


def in_30_s() -> datetime:
    return datetime.now(UTC) + timedelta(seconds=30)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("0.5", 0.5),
        ("-3", 0),
        ("", 0),
        ("soon", 0),
        ("nan", 0),
        ("inf", 0),
        ("1e400", 0),
        ("1s", 1),
        ("20ms", 0.02),
        ("6m0s", 360),
        ("1h2m3.5s", 3723.5),
        ("26 seconds", 26),
        ("2 minutes", 120),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("2015-10-21T07:28:00Z", 0),
    ],
)
def test_a_time_in_any_form(value: str, seconds: float) -> None:
    assert in_seconds(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "form",
    [
        lambda at: format_datetime(at, usegmt=True),
        lambda at: at.isoformat(),
        lambda at: f"{at.timestamp():.0f}",
        lambda at: f"{at.timestamp() * 1000:.0f}",
    ],
    ids=["HTTP date", "ISO 8601", "seconds since 1970", "milliseconds since 1970"],
)
def test_a_moment_in_any_form(form: Any) -> None:
    assert in_seconds(form(in_30_s())) == pytest.approx(30, abs=2)


@pytest.mark.parametrize(
    ("headers", "words", "seconds"),
    [
        ({"retry-after-ms": "1500", "Retry-After": "9"}, "", 1.5),
        ({"x-ms-retry-after-ms": "250"}, "", 0.25),
        ({"llm_provider-retry-after": "60"}, "", 60),
        ({"Retry-After": "9", "x-ratelimit-reset-requests": "1s"}, "", 9),
        ({"x-ratelimit-reset-requests": "6m0s", "x-ratelimit-remaining-requests": "0"}, "", 360),
        (
            {
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-remaining-requests": "57",
                "x-ratelimit-reset-tokens": "40s",
                "x-ratelimit-remaining-tokens": "0",
            },
            "",
            40,
        ),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "40s"}, "", 1),
        ({"RateLimit-Reset": "12", "RateLimit-Remaining": "0"}, "", 12),
        ({"anthropic-ratelimit-requests-reset": "7", "anthropic-ratelimit-requests-remaining": "0"}, "", 7),
        ({}, "Please try again in 6m0s. Visit https://x", 360),
        ({}, "Rate limit is exceeded. Try again in 26 seconds.", 26),
        ({}, "Please retry after 3 seconds.", 3),
        ({}, '{"error": {"details": [{"retryDelay": "34s"}]}}', 34),
        ({}, '{"error": "loading", "estimated_time": 20.0}', 20),
        ({}, "slow down", 0),
    ],
)
def test_the_wait_is_found_wherever_it_stands(headers: dict[str, str], words: str, seconds: float) -> None:
    assert wait_asked_for(headers, words, limits=True) == pytest.approx(seconds)


def test_limits_that_are_told_with_every_answer_do_not_delay_a_try_after_another_error() -> None:
    assert wait_asked_for({"x-ratelimit-reset-tokens": "40s"}, "", limits=False) == 0
    judged = judge(500, {"x-ratelimit-reset-tokens": "40s"}, b"")
    assert isinstance(judged, Temporary)
    assert judged.wait_s == 0


def test_a_limit_whose_end_is_past_is_no_wait() -> None:
    assert wait_asked_for({"X-RateLimit-Reset": f"{time.time() - 5:.0f}"}, "", limits=True) == 0
