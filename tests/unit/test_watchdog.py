"""A run in which nothing moves any more: it is braked, and left when that does not help."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline.clients.connect import Clients
from pipeline.clients.detector import DetectorClient
from pipeline.clients.http import HttpClient
from pipeline.clients.model import ModelClient
from pipeline.clients.server_load import LoadPoller
from pipeline.runtime import watchdog as watch
from pipeline.runtime.cancellation import CancellationToken
from pipeline.runtime.stream import FlowFailed, Stream
from pipeline.runtime.watchdog import Watchdog

LIMIT_S = 0.3


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "TICK_S", 0.05)
    monkeypatch.setattr(watch, "AFTERWARDS_S", LIMIT_S)


@pytest.fixture
def clients() -> Iterator[Clients]:
    """Clients with an event loop, on which three requests wait for an answer."""

    async def ask() -> None:
        await answered()

    async def answered() -> None:
        await asyncio.Event().wait()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    waiting = [asyncio.run_coroutine_threadsafe(ask(), loop) for _ in range(3)]
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(20)  # its turn comes after theirs: they wait now
    http = SimpleNamespace(name="model", connection=SimpleNamespace(loop=loop), in_flight=3, away=False, limited=False)
    named = SimpleNamespace(http=http)
    yield Clients(DetectorClient(cast(HttpClient, named.http), None), cast(ModelClient, named), LoadPoller({}))
    for request in waiting:
        request.cancel()
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0.01), loop).result(20)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def watching(folder: Path, limit_s: float, cancellation: CancellationToken, clients: Clients, left: Left) -> Watchdog:
    return Watchdog(folder / "stall.txt", limit_s, cancellation, clients.waiting_for, clients.tasks, left)


def wait_for(event: threading.Event) -> None:
    assert event.wait(20)


class Left(threading.Event):
    """Set, with the reason, when the process would have ended."""

    reason = ""

    def __call__(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.set()


def test_a_run_without_rows_is_braked_then_left(tmp_path: Path, clients: Clients) -> None:
    stop, left = CancellationToken(), Left()
    began = time.monotonic()
    with watching(tmp_path, LIMIT_S, stop, clients, left):
        wait_for(left)
    assert time.monotonic() - began >= 2 * LIMIT_S
    waiting = "model: 3 requests in flight, model: 3 requests in flight"
    expected = f"no row ended for 0.3 s ({waiting}; stacks in {tmp_path / 'stall.txt'}): look at"
    assert str(stop.reason).startswith(expected)
    assert left.reason.startswith(expected)


def test_the_stacks_of_threads_and_tasks_are_kept(tmp_path: Path, clients: Clients) -> None:
    left = Left()
    with watching(tmp_path, LIMIT_S, CancellationToken(), clients, left):
        wait_for(left)
    dump = (tmp_path / "stall.txt").read_text()
    assert "in wait_for" in dump  # the main thread
    assert "3 tasks: test_watchdog.py:" in dump
    assert " answered > locks.py:" in dump


def test_what_follows_the_flow_is_watched_too(tmp_path: Path, clients: Clients) -> None:
    left = Left()
    watchdog = watching(tmp_path, 0.1, CancellationToken(), clients, left)
    watchdog.now("writing the rows")
    with watchdog:
        wait_for(left)
    assert left.reason.startswith("writing the rows did not end within 0.3 s; stacks in")


def test_what_moves_is_left_alone(tmp_path: Path, clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at twenty times a second for a minute, by a clock of the test's own."""
    stop, left = CancellationToken(), Left()
    seconds = 0.0
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: seconds))
    watchdog = watching(tmp_path, LIMIT_S, stop, clients, left)
    moves = itertools.cycle([False] * 4 + [True])  # every 0.25 s, and 0.3 s would be too late

    def wait(tick_s: float) -> bool:
        nonlocal seconds
        seconds += tick_s
        if next(moves):
            watchdog.moved()
        return seconds > 60

    monkeypatch.setattr(watchdog._ended, "wait", wait)
    watchdog._run()
    assert (stop.reason, left.is_set()) == (None, False)


def test_a_disk_that_hangs_keeps_no_reason_back(
    tmp_path: Path, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "DUMP_S", 0.1)
    gone = threading.Event()

    def hang(*arguments: object) -> Any:
        gone.wait()
        raise OSError

    left = Left()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", hang)
        with watching(tmp_path, LIMIT_S, CancellationToken(), clients, left):
            wait_for(left)
        gone.set()
    assert "stacks" not in left.reason


def test_an_error_of_the_flow_is_raised_where_its_rows_are_taken() -> None:
    """Also one that is no Exception, as a panic in Rust."""

    def rows() -> Iterator[dict[str, Any]]:
        yield {"row": 1}
        raise BaseException("panic")

    stream = Stream(rows())
    assert stream.take(10) == {"row": 1}
    with pytest.raises(FlowFailed) as raised:
        stream.take(10)
    assert str(raised.value.__cause__) == "panic"
