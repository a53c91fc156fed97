"""The APIs of model servers: what is asked, what is read, and which form the probe chooses."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from pipeline import job as jobs
from pipeline.clients import probe_model
from pipeline.clients.completion import completion_request
from pipeline.clients.connect import make_clients, refuse_clear_text
from pipeline.clients.dialects import DIALECTS, PICTURE, RequestForm
from pipeline.clients.dialects.responses import completion as of_response
from pipeline.clients.http import HttpClient, Limits
from pipeline.clients.model import BadAnswer, ModelClient
from pipeline.clients.retries import Temporary, error_in_good_answer
from pipeline.errors import InvalidSetting, ServiceRefuses
from pipeline.runtime.runtime import Runtime
from pipeline.settings import Settings
from tests.doubles import responses_api
from tests.doubles.odd import answering
from tests.doubles.simulated import ANSWER, completion

JOB = jobs.load("dog_breeds")
TEXT = json.dumps(ANSWER)
RESPONSES = RequestForm("responses")


def choose(handler: Any, job: jobs.Job = JOB, **more: Any) -> tuple[RequestForm, str | None]:
    """The form that the probe chooses at a server."""

    async def choosing(chosen: Settings) -> tuple[RequestForm, str | None]:
        served = await probe_model.find_model(chosen)
        return await probe_model.try_model(chosen, job, served)

    with answering(handler) as port:
        url = f"http://127.0.0.1:{port}/v1"
        chosen = Settings.model_construct().model_copy(update={"model_url": url, "model": "m", **more})
        return asyncio.run(choosing(chosen))


def chat(taken: Callable[[dict[str, Any]], web.Response | None], bodies: list[dict[str, Any]] | None = None) -> Any:
    """A server of chat completions that answers well unless `taken` has another answer."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if not request.path.endswith("/chat/completions"):
            return web.json_response({"detail": "Not Found"}, status=404)
        body = json.loads(await request.read())
        if bodies is not None:
            bodies.append(body)
        return taken(body) or completion(TEXT)

    return answer


def refuse(message: str) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=400)


# --- requests --------------------------------------------------------------------------------------------------------


def test_a_request_of_the_responses_api() -> None:
    question = JOB.questions[0]
    assert completion_request(question, JOB, "m", RESPONSES) == {
        "model": "m",
        "max_output_tokens": question.max_tokens,
        "temperature": 0.0,
        "store": False,
        "text": {
            "format": {"type": "json_schema", "name": "dog_breeds", "schema": question.answer_schema, "strict": True}
        },
        "input": [
            {
                "role": "user",
                "content": [
                    {"type": "input_image", "image_url": PICTURE, "detail": "auto"},
                    {"type": "input_text", "text": question.question},
                ],
            }
        ],
    }


@pytest.mark.parametrize("api", DIALECTS)
def test_forms_of_the_schema(api: Any) -> None:
    question = JOB.questions[0]
    vllm = completion_request(question, JOB, "m", RequestForm(api, "structured_outputs"))
    assert vllm["structured_outputs"] == {"json": question.answer_schema}
    assert not {"response_format", "text"} & vllm.keys()
    for form, field in (("json_object", {"type": "json_object"}), ("none", None)):
        request = completion_request(question, JOB, "m", RequestForm(api, form))  # type: ignore[arg-type]
        assert (request.get("response_format") or request.get("text", {}).get("format")) == field
        content = (request.get("messages") or request["input"])[0]["content"]
        assert json.dumps(question.answer_schema) in content[1]["text"]


def test_room_for_thoughts_is_added_to_the_limit() -> None:
    thinking = JOB.model_copy(update={"reasoning_tokens": 1000, "temperature": None})
    limit = JOB.questions[0].max_tokens + 1000
    for form, field in ((RequestForm(), "max_tokens"), (RESPONSES, "max_output_tokens")):
        request = completion_request(JOB.questions[0], thinking, "m", form)
        assert request[field] == limit
        assert "temperature" not in request


# --- answers of the Responses API ------------------------------------------------------------------------------------


def client(form: RequestForm = RESPONSES) -> ModelClient:
    return ModelClient(HttpClient("http://nowhere", Limits(concurrency=1)), "m", JOB, form)


def test_an_answer_of_the_responses_api() -> None:
    body = json.dumps(responses_api.response(TEXT, thoughts="The ears hang.")).encode()
    answer = client().forms[0].parse(body, 1, 0.5)
    assert (answer.fields, answer.raw) == (ANSWER, TEXT)
    assert (answer.prompt_tokens, answer.completion_tokens) == (40, 12)
    assert error_in_good_answer(body, {}, "application/json") is None


def test_an_answer_that_is_cut_names_the_limit() -> None:
    with pytest.raises(BadAnswer, match="cut at max_output_tokens = 64") as raised:
        client().forms[0].parse(json.dumps(responses_api.response(TEXT[:5], cut=True)).encode(), 1, 0.5)
    assert not raised.value.unbound


