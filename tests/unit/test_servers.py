"""Several addresses of a service: who gets a request, and what happens when one address does not do its part."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from aiohttp import web
from pydantic import SecretStr
from rich.console import Console

from pipeline import job as jobs
from pipeline.clients import address, balancer, rate_limit
from pipeline.clients.address import Address
from pipeline.clients.http import HttpClient, Limits, RequestFailed
from pipeline.clients.model import Answer, BadAnswer, ModelClient
from pipeline.clients.probe import probe
from pipeline.clients.server_load import Server
from pipeline.errors import UsageError
from pipeline.run import run
from pipeline.runtime.cancellation import CancellationToken, Cancelled
from pipeline.runtime.display import show_summary
from pipeline.settings import Settings
from tests.doubles.simulated import ANSWER, Simulated, completion, serve
from tests.pictures import encoded, gradient, write_plain

NOWHERE = "http://127.0.0.1:9/v1"
JOB = jobs.load("dog_breeds")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backoff and looks without long pauses."""
    monkeypatch.setattr(rate_limit, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(balancer, "TICK_S", 0.02)


@contextmanager
def servers(*each: Simulated) -> Iterator[list[str]]:
    """The addresses of so many model servers."""
    with ExitStack() as stack:
        yield [f"{stack.enter_context(serve(one)).url}/v1" for one in each]


def limits(concurrency: int = 8, **more: float) -> Limits:
    given = {"timeout_s": 10.0, "attempts": 3, "outage_s": 30.0, "rate_limit_s": 30.0} | more
    return Limits(concurrency, **given)  # type: ignore[arg-type]


def ask(
    urls: list[str], rows: int, allowed: Limits | None = None, stop: CancellationToken | None = None
) -> tuple[list[Answer | BaseException], list[Address]]:
    """What becomes of so many questions asked at once, and what each address did."""

    async def main() -> tuple[list[Answer | BaseException], list[Address]]:
        http = HttpClient(urls, allowed or limits(), name="model server", cancellation=stop)
        client = ModelClient(http, "simulated", JOB)
        ended = await asyncio.gather(*(client.ask(b"crop") for _ in range(rows)), return_exceptions=True)
        await http.aclose()
        return ended, http.addresses

    return asyncio.run(main())


def right(ended: list[Answer | BaseException]) -> int:
    """How many questions have the right answer; another error than a row's is raised."""
    return sum(isinstance(each, Answer) and each.fields == ANSWER for each in ended)


def test_alike_servers_get_alike_shares_within_the_shared_bound() -> None:
    each = [Simulated(latency_s=0.02, keep_bodies=False) for _ in range(4)]
    with servers(*each) as urls:
        ended, addresses = ask(urls, 200)
    assert right(ended) == 200
    assert sum(one.model.peak_in_flight for one in each) <= 8 + 4  # their peaks are not of one moment
    assert all(40 <= one.model.requests <= 60 for one in each)
    assert [one.answers for one in addresses] == [one.model.requests for one in each]


def test_a_slow_server_gets_less() -> None:
    """It keeps its answers back until the other one has had 200 requests: half of those in flight wait there."""
    quick = Simulated(latency_s=0.01, keep_bodies=False)
    slow = Simulated(keep_bodies=False, hold=lambda traffic, number: quick.model.requests < 200)
    with servers(quick, slow) as urls:
        ended, _ = ask(urls, 250, limits(16))
    assert right(ended) == 250
    assert quick.model.requests >= 200
    assert slow.model.peak_in_flight == 8


def test_nobody_at_one_address_costs_no_row_an_attempt() -> None:
    with servers(Simulated()) as (there,):
        ended, (dead, alive) = ask([NOWHERE, there], 50)
    assert right(ended) == 50
    assert {each.attempts for each in ended if isinstance(each, Answer)} == {1}
    assert (dead.answers, dead.breaker.count, alive.answers) == (0, 1, 50)


def test_a_server_that_dies_loses_no_row() -> None:
    """Its connections are cut while requests are open."""
    mortal = Simulated(latency_s=0.05, restart=lambda number: 60.0 if number == 10 else None)
    with servers(mortal, Simulated(latency_s=0.05)) as urls:
        ended, (dead, _) = ask(urls, 100)
    assert right(ended) == 100
    assert dead.breaker.count == 1


def test_the_rows_of_a_frozen_server_go_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and says nothing: neither to questions nor to the check."""
    monkeypatch.setattr(address, "CHECK_TIMEOUT_S", 0.2)
    monkeypatch.setattr(balancer, "SILENT_S", 0.1)

    async def main() -> tuple[list[Answer | BaseException], int]:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        frozen = await asyncio.start_server(silent, "127.0.0.1", 0)
        with servers(Simulated()) as (there,):
            urls = [f"http://127.0.0.1:{frozen.sockets[0].getsockname()[1]}/v1", there]
            http = HttpClient(urls, limits(timeout_s=60.0), name="model server")
            client = ModelClient(http, "simulated", JOB)
            async with asyncio.timeout(30):  # half of the time-out of a request
                ended = await asyncio.gather(*(client.ask(b"crop") for _ in range(40)), return_exceptions=True)
            await http.aclose()
        frozen.close()
        return ended, http.addresses[0].breaker.count

    ended, outages = asyncio.run(main())
    assert (right(ended), outages) == (40, 1)


def test_nonsense_is_asked_elsewhere_and_its_server_set_aside() -> None:
    mad = Simulated(model_fault=lambda number: completion('{"breed": "unicorn"}'))
    with servers(mad, Simulated(latency_s=0.005), Simulated(latency_s=0.005)) as urls:
        ended, (aside, *others) = ask(urls, 200)
    assert right(ended) == 200
    assert aside.aside
    assert "of its last answers do not fit the question" in aside.aside
    assert mad.model.requests < 50
    assert [each.aside for each in others] == [None, None]


def test_a_question_that_no_server_answers_well_sets_nobody_aside() -> None:
    with servers(*(Simulated(model_fault=lambda number: completion("no JSON")) for _ in range(2))) as urls:
        ended, addresses = ask(urls, 60)
    assert all(isinstance(each, BadAnswer) for each in ended)
    assert [each.aside for each in addresses] == [None, None]


def test_an_error_is_tried_elsewhere_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the pauses of one address this would take minutes."""
    monkeypatch.setattr(rate_limit, "FIRST_PAUSE_S", 100.0)
    ill = Simulated(model_fault=lambda number: web.Response(status=500))
    with servers(ill, Simulated()) as urls:
        ended, _ = ask(urls, 50)
    assert right(ended) == 50
    assert ill.model.requests <= 12  # after three failures in a row it rests


def test_a_refusal_counts_when_all_refuse() -> None:
    with servers(Simulated(model_fault=lambda number: web.Response(status=401)), Simulated()) as urls:
        assert right(ask(urls, 20)[0]) == 20
    both = [Simulated(model_fault=lambda number: web.Response(status=400, text="too long")) for _ in range(2)]
    with servers(*both) as urls:
        (failed,), _ = ask(urls, 1)
    assert isinstance(failed, RequestFailed)
    assert (failed.attempts, str(failed)) == (2, "HTTP 400: too long")


def test_a_rate_limit_sends_requests_elsewhere() -> None:
    limited = Simulated(model_fault=lambda number: web.Response(status=429, headers={"Retry-After": "30"}))
    with servers(limited, Simulated()) as urls:
        ended, _ = ask(urls, 50)
    assert right(ended) == 50
    assert limited.model.requests <= 8


@pytest.mark.slow
def test_the_run_stops_when_all_are_away_for_too_long() -> None:
    stop = CancellationToken()
    ended, _ = ask([NOWHERE, "http://127.0.0.1:10/v1"], 9, limits(outage_s=0.5), stop)
    assert all(isinstance(each, Cancelled) for each in ended)
    assert stop.reason
    assert "was away for 0.5 s" in stop.reason


def settings(*urls: str) -> Settings:
    return Settings.model_construct().model_copy(
        update={"model_url": ",".join(urls), "detector_url": urls[-1].removesuffix("/v1"), "confidence": "off"}
    )


def test_the_probe_leaves_out_an_address_that_is_away() -> None:
    with servers(Simulated()) as (there,):
        asked = settings(NOWHERE, there)
        found = probe(asked, JOB)
        assert found.reached(asked).model_url == there
    assert found.model == "simulated"
    assert [NOWHERE in line for line in found.left_out] == [True]


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (Simulated(models=("other",)), "has model other .*, the others have model simulated"),
        (Simulated(model_fault=lambda number: completion("a dog")), "does not answer in the form of job"),
    ],
)
def test_the_probe_names_an_address_that_is_unlike_the_others(odd: Simulated, words: str) -> None:
    with servers(Simulated(), odd, Simulated()) as urls, pytest.raises(UsageError, match=words) as raised:
        probe(settings(*urls), JOB)
    assert urls[1] in str(raised.value)
    assert "\n" not in str(raised.value)


