"""The HTTP client: bounded, patient with what heals, quick with what does not."""

import asyncio
import pickle
import re
import socket
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
import tenacity
from aiohttp import web

from pipeline.clients import address, rate_limit, sockets
from pipeline.clients.http import HttpClient, Limits, Reply, RequestFailed, wait_time
from pipeline.clients.retries import Temporary
from pipeline.clients.sockets import make_socket
from pipeline.runtime.cancellation import CancellationToken, Cancelled

Handler = Callable[[int], web.StreamResponse]


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait only as long as a server asks."""
    monkeypatch.setattr(rate_limit, "FIRST_PAUSE_S", 0.0)


def ask(
    handler: Handler, rows: int = 1, media_type: str = "text/plain", **options: float
) -> tuple[list[Reply | BaseException], list[float]]:
    """Send `rows` requests at once to a server that answers by `handler(number)`; replies and arrival times."""
    arrivals: list[float] = []

    async def serve(request: web.Request) -> web.StreamResponse:
        await request.read()
        arrivals.append(asyncio.get_running_loop().time())
        return handler(len(arrivals))

    async def main() -> list[Reply | BaseException]:
        app = web.Application()
        app.router.add_post("/ask", serve)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        limits = Limits(**{"concurrency": 4, "timeout_s": 5.0, "attempts": 3} | options)  # type: ignore[arg-type]
        client = HttpClient(f"http://127.0.0.1:{runner.addresses[0][1]}", limits)
        requests = [client.post("/ask", b"{}", media_type) for _ in range(rows)]
        replies = await asyncio.gather(*requests, return_exceptions=True)
        await client.aclose()
        await runner.cleanup()
        return replies

    return asyncio.run(main()), arrivals


def test_an_answer() -> None:
    began = time.perf_counter()
    (reply,), _ = ask(lambda number: web.Response(text="yes"))
    assert isinstance(reply, Reply)
    assert (reply.body, reply.attempts) == (b"yes", 1)
    assert 0 < reply.latency_s < time.perf_counter() - began


@pytest.mark.parametrize("status", [408, 409, 421, 424, 425, 429, 498, 499, 500, 502, 503, 504, *range(520, 531), 598])
def test_what_can_heal_is_tried_again(status: int) -> None:
    (reply,), arrivals = ask(lambda number: web.Response(status=status if number < 3 else 200))
    assert isinstance(reply, Reply)
    assert reply.attempts == len(arrivals) == 3


@pytest.mark.parametrize("status", [202, 204, 400, 401, 404, 413, 422, 501, 505, 511])
def test_what_cannot_heal_is_not(status: int) -> None:
    (failed,), arrivals = ask(lambda number: web.Response(status=status, text="because\nof this"))
    assert isinstance(failed, RequestFailed)
    assert str(failed).startswith(f"HTTP {status}: ")
    assert status == 204 or "because of this" in str(failed)
    assert failed.attempts == len(arrivals) == 1


def test_tries_end() -> None:
    (failed,), arrivals = ask(lambda number: web.Response(status=503, text="later"), attempts=3)
    assert isinstance(failed, RequestFailed)
    assert (str(failed), failed.attempts, len(arrivals)) == ("HTTP 503: later", 3, 3)


def test_retry_after_is_waited_out() -> None:
    (reply,), (first, second) = ask(
        lambda number: web.Response(status=429, headers={"Retry-After": "0.4"}) if number == 1 else web.Response()
    )
    assert isinstance(reply, Reply)
    assert second - first >= 0.4


def pauses(attempt: int, retry_after_s: float = 0.0) -> list[float]:
    """What a thousand rows wait that failed at this attempt, in order."""
    state = tenacity.RetryCallState(tenacity.AsyncRetrying(), None, (), {})
    state.attempt_number = attempt
    state.outcome = tenacity.Future(attempt)
    state.outcome.set_exception(Temporary("HTTP 429", retry_after_s))
    return sorted(wait_time(state) for _ in range(1000))


def test_pauses_grow_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "FIRST_PAUSE_S", 0.5)
    drawn = [pauses(attempt) for attempt in range(1, 101)]
    for shorter, longer in pairwise(drawn[:6]):
        assert statistics.median(longer) == pytest.approx(min(2 * statistics.median(shorter), 18.75), rel=0.1)
    assert all(0.5 <= pause <= 22.5 for each in drawn for pause in each)
    assert all(pause >= 15 for pause in drawn[-1])


@pytest.mark.parametrize(("attempt", "retry_after_s", "least"), [(1, 0.0, 0.5), (99, 0.0, 15.0), (1, 7.0, 7.0)])
def test_rows_that_failed_together_do_not_come_back_together(
    monkeypatch: pytest.MonkeyPatch, attempt: int, retry_after_s: float, least: float
) -> None:
    """Nor before the server said that they may."""
    monkeypatch.setattr(rate_limit, "FIRST_PAUSE_S", 0.5)
    drawn = pauses(attempt, retry_after_s)
    assert least <= drawn[0] < 1.05 * least
    assert 1.45 * least < drawn[-1] <= 1.5 * least
    most_in_a_tenth = max(sum(at <= pause < at + 0.05 * least for pause in drawn) for at in drawn)
    assert most_in_a_tenth < 200


def test_a_very_long_retry_after_fails_the_row() -> None:
    (failed,), arrivals = ask(lambda number: web.Response(status=503, headers={"Retry-After": "3600"}))
    assert isinstance(failed, RequestFailed)
    assert "Retry-After: 3600 s" in str(failed)
    assert len(arrivals) == 1


def test_nobody_listens() -> None:
    async def main() -> None:
        client = HttpClient("http://127.0.0.1:9", Limits(concurrency=1, timeout_s=2, attempts=2))
        try:
            await client.post("/ask", b"", "text/plain")
        finally:
            await client.aclose()

    with pytest.raises(RequestFailed, match="cannot connect: ") as raised:
        asyncio.run(main())
    assert (raised.value.attempts, raised.value.cause) == (1, "unreachable")


def test_a_silent_server_is_given_up() -> None:
    async def main() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = HttpClient(f"http://127.0.0.1:{port}", Limits(concurrency=1, timeout_s=0.2, attempts=2))
        try:
            await client.post("/ask", b"", "text/plain")
        finally:
            await client.aclose()
            server.close()

    with pytest.raises(RequestFailed, match=r"no answer within 0\.2 s"):
        asyncio.run(main())


def test_requests_in_flight_are_bounded() -> None:
    """300 rows at once, as Daft gathers a batch: never more than the bound are at the server."""
    in_flight = peak = 0

    async def main() -> list[Reply]:
        async def serve(request: web.Request) -> web.Response:
            nonlocal in_flight, peak
            in_flight += 1
            peak = max(peak, in_flight)
            await asyncio.sleep(0.01)
            in_flight -= 1
            return web.Response()

        app = web.Application()
        app.router.add_post("/ask", serve)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        client = HttpClient(
            f"http://127.0.0.1:{runner.addresses[0][1]}", Limits(concurrency=7, timeout_s=5, attempts=1)
        )
        replies = await asyncio.gather(*(client.post("/ask", b"", "text/plain") for _ in range(300)))
        await client.aclose()
        await runner.cleanup()
        return replies

    assert len(asyncio.run(main())) == 300
    assert peak == 7


def test_a_copy_in_another_process_is_refused() -> None:
    """Each would send as many requests as the bound allows."""
    copy = pickle.dumps(HttpClient("http://a/v1/", Limits(concurrency=3)))
    with pytest.raises(RuntimeError, match="HttpClient belongs to the process that made it"):
        pickle.loads(copy)


class Restarting:
    """A server that goes away and comes back on the same port."""

    def __init__(self) -> None:
        self.requests = 0
        self.checks = 0
        self.port = 0
        self.runner: web.AppRunner | None = None

    async def answer(self, request: web.Request) -> web.Response:
        await request.read()
        self.requests += 1
        return web.Response(text="yes")

    async def check(self, request: web.Request) -> web.Response:
        self.checks += 1
        return web.Response()

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/ask", self.answer)
        app.router.add_get("/", self.check)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self.runner.addresses[0][1]

    async def stop(self) -> None:
        assert self.runner
        await self.runner.cleanup()


@pytest.mark.slow
def test_a_restart_is_waited_out_and_costs_no_attempt() -> None:
    async def main() -> list[Reply]:
        server = Restarting()
        await server.start()
        client = HttpClient(f"http://127.0.0.1:{server.port}", Limits(concurrency=4, attempts=1, outage_s=30))
        await client.post("/ask", b"", "text/plain")
        await server.stop()
        waiting = asyncio.gather(*(client.post("/ask", b"", "text/plain") for _ in range(50)))
        await asyncio.sleep(1.5)
        assert not waiting.done()
        assert client.addresses[0].breaker.since is not None
        await server.start()
        replies = await waiting
        assert server.requests == 51
        assert client.addresses[0].breaker.count == 1
        await client.aclose()
        await server.stop()
        return replies

    assert {reply.attempts for reply in asyncio.run(main())} == {1}


@pytest.mark.slow
def test_a_frozen_server_is_waited_out_and_costs_one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and says nothing, for longer than all tries of a request may last."""
    monkeypatch.setattr(address, "CHECK_TIMEOUT_S", 0.2)

    async def main() -> tuple[list[Reply], int]:
        thawed = asyncio.Event()

        async def answer(request: web.Request) -> web.Response:
            await thawed.wait()
            return web.Response()

        app = web.Application()
        app.router.add_route("*", "/{any:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        limits = Limits(concurrency=4, timeout_s=2, attempts=2, outage_s=30)
        client = HttpClient(f"http://127.0.0.1:{runner.addresses[0][1]}", limits)
        waiting = asyncio.gather(*(client.post("/ask", b"", "text/plain") for _ in range(50)))
        async with asyncio.timeout(20):
            while not client.addresses or client.addresses[0].breaker.since is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await asyncio.sleep(1)  # it is looked for meanwhile, and not found
        assert client.addresses[0].breaker.since is not None
        assert not waiting.done()
        thawed.set()
        replies = await waiting
        await client.aclose()
        await runner.cleanup()
        return replies, client.addresses[0].breaker.count

    replies, outages = asyncio.run(main())
    assert outages == 1
    assert sorted(reply.attempts for reply in replies) == [1] * 46 + [2] * 4  # those that had been sent


def test_a_slow_server_that_gives_a_sign_of_life_is_not_away() -> None:
    async def main() -> tuple[list[Reply | BaseException], int]:
        async def slow(request: web.Request) -> web.Response:
            await asyncio.sleep(60)
            return web.Response()

        async def alive(request: web.Request) -> web.Response:
            return web.Response(status=404)

        app = web.Application()
        app.router.add_post("/ask", slow)
        app.router.add_get("/", alive)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        limits = Limits(concurrency=4, timeout_s=0.2, attempts=2, outage_s=30)
        client = HttpClient(f"http://127.0.0.1:{runner.addresses[0][1]}", limits)
        ended = await asyncio.gather(
            *(client.post("/ask", b"", "text/plain") for _ in range(4)), return_exceptions=True
        )
        await client.aclose()
        await runner.cleanup()
        return ended, client.addresses[0].breaker.count

    failed, outages = asyncio.run(main())
    assert outages == 0
    assert {str(error) for error in failed} == {"no answer within 0.2 s"}


def test_a_peer_that_vanishes_is_probed_for() -> None:
    """What the probes find is seen on containers: tests/stack/test_compose_faults.py."""
    with make_socket((socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", 80))) as made:
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == sockets.IDLE_S
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == sockets.PROBES


@pytest.mark.slow
def test_a_server_that_stays_away_stops_the_run() -> None:
    async def main() -> tuple[str | None, list[BaseException | Reply]]:
        stop = CancellationToken()
        limits = Limits(concurrency=2, attempts=1, outage_s=0.5)
        client = HttpClient("http://127.0.0.1:9", limits, name="detector", cancellation=stop)
        ended = await asyncio.gather(
            *(client.post("/ask", b"", "text/plain") for _ in range(9)), return_exceptions=True
        )
        await client.aclose()
        return stop.reason, ended

    reason, ended = asyncio.run(main())
    assert reason
    assert reason.startswith("the detector was away for 0.5 s (cannot connect")
    assert all(isinstance(error, Cancelled) for error in ended)


def limited(answer: Callable[[int], web.StreamResponse], rows: int, limit_s: float) -> tuple[str | None, list[float]]:
    """Ask at a server that limits the rate; why the run ends, and when requests arrived."""
    replies, arrivals = ask(answer, rows, rate_limit_s=limit_s, outage_s=30.0, attempts=1)
    stopped = {str(reply) for reply in replies if isinstance(reply, Cancelled)}
    assert len(stopped) <= 1
    assert stopped or all(isinstance(reply, Reply) and reply.attempts == 1 for reply in replies), replies
    return next(iter(stopped), None), arrivals


def test_a_rate_limit_pauses_the_whole_client_and_costs_no_attempt() -> None:
    """Four of twenty requests are at the server; after the first refusal nothing is sent before the time it names."""

    def answer(number: int) -> web.Response:
        headers = {"x-ratelimit-reset-requests": "400ms", "x-ratelimit-remaining-requests": "0"}
        return web.Response(status=429, headers=headers) if number <= 4 else web.Response(text="yes")

    stopped, arrivals = limited(answer, rows=20, limit_s=30)
    assert stopped is None
    assert len(arrivals) == 24
    assert arrivals[4] - arrivals[0] >= 0.4


def test_a_rate_limit_without_a_time_slows_the_client_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "FIRST_PAUSE_S", 0.05)
    stopped, arrivals = limited(lambda number: web.Response(status=429 if number % 2 else 200), rows=20, limit_s=30)
    assert stopped is None
    assert len(arrivals) == 40


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"Retry-After": "7200"}, r"limits the rate of requests and asks to wait 7200 s.*SPOTTER_OUTAGE_LIMIT_S=1 "),
        ({}, r"took none for 1 s.*HTTP 429: slow down"),
    ],
)
def test_a_quota_that_does_not_return_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], reason: str
) -> None:
    monkeypatch.setattr(rate_limit, "FIRST_PAUSE_S", 0.1)
    stopped, _ = limited(lambda number: web.Response(status=429, headers=headers, text="slow down"), 8, limit_s=1.0)
    assert stopped
    assert re.search(reason, stopped)


def test_an_account_without_money_ends_the_run_with_the_servers_words() -> None:
    body = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    stopped, arrivals = limited(lambda number: web.json_response(body, status=429), rows=4, limit_s=30)
    assert stopped
    assert "lack of quota (HTTP 429: " in stopped
    assert "You exceeded your current quota" in stopped
    assert len(arrivals) == 4


@pytest.mark.parametrize(
    "body", ["", "<html><title>524</title>", '{"choices": [{"mess', '{"error": {"code": 502}}', '{"choices": null}']
)
def test_an_error_in_an_answer_with_a_good_status_is_tried_again(body: str) -> None:
    good = '{"choices": [{"message": {"content": "{}"}}]}'
    (reply,), _ = ask(lambda number: web.Response(text=body if number == 1 else good), media_type="application/json")
    assert isinstance(reply, Reply)
    assert (reply.attempts, reply.body) == (2, good.encode())


def test_a_redirect_names_its_target() -> None:
    (failed,), arrivals = ask(lambda number: web.Response(status=308, headers={"Location": "https://api.example/v1"}))
    assert isinstance(failed, RequestFailed)
    assert (str(failed), failed.cause) == ("HTTP 308: redirects to https://api.example/v1", "redirect")
    assert len(arrivals) == 1