def test_a_refusal_and_a_filter_are_told() -> None:
    refused = responses_api.response("")
    refused["output"][0]["content"] = [{"type": "refusal", "refusal": "I cannot help with dogs."}]
    with pytest.raises(BadAnswer, match="refused: I cannot help with dogs"):
        client().forms[0].parse(json.dumps(refused).encode(), 1, 0.5)
    filtered = responses_api.response("x") | {
        "status": "incomplete",
        "incomplete_details": {"reason": "content_filter"},
    }
    with pytest.raises(BadAnswer, match="content filter"):
        client().forms[0].parse(json.dumps(filtered).encode(), 1, 0.5)


def test_a_response_that_failed_is_tried_again() -> None:
    body = responses_api.response("") | {"status": "failed", "error": {"code": "server_error", "message": "sorry"}}
    assert isinstance(error_in_good_answer(json.dumps(body).encode(), {}, "application/json"), Temporary)


@pytest.mark.parametrize("body", [None, [], {"output": None}, {"output": [None, {}, {"content": 3}, {"content": [3]}]}])
def test_odd_bodies_are_bad_answers(body: Any) -> None:
    of_response(body)
    with pytest.raises(BadAnswer):
        client().forms[0].parse(json.dumps(body).encode(), 1, 0.5)


# --- the probe's choice ----------------------------------------------------------------------------------------------


def test_the_usual_form_is_taken_where_it_works() -> None:
    bodies: list[dict[str, Any]] = []
    assert choose(chat(lambda body: None, bodies)) == (RequestForm(), None)
    assert len(bodies) == 1


def test_the_strict_responses_api_takes_the_requests() -> None:
    form, why = choose(responses_api.answering(TEXT))
    assert form == RESPONSES
    assert why is not None
    assert "HTTP 404" in why


def test_a_model_that_reasons_refuses_a_temperature_with_the_remedy() -> None:
    with pytest.raises(ServiceRefuses, match="temperature: null"):
        choose(responses_api.answering(TEXT, thinks=True))
    without = JOB.model_copy(update={"temperature": None})
    assert choose(responses_api.answering(TEXT, thinks=True), without)[0] == RESPONSES