def test_each_listed_model_server_gets_the_key_and_the_detector_none() -> None:
    seen = list[tuple[str, str | None]]()

    def note(request: web.Request) -> None:
        seen.append((request.host, request.headers.get("Authorization")))

    class Noting(Simulated):
        async def list_models(self, request: web.Request) -> web.Response:
            note(request)
            return await super().list_models(request)

        async def detect(self, request: web.Request) -> web.StreamResponse:
            note(request)
            return await super().detect(request)

    with serve(Noting()) as detector, servers(Noting(), Noting()) as urls:
        given = {"detector_url": detector.url, "api_key": SecretStr("sesame")}
        probe(settings(*urls).model_copy(update=given), JOB)
    hosts = [url.removeprefix("http://").removesuffix("/v1") for url in urls]
    assert sorted(seen) == sorted(
        [(host, "Bearer sesame") for host in hosts] + [(detector.url.removeprefix("http://"), None)],
    )


def test_all_away_is_the_error_of_one() -> None:
    with pytest.raises(UsageError, match="cannot be reached"):
        probe(settings(NOWHERE, "http://127.0.0.1:10/v1"), JOB)


def test_the_servers_metrics_add_up() -> None:
    pages = {
        "http://a/metrics": {"a_total": 1.0, "b": 2.0, "c_perc": 0.5},
        "http://b/metrics": {"a_total": 10.0, "b": 20.0, "c_perc": 0.4},
    }
    heard, steered = list[dict[str, float]](), list[tuple[str, float]]()
    server = Server(["http://a", "http://b"], pages.pop, lambda url, now: steered.append((url, now.get("b", 0.0))))
    server.listeners.append(lambda reading: heard.append(dict(reading)))
    alone = list[dict[str, float]]()
    server.pages[1].listeners.append(lambda reading: alone.append(dict(reading)))
    server.poll()
    server.poll()  # neither can be read
    assert alone == [{"a_total": 10.0, "b": 20.0, "c_perc": 0.4}, {}]
    assert heard == [{"a_total": 11.0, "b": 22.0, "c_perc": 0.5}, {}]
    assert steered == [("http://a", 2.0), ("http://b", 20.0), ("http://a", 0.0), ("http://b", 0.0)]


