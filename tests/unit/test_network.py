"""One rule for proxies: what the usual variables say, but never for loopback and the stack's containers."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from rich.console import Console

from pipeline import settings as pipeline_settings
from pipeline.clients.network import proxy_for
from pipeline.clients.server_load import fetch
from pipeline.errors import InvalidSetting
from pipeline.run import run
from tests.doubles.odd import Proxy, make_certificate, proxying
from tests.doubles.simulated import Simulated
from tests.pictures import encoded, gradient

NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
PROXY = "http://proxy.example:3128"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def set_all(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({}, "https://models.example/v1", None),
        ({"HTTPS_PROXY": PROXY}, "https://models.example/v1", PROXY),
        ({"https_proxy": PROXY}, "https://models.example/v1", PROXY),
        ({"HTTPS_PROXY": PROXY}, "http://models.example/v1", None),
        ({"HTTP_PROXY": PROXY}, "http://models.example/v1", PROXY),
        ({"HTTP_PROXY": "proxy.example:3128"}, "http://models.example/v1", PROXY),
        ({"ALL_PROXY": PROXY}, "https://models.example/v1", PROXY),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "models.example"}, "https://models.example/v1", None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": ".example"}, "https://models.example/v1", None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "other.example"}, "https://models.example/v1", PROXY),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "*"}, "https://models.example/v1", None),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "10.0.0.0/8, x"}, "http://10.1.2.3:8000/v1", None),
        ({"HTTP_PROXY": PROXY, "NO_PROXY": "10.0.0.0/8, x/y"}, "http://11.1.2.3:8000/v1", PROXY),
        ({"HTTP_PROXY": PROXY}, "http://[2001:db8::1]:8000/v1", PROXY),
        *(
            ({"HTTP_PROXY": PROXY}, f"http://{host}:8000/v1", None)
            for host in ("127.0.0.1", "127.1.2.3", "localhost", "my.localhost", "[::1]", "0.0.0.0", "vllm", "detector")
        ),
    ],
)
def test_which_proxy_an_address_takes(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str, proxy: str | None
) -> None:
    set_all(monkeypatch, variables)
    assert proxy_for(url) == proxy


def test_a_proxy_of_another_kind_is_refused_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1080")
    with pytest.raises(InvalidSetting, match=r"socks5://.* http://host:port.*HTTPS_PROXY"):
        proxy_for("https://models.example/v1")
    assert proxy_for("https://localhost/v1") is None


@pytest.mark.parametrize("proxy", ["http://me:s3cret]@proxy:1", "http://me:s3/cret@proxy:1", "http://", "http://a:b"])
def test_a_proxy_that_is_no_address_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(InvalidSetting, match="HTTPS_PROXY") as refused:
        proxy_for("https://models.example/v1")
    assert "s3" not in str(refused.value)


def port(simulated: Simulated) -> int:
    return urlsplit(simulated.url).port or 0


@pytest.mark.parametrize("password", [None, "me:s3cret]"])
def test_a_run_reaches_a_server_that_only_the_proxy_knows(
    simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str | None
) -> None:
    """The questions and the polled metrics go through it; the detector on loopback is reached directly."""
    ticks = itertools.count()
    simulated.metrics = lambda: f"vllm:num_requests_running {next(ticks)}\n"
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(encoded(gradient()))
    with proxying(Proxy({"models.example": port(simulated)}, password)) as proxy:
        login = "me:s3cret%5D@" if password else ""
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("http://", f"http://{login}"))
        arguments = ["--model-url", "http://models.example/v1", "--detector-url", simulated.url]
        arguments += ["--images", str(tmp_path / "images"), "--output", str(tmp_path / "runs")]
        done = run(pipeline_settings.load(arguments), Console(file=io.StringIO()))
    assert done.manifest["counts"]["detections"]["answered"] == 1
    targets = {line.split()[1] for line in proxy.asked}
    paths = ("v1/models", "v1/chat/completions", "metrics")
    assert targets == {f"http://models.example/{path}" for path in paths}
    assert next(ticks) > 1


def test_a_tunnel_is_made_for_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aiohttp import web

    from tests.doubles.odd import answering

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text="vllm:num_requests_running 3\n")

    certificate, tls = make_certificate(tmp_path, "models.example")
    with answering(answer, tls) as there, proxying(Proxy({"models.example": there})) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        assert fetch("https://models.example/metrics", certificate) == {"vllm:num_requests_running": 3.0}
    assert proxy.asked == ["CONNECT models.example:443 HTTP/1.1"] or proxy.asked == [
        "CONNECT models.example:443 HTTP/1.0"
    ]
