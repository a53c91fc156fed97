"""The clients of both services, with the settings' limits."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.clients.address import Served
from pipeline.clients.completion import OF_CHAT
from pipeline.clients.detector import DetectorClient, Finder
from pipeline.clients.dialects import RequestForm
from pipeline.clients.http import HttpClient, Limits
from pipeline.clients.model import ModelClient
from pipeline.clients.network import CONTAINERS, is_loopback, is_private, proxy_for
from pipeline.clients.server_load import RUNNING, WAITING, LoadPoller, Reading, Server, fetch
from pipeline.clients.tiles import TiledDetector
from pipeline.errors import InvalidSetting
from pipeline.job import Job
from pipeline.locations import addresses
from pipeline.metrics.stage import ASK, DETECT
from pipeline.runtime.runtime import Runtime
from pipeline.settings import Settings


@dataclass(frozen=True, slots=True)
class Clients:
    """The two services' clients, and the poller of the servers' load."""

    finder: Finder
    """The detector's client, or what finds objects without it."""
    model: ModelClient
    load: LoadPoller

    @property
    def http(self) -> tuple[HttpClient, ...]:
        """The services' connections."""
        return (*([self.finder.http] if isinstance(self.finder, DetectorClient) else []), self.model.http)

    @property
    def allowed(self) -> dict[str, Callable[[], float]]:
        """How many rows each asking stage may send now."""
        finder = self.finder
        if isinstance(finder, DetectorClient):
            return {DETECT: finder.http.allowed, ASK: self.model.http.allowed}
        return {DETECT: lambda: float(finder.concurrency), ASK: self.model.http.allowed}

    def grant(self, shares: Mapping[str, int]) -> None:
        """Have at most so many requests in flight, by the services' names; the rest of the limits is for others."""
        for http in self.http:
            http.grant(shares[http.name])

    def within(self, shares: Mapping[str, int]) -> bool:
        """Whether no more requests than these are in flight."""
        return all(http.in_flight <= shares[http.name] for http in self.http)

    def served(self) -> Served:
        """What each address of the services did, for run.json."""
        return {http.name: [each.served() for each in http.addresses] for http in self.http if http.addresses}

    def close(self) -> None:
        """Stop polling and close all connections."""
        self.load.stop()
        for http in self.http:
            http.close()
        self.load.finish()

    def waiting_for(self) -> str:
        """What the clients wait for now, in words."""
        states = [
            f"{http.name}: "
            + ("away" if http.away else f"{http.in_flight} requests in flight")
            + (", rate limited" if http.limited else "")
            for http in self.http
            if http.connection
        ]
        return ", ".join(states) or "the first image"

    def held_up(self) -> str | None:
        """Why no row may end now: a service is away, or takes no more requests for a while; None if neither."""
        absent = [http.name for http in self.http if http.away]
        limiting = [http.name for http in self.http if http.limited]
        said = [f"waiting for the {' and the '.join(absent)} to come back"] if absent else []
        said += [f"waiting for the rate limit of the {' and the '.join(limiting)}"] if limiting else []
        return ", ".join(said) or None

    def tasks(self) -> str:
        """Where the tasks of the clients' event loops wait, and how many at each place: a line a place."""
        places: Counter[str] = Counter()
        for loop in {http.connection.loop for http in self.http if http.connection}:
            with suppress(RuntimeError):  # tasks come and go meanwhile
                places.update(where(task.get_coro()) for task in asyncio.all_tasks(loop))
        return "".join(f"{number} tasks: {place}\n" for place, number in places.most_common())


def where(waiting: Any) -> str:
    """The lines at which a coroutine, and what it awaits, stand: the outermost first."""
    lines = []
    while (frame := getattr(waiting, "cr_frame", None)) is not None:
        lines.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}")
        waiting = waiting.cr_await
    return " > ".join(lines) or "done"


def model_headers(settings: Settings) -> dict[str, str]:
    """The headers that the model server wants."""
    return {"Authorization": f"Bearer {settings.api_key.get_secret_value()}"} if settings.api_key else {}


def refuse_clear_text(settings: Settings) -> None:
    """See that the key does not leave the private network as text that others can read.

    Raises:
        InvalidSetting: it would, since an address is without TLS.
    """
    for url in addresses(settings.model_url) if settings.api_key else ():
        host, proxy = urlsplit(url).hostname or "", proxy_for(url)
        if url.startswith("https:") or host in CONTAINERS or is_loopback(host):
            continue
        if proxy is not None or not is_private(host):
            by = f" through the proxy {urlsplit(proxy).hostname}" if proxy else ""
            raise InvalidSetting(
                f"SPOTTER_API_KEY would go to {host}{by} as readable text: set SPOTTER_MODEL_URL to an address with "
                "https"
            )


def make_clients(
    settings: Settings,
    job: Job,
    model: str,
    runtime: Runtime,
    given: Finder | None = None,
    form: RequestForm = OF_CHAT,
) -> Clients:
    """Clients with the settings' limits; `model` is the model's name at its server, whose queue steers the limiter.

    With a finder that is `given` there is no client of the detector.
    """

    def limits(concurrency: int) -> Limits:
        patience_s = settings.outage_limit_s
        return Limits(
            concurrency, settings.request_timeout_s, settings.attempts, outage_s=patience_s, rate_limit_s=patience_s
        )

    detector = HttpClient(
        addresses(settings.detector_url),
        limits(settings.detector_concurrency),
        name="detector",
        ca_file=settings.ca_file,
        cancellation=runtime.cancellation,
        metrics=runtime.metrics.stages[DETECT],
    )
    model_http = HttpClient(
        addresses(settings.model_url),
        limits(settings.model_concurrency),
        name="model server",
        headers=model_headers(settings),
        ca_file=settings.ca_file,
        cancellation=runtime.cancellation,
        metrics=runtime.metrics.stages[ASK],
    )
    read = partial(fetch, ca_file=settings.ca_file)
    servers = {"detector": Server(detector.urls, read)} if given is None else {}

    def steer(url: str, reading: Reading) -> None:
        model_http.hear_queue(url, reading.get(RUNNING, 0.0), reading.get(WAITING, 0.0))

    servers["model"] = Server(model_http.urls, read, steer)
    asked = (detector, job.labels, job.threshold)
    return Clients(
        given or (TiledDetector(*asked, job.tiles) if job.tiles else DetectorClient(*asked)),
        ModelClient(model_http, model, job, form),
        LoadPoller(servers),
    )
