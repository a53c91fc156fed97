"""The poller of the servers' load: its readings reach who listens, and no server keeps a run waiting."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from pipeline.clients import server_load
from pipeline.clients.server_load import GIVE_UP_AFTER, LoadPoller, Reading, Server, metrics_url, parse


def test_the_metrics_stand_beside_the_api() -> None:
    assert metrics_url("http://127.0.0.1:8000/v1") == "http://127.0.0.1:8000/metrics"
    assert metrics_url("http://127.0.0.1:8001/") == "http://127.0.0.1:8001/metrics"


def test_another_page_holds_no_metrics() -> None:
    with pytest.raises(ValueError, match="no metric that begins with vllm: or detector_"):
        parse("<html>hello</html>")


def test_a_server_without_metrics_is_left_alone() -> None:
    asked: list[str] = []

    def refuse(url: str) -> Reading:
        asked.append(url)
        raise OSError("404")

    server = Server(["http://127.0.0.1:1"], refuse)
    server.listeners.append(lambda reading: None)
    for _ in range(10):
        server.poll()
    assert len(asked) == GIVE_UP_AFTER


def test_a_server_that_nobody_listens_to_is_not_asked() -> None:
    asked: list[str] = []
    server = Server(["http://127.0.0.1:1"], lambda url: {"asked": len(asked.append(url) or asked)})  # type: ignore[func-returns-value]
    server.poll()
    assert not asked


def test_listeners_hear_every_reading_and_that_one_failed() -> None:
    """A queue of long ago must not bound the requests for ever."""
    readings = iter([{"vllm:num_requests_running": 8.0}])
    heard: list[Reading] = []
    server = Server(["http://127.0.0.1:1"], lambda url: next(readings))
    server.listeners += [heard.append, heard.append]
    server.poll()
    server.poll()
    assert heard == [{"vllm:num_requests_running": 8.0}] * 2 + [{}] * 2


def test_the_servers_are_read_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_load, "POLL_S", 60.0)
    counter = itertools.count()
    heard: list[Reading] = []
    server = Server(["http://127.0.0.1:1"], lambda url: {"counted": float(next(counter))})
    server.listeners.append(heard.append)
    poller = LoadPoller({"model": server})
    poller.start()
    assert heard == [{"counted": 0.0}]
    poller.stop()
    poller.finish()
    assert heard == [{"counted": 0.0}, {"counted": 1.0}]
    assert poller.cpu_s > 0


def test_a_page_that_drips_keeps_no_run_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_load, "WAIT_S", 0.2)
    over = threading.Event()

    def drip(url: str) -> Reading:
        over.wait()
        raise OSError("cut off")

    server = Server(["http://127.0.0.1:1"], drip)
    server.listeners.append(lambda reading: None)
    poller = LoadPoller({"model": server})
    began = time.monotonic()
    poller.start()
    started = time.monotonic()
    poller.stop()
    poller.finish()
    assert poller._thread.is_alive()  # it still waits for the page, and nobody waits for it
    over.set()
    assert started - began >= 0.2