def test_a_newer_limit_is_taken_where_the_server_asks_for_it() -> None:
    bodies: list[dict[str, Any]] = []

    def newer(body: dict[str, Any]) -> web.Response | None:
        if "max_tokens" in body:
            return refuse("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return None

    form, _ = choose(chat(newer, bodies))
    assert form == RequestForm(limit="max_completion_tokens")
    assert bodies[-1]["max_completion_tokens"] == JOB.questions[0].max_tokens


@pytest.mark.parametrize(
    ("refused", "expected"),
    [
        (("json_schema",), "structured_outputs"),
        (("json_schema", "structured_outputs"), "json_object"),
        (("json_schema", "structured_outputs", "json_object"), "none"),
    ],
)
def test_the_first_form_of_the_schema_that_the_server_takes(refused: tuple[str, ...], expected: str) -> None:
    def taken(body: dict[str, Any]) -> web.Response | None:
        used = body.get("response_format", {}).get("type") or (
            "structured_outputs" if "structured_outputs" in body else ""
        )
        return refuse(f"{used} is not supported") if used in refused else None

    form, why = choose(chat(taken))
    assert (form.api, form.schema_form) == ("chat", expected)
    assert "json_schema is not supported" in (why or "")


def test_a_server_that_ignores_the_schema_is_found() -> None:
    """It answers 200 and in prose, unless the prompt asks for JSON."""

    def prose(body: dict[str, Any]) -> web.Response | None:
        told = "JSON Schema" in body["messages"][0]["content"][1]["text"]
        return None if told else completion("A poodle, I think. It looks to the left.")

    form, why = choose(chat(prose))
    assert form.schema_form == "json_object"
    assert "not JSON" in (why or "")


def test_an_answer_that_is_cut_is_no_reason_for_another_form() -> None:
    bodies: list[dict[str, Any]] = []
    with pytest.raises(ServiceRefuses, match="cut at max_tokens"):
        choose(chat(lambda body: completion("{", "length"), bodies))
    assert len(bodies) == 1


def test_a_form_that_is_set_is_the_only_one_that_is_tried() -> None:
    bodies: list[dict[str, Any]] = []
    with pytest.raises(ServiceRefuses, match="no such field"):
        choose(chat(lambda body: refuse("no such field"), bodies), api="chat", schema_form="json_schema")
    assert [body.get("logprobs") for body in bodies] == [True, None]


def test_the_first_refusal_is_told_when_no_form_is_taken() -> None:
    def never(body: dict[str, Any]) -> web.Response:
        return refuse("text-only model" if "response_format" in body else "another reason")

    with pytest.raises(ServiceRefuses, match="text-only model"):
        choose(chat(never))


def test_prose_that_is_cut_means_that_the_schema_was_ignored() -> None:
    def taken(body: dict[str, Any]) -> web.Response | None:
        return None if "structured_outputs" in body else completion("Sure! This dog looks like", "length")

    assert choose(chat(taken))[0] == RequestForm(schema_form="structured_outputs")


def test_a_server_that_follows_the_text_alone_is_found() -> None:
    """The question asks for JSON by itself, so that an answer that fits it says nothing of the schema."""
    question = JOB.questions[0].model_copy(update={"question": "Answer as JSON with breed, coat_color and facing."})
    bodies: list[dict[str, Any]] = []
    form, reason = choose(chat(lambda body: None, bodies), JOB.model_copy(update={"questions": [question]}))
    assert form == RequestForm(schema_form="json_object")
    assert "does not fit the schema" in str(reason)
    assert len(bodies) == 5  # two questions in each of the first two forms


# --- the key ---------------------------------------------------------------------------------------------------------


KEY = SecretStr("sesame")


def noting(seen: list[tuple[str, str]], status: int = 404, **headers: str) -> Any:
    """A server that notes each request's path and headers."""

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append((request.path, str(dict(request.headers))))
        return web.Response(status=status, headers=headers)

    return answer


def test_a_redirect_takes_no_key_along() -> None:
    here: list[tuple[str, str]] = []
    there: list[tuple[str, str]] = []
    with answering(noting(there)) as port:
        server = noting(here, 307, Location=f"http://127.0.0.1:{port}/v1/models")
        with pytest.raises(ServiceRefuses, match="redirects"):
            choose(server, api_key=KEY)
    assert "sesame" in here[0][1]
    assert there == []


def test_polling_for_metrics_sends_no_key() -> None:
    seen: list[tuple[str, str]] = []
    with answering(noting(seen)) as port:
        settings = Settings(model_url=f"http://127.0.0.1:{port}/v1", api_key=KEY)
        make_clients(settings, JOB, "m", Runtime.alone()).load.servers["model"].poll()
    ((path, headers),) = seen
    assert path == "/metrics"
    assert "sesame" not in headers


@pytest.mark.parametrize(
    ("url", "key", "refused"),
    [
        ("http://127.0.0.1:8000/v1", KEY, False),
        ("http://vllm:8000/v1", KEY, False),
        ("http://192.168.3.4:8000/v1", KEY, False),
        ("https://8.8.8.8/v1", KEY, False),
        ("http://8.8.8.8/v1", None, False),
        ("http://8.8.8.8/v1", KEY, True),
        ("http://127.0.0.1:8000/v1,https://8.8.8.8/v1", KEY, False),
        ("http://127.0.0.1:8000/v1,http://8.8.8.8/v1", KEY, True),
    ],
)
def test_a_key_does_not_leave_the_private_network_as_text(url: str, key: SecretStr | None, refused: bool) -> None:
    settings = Settings(model_url=url, api_key=key)
    with pytest.raises(InvalidSetting, match="an address with https") if refused else contextlib.nullcontext():
        refuse_clear_text(settings)


def test_a_key_does_not_go_through_a_proxy_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    settings = Settings(model_url="http://192.168.3.4:8000/v1", api_key=KEY)
    with pytest.raises(InvalidSetting, match=r"to 192\.168\.3\.4 through the proxy proxy\.example as readable text"):
        refuse_clear_text(settings)


# --- confidence ------------------------------------------------------------------------------------------------------

FOUND = [{"token": TEXT, "logprob": -0.5}]


def with_logprobs(body: dict[str, Any]) -> web.Response | None:
    """A server that gives logprobs where they are asked for."""
    message = {"message": {"content": TEXT}, "finish_reason": "stop"}
    return (
        web.json_response({"choices": [message | {"logprobs": {"content": FOUND}}]}) if body.get("logprobs") else None
    )


def test_logprobs_are_asked_for_where_the_server_gives_them() -> None:
    form, why = choose(chat(with_logprobs))
    assert (form.logprobs, why) == (True, None)
    assert not choose(chat(with_logprobs), confidence="off")[0].logprobs
    assert not choose(chat(lambda body: None))[0].logprobs


@pytest.mark.parametrize(("status", "said"), [(400, "unknown field"), (403, "You may not request logprobs from it")])
def test_a_server_that_refuses_logprobs_is_asked_without(status: int, said: str) -> None:
    bodies: list[dict[str, Any]] = []

    def refused(body: dict[str, Any]) -> web.Response | None:
        return web.json_response({"error": {"message": said}}, status=status) if "logprobs" in body else None

    form, why = choose(chat(refused, bodies))
    assert (form, form.logprobs, why) == (RequestForm(), False, None)
    assert [body.get("logprobs") for body in bodies] == [True, None]
    with pytest.raises(ServiceRefuses, match="gives no logprobs, which SPOTTER_CONFIDENCE=on asks for"):
        choose(chat(refused), confidence="on")