def test_a_run_that_ends_leaves_nobody_waiting() -> None:
    stop = CancellationToken()

    def cancel(number: int) -> None:
        if number == 5:
            stop.cancel("enough")

    with servers(Simulated(model_fault=cancel), Simulated(model_fault=cancel)) as urls:
        ended, addresses = ask(urls, 100, limits(4), stop)
    assert {str(each) for each in ended if isinstance(each, BaseException)} == {"enough"}
    assert all(isinstance(each, Answer | Cancelled) for each in ended)
    assert [each.limiter.in_flight for each in addresses] == [0, 0]


@pytest.mark.slow
def test_a_run_says_what_each_address_did(tmp_path: Path) -> None:
    """Also of a run that was continued; the number of addresses is no part of its identity."""
    write_plain(tmp_path / "images", 6)
    with serve(Simulated()) as detector, servers(Simulated(), Simulated()) as urls:
        given = {"images": str(tmp_path / "images"), "output": str(tmp_path), "detector_url": detector.url}
        done = run(Settings(**given, model_url=",".join(urls)), Console(quiet=True)).manifest  # type: ignore[arg-type]
        (tmp_path / "images" / "new.jpg").write_bytes(encoded(gradient()))
        again = run(Settings(**given, model_url=urls[0]), Console(quiet=True)).manifest  # type: ignore[arg-type]
    first = {one["address"]: one["answers"] for one in done["servers"]["model server"]}
    assert (sorted(first), sum(first.values())) == (sorted(urls), 6)
    second = {one["address"]: one["answers"] for one in again["servers"]["model server"]}
    assert second == first | {urls[0]: first[urls[0]] + 1}
    assert again["run"] == done["run"]
    said = io.StringIO()
    show_summary(Console(file=said, width=200), again)
    assert f"model server {urls[1]}: {first[urls[1]]} answers of " in said.getvalue()
