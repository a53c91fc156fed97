"""A service that cannot be used is one line with its own remedy, before the first image is read."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from pipeline import job as jobs
from pipeline.clients import probe_model, rate_limit
from pipeline.errors import ModelNotServed, ServiceRefuses, ServiceUnreachable, UsageError
from pipeline.settings import Settings
from tests.doubles.odd import Proxy, answering, make_certificate, proxying
from tests.doubles.simulated import ANSWER, completion

Handler = Callable[[web.Request], web.StreamResponse]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "FIRST_PAUSE_S", 0.01)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def settings(url: str, model: str | None = "m", **more: Any) -> Settings:
    return Settings.model_construct().model_copy(update={"model_url": url, "model": model, **more})


def ask(chosen: Settings) -> str:
    """The probe of the model server: the name of the model that answered."""

    async def both() -> str:
        served = await probe_model.find_model(chosen)
        await probe_model.try_model(chosen, jobs.load("dog_breeds"), served)
        return served.model

    return asyncio.run(both())


def failure(chosen: Settings, kind: type[UsageError]) -> str:
    with pytest.raises(kind) as raised:
        ask(chosen)
    line = str(raised.value)
    assert "\n" not in line
    assert len(line) < 600
    return line


def good(request: web.Request) -> web.StreamResponse:
    """A gateway that lists no models."""
    if request.path.endswith("/chat/completions"):
        return completion(json.dumps(ANSWER))
    return web.json_response({"detail": "Not Found"}, status=404)


@contextmanager
def served(handler: Handler, **tls: Any) -> Iterator[str]:
    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        return handler(request)

    with answering(answer, **tls) as port:
        yield f"http{'s' if tls else ''}://127.0.0.1:{port}/v1"


def listing(*names: str, models: tuple[str, ...] = ("m",)) -> Handler:
    def answer(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/models"):
            return web.json_response({"data": [{"id": name} for name in names]})
        return good(request)

    return answer


@pytest.mark.parametrize(
    "models",
    [
        pytest.param(lambda: web.json_response({"detail": "no"}, status=404), id="no list"),
        pytest.param(lambda: web.json_response({"detail": "no"}, status=403), id="list is forbidden"),
        pytest.param(lambda: web.Response(status=500), id="list fails"),
        pytest.param(lambda: web.Response(text="<html>hello</html>"), id="page"),
        pytest.param(lambda: web.json_response([]), id="another form"),
        pytest.param(lambda: web.json_response({"data": []}), id="empty"),
        pytest.param(lambda: web.json_response({"data": [{"id": "*"}, {"id": "openai/*"}]}), id="patterns"),
        pytest.param(lambda: web.json_response({"data": [{"id": "other"}]}), id="other names"),
    ],
)
def test_a_model_that_is_set_needs_no_list(models: Callable[[], web.StreamResponse]) -> None:
    with served(lambda request: models() if request.path.endswith("/models") else good(request)) as url:
        assert ask(settings(url)) == "m"


@pytest.mark.parametrize(
    ("handler", "kind", "said"),
    [
        (
            good,
            ServiceRefuses,
            "/models answers HTTP 404: .*ends in /v1: check SPOTTER_MODEL_URL, or set SPOTTER_MODEL",
        ),
        (listing("*"), ModelNotServed, r"serves \*: choose one with SPOTTER_MODEL"),
        (listing("a", "b"), ModelNotServed, "serves a, b: choose one with SPOTTER_MODEL"),
        (listing(*"abcdefghi"), ModelNotServed, "serves a, b, c, d, e and 4 more"),
        (lambda request: web.Response(text="<html>"), ServiceRefuses, "does not list models: .*set SPOTTER_MODEL"),
    ],
)
def test_without_one_the_list_has_to_name_it(handler: Handler, kind: type[UsageError], said: str) -> None:
    with served(handler) as url, pytest.raises(kind, match=said):
        ask(settings(url, model=None))


def refuse(status: int, body: Any) -> Handler:
    return lambda request: web.json_response(body, status=status)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, {"error": {"message": "Unauthorized"}}),
        (403, {"detail": "Forbidden"}),
        (400, {"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}),
        (400, {"error": {"message": "No connected db.", "type": "no_db_connection"}}),
        (500, {"error": {"message": "Authentication Error, Invalid proxy server token passed"}}),
        (200, {"error": {"message": "No auth credentials found", "code": 401}}),
    ],
)
@pytest.mark.parametrize(("key", "remedy"), [(None, "set SPOTTER_API_KEY"), ("s3cret", "correct SPOTTER_API_KEY")])
def test_a_wrong_key_is_called_one_whatever_the_status(status: int, body: Any, key: str | None, remedy: str) -> None:
    with served(refuse(status, body)) as url:
        line = failure(settings(url, api_key=SecretStr(key) if key else None), ServiceRefuses)
    assert "refuses the key" in line
    assert remedy in line
    assert (body.get("detail") or body["error"]["message"]) in line
    assert "s3cret" not in line


@pytest.mark.parametrize(
    ("handler", "kind", "said"),
    [
        (refuse(404, {"error": {"message": "The model `m` does not exist."}}), ModelNotServed, "does not serve 'm'"),
        (refuse(402, {"error": {"message": "Insufficient credits"}}), ServiceRefuses, "lack of quota: .*credits"),
        (
            refuse(400, {"error": {"message": "image too large"}}),
            ServiceRefuses,
            "refuses the requests .*image too large",
        ),
        (refuse(404, {"detail": "Not Found"}), ServiceRefuses, "HTTP 404: .*ends in /v1: check SPOTTER_MODEL_URL"),
        (refuse(500, {"detail": "a bug"}), ServiceRefuses, "refuses the requests .*HTTP 500: .*a bug"),
        (refuse(200, {"hello": "world"}), ServiceRefuses, "HTTP 200 but no answer: .*hello"),
    ],
)
def test_other_refusals_have_the_servers_words(handler: Handler, kind: type[UsageError], said: str) -> None:
    with served(handler) as url, pytest.raises(kind, match=said):
        ask(settings(url))


@pytest.mark.parametrize("key", [None, "s3cret"])
def test_a_server_that_fails_without_a_word_may_miss_a_key(key: str | None) -> None:
    """LiteLLM without its database answers so where no key is sent."""
    with served(lambda request: web.Response(status=500, text="Internal Server Error")) as url:
        line = failure(settings(url, api_key=SecretStr(key) if key else None), ServiceRefuses)
    assert "HTTP 500: Internal Server Error" in line
    assert ("if it asks for a key, set SPOTTER_API_KEY" in line) is (key is None)


def test_a_model_that_is_not_served_is_told_with_names_like_it() -> None:
    def answer(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/models"):
            return web.json_response(
                {"data": [{"id": f"model-{number}"} for number in range(50)] + [{"id": "gemma-3"}]}
            )
        return web.json_response({"error": {"message": "Invalid model name passed in model=gemma3"}}, status=400)

    with served(answer) as url:
        line = failure(settings(url, model="gemma3"), ModelNotServed)
    assert "does not serve 'gemma3', but lists gemma-3" in line
    assert "correct SPOTTER_MODEL (HTTP 400: " in line


@pytest.mark.parametrize("status", [524, 429, 503])
def test_a_bad_moment_of_a_gateway_is_waited_out(status: int) -> None:
    asked: list[str] = []

    def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return good(request) if len(asked) % 2 == 0 else web.Response(status=status)

    with served(answer) as url:
        assert ask(settings(url)) == "m"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("prefix", ["https://api.example/v1", "/llm/v1"])
def test_a_redirect_names_the_address_to_set(status: int, prefix: str) -> None:
    def answer(request: web.Request) -> web.StreamResponse:
        target = prefix + request.path.removeprefix("/v1")
        return web.Response(status=status, headers={"Location": target})

    with served(answer) as url:
        line = failure(settings(url), ServiceRefuses)
        expected = prefix if prefix.startswith("https") else url.removesuffix("/v1") + prefix
    assert line.endswith(f"redirects: set SPOTTER_MODEL_URL={expected}")


def test_a_redirect_to_a_page_is_no_address_to_set() -> None:
    with served(lambda request: web.Response(status=302, headers={"Location": "https://login.example/?next=x"})) as url:
        line = failure(settings(url), ServiceRefuses)
    assert "redirects to https://login.example/?next=x: set SPOTTER_MODEL_URL to an address that answers" in line


def test_http_at_a_port_that_speaks_https(tmp_path: Path) -> None:
    _, tls = make_certificate(tmp_path, "localhost", "127.0.0.1")
    with served(good, tls=tls) as url:
        plain = url.replace("https:", "http:")
        assert failure(settings(plain), ServiceRefuses).endswith(f"speaks https: set SPOTTER_MODEL_URL={url}")


def test_http_at_a_port_of_nginx_that_speaks_https() -> None:
    """It answers in plain text; a server that says 400 and does not speak TLS is not taken for one."""
    words = "<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head></html>"
    with served(lambda request: web.Response(status=400, text=words)) as url:
        assert "sent to HTTPS port" in failure(settings(url), ServiceRefuses)


def test_https_at_a_port_that_speaks_http() -> None:
    with served(good) as url:
        line = failure(settings(url.replace("http:", "https:")), ServiceUnreachable)
    assert line.endswith(f"it speaks http: set SPOTTER_MODEL_URL={url}")


def test_a_certificate_of_its_own_is_trusted_by_setting_alone(tmp_path: Path) -> None:
    """Without it not even the key is sent."""
    certificate, tls = make_certificate(tmp_path, "localhost", "127.0.0.1")
    keys: list[str | None] = []

    def answer(request: web.Request) -> web.StreamResponse:
        keys.append(request.headers.get("Authorization"))
        return good(request)

    with served(answer, tls=tls) as url:
        chosen = settings(url, api_key=SecretStr("s3cret"))
        line = failure(chosen, ServiceUnreachable)
        assert "self-signed certificate" in line
        assert "set SPOTTER_CA_FILE to its certificate or its CA's (PEM)" in line
        assert keys == []
        assert ask(chosen.model_copy(update={"ca_file": certificate})) == "m"
    assert set(keys) == {"Bearer s3cret"}


@pytest.mark.parametrize(
    ("names", "days", "said"),
    [
        (("models.example",), 1, "set SPOTTER_MODEL_URL to a name that its certificate holds"),
        (("127.0.0.1",), -1, "have its certificate renewed, and check this host's clock"),
    ],
)
def test_other_certificates_have_other_remedies(tmp_path: Path, names: tuple[str, ...], days: int, said: str) -> None:
    certificate, tls = make_certificate(tmp_path, *names, days=days)
    with served(good, tls=tls) as url:
        assert failure(settings(url, ca_file=certificate), ServiceUnreachable).endswith(said)


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_without_certificates_is_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    assert f"SPOTTER_CA_FILE={file} holds no certificates" in failure(
        settings("https://127.0.0.1:9/v1", ca_file=file), UsageError
    )


def test_an_address_where_nobody_listens_and_a_name_that_nobody_knows() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        line = failure(settings(url), ServiceUnreachable)
    assert f"model server {url} cannot be reached (cannot connect: " in line
    assert line.endswith("start the stack with 'make up', or set SPOTTER_MODEL_URL")
    assert "cannot be reached" in failure(settings("http://nobody.invalid/v1"), ServiceUnreachable)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_wants_a_password_is_named(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    with proxying(Proxy({}, password="me:s3cret")) as proxy:
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", proxy.url)
        line = failure(settings(f"{scheme}://models.example/v1"), ServiceRefuses)
    assert f"the proxy {proxy.url.removeprefix('http://')} asks for a user and a password" in line
    assert "name models.example in NO_PROXY" in line


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_not_there_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv(f"{scheme.upper()}_PROXY", "http://me:s3cret@127.0.0.1:9")
    line = failure(settings(f"{scheme}://models.example/v1"), ServiceUnreachable)
    assert "cannot connect to the proxy" in line
    assert "correct the proxy 127.0.0.1:9" in line
    assert "s3cret" not in line
