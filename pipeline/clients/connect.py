"""Both services' clients, with the settings' limits."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.clients.detector import DetectorClient
from pipeline.clients.http import HttpClient, Limits
from pipeline.clients.model import ModelClient
from pipeline.clients.probe import Services, model_headers
from pipeline.job import Job
from pipeline.metrics.stage import Account
from pipeline.runtime.cancellation import Stop
from pipeline.settings import Settings


@dataclass(frozen=True, slots=True)
class Clients:
    """The two services, bounded."""

    detector: DetectorClient
    model: ModelClient

    def close(self) -> None:
        """Close all connections."""
        self.detector.http.close()
        self.model.http.close()

    def waiting_for(self) -> str:
        """What the clients wait for now, in words."""
        states = []
        for http in (self.detector.http, self.model.http):
            if http.connection is None:
                continue
            slots, away = http.connection.slots, http.connection.outage.since is not None
            states.append(f"{http.name}: " + ("away" if away else f"{slots.in_flight} requests in flight"))
        return ", ".join(states) or "the first image"

    def away(self) -> list[str]:
        """The services that are not there now."""
        clients = (self.detector.http, self.model.http)
        return [http.name for http in clients if http.connection and http.connection.outage.since is not None]


def make_clients(settings: Settings, job: Job, services: Services, stop: Stop, account: Account) -> Clients:
    """Clients with the settings' limits; their requests are noted in the account."""

    def limits(concurrency: int) -> Limits:
        return Limits(concurrency, settings.request_timeout_s, settings.attempts, outage_s=settings.outage_limit_s)

    detector = HttpClient(
        str(settings.detector_url),
        limits(settings.detector_concurrency),
        name="detector",
        stop=stop,
        account=account.detect,
    )
    model = HttpClient(
        str(settings.model_url),
        limits(settings.model_concurrency),
        name="model server",
        check_path="/models",
        headers=model_headers(settings),
        stop=stop,
        account=account.ask,
    )
    return Clients(DetectorClient(detector, job.label, job.threshold), ModelClient(model, services.model, job))
