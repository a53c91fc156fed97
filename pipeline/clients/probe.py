"""Ask both services one small real question before the first image is read.

A wrong address, label, model name or schema would fail every row alike: it is found here, in a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.clients.completion import OF_CHAT
from pipeline.clients.detector import BadReply, Detected, DetectorClient
from pipeline.clients.dialects import RequestForm
from pipeline.clients.each_address import Reached, ask_each, refuse_odd
from pipeline.clients.finders import Given
from pipeline.clients.http import HttpClient, RequestFailed
from pipeline.clients.probe_model import LIMITS, MODEL_SERVER, Served, blank_jpeg, find_model, try_model
from pipeline.clients.remedies import Asked, explained
from pipeline.errors import ServiceRefuses
from pipeline.job import Job
from pipeline.locations import addresses
from pipeline.settings import Settings
from pipeline.sources.images import UNKNOWN_INPUT

DETECTOR = "detector"


@dataclass(frozen=True, slots=True)
class Services:
    """What answers behind the two addresses."""

    model: str
    """The model's name at the server."""
    model_root: str | None
    """Where the server has the model from, if it tells."""
    detector: str
    """The detector's model, or the source of the boxes that are given."""
    detector_revision: str | None
    detector_settings: str
    """What the detector says of how it chooses boxes; a threshold that the job names is in the job."""
    detector_input: tuple[int, int] | None
    """Pixels that its model takes; None: it does not say."""
    form: RequestForm = OF_CHAT
    """How the model server wants its requests."""
    form_reason: str | None = None
    """Why it is not the usual form; None where it is, or was set."""
    model_urls: tuple[str, ...] = ()
    """The addresses that answered; none where all did."""
    detector_urls: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    """A line for each address that is away."""

    @property
    def takes(self) -> tuple[int, int]:
        """Pixels of an image that the detector makes use of."""
        return self.detector_input or UNKNOWN_INPUT

    def reached(self, settings: Settings) -> Settings:
        """The settings without the addresses that are away."""
        urls = {"model_url": ",".join(self.model_urls), "detector_url": ",".join(self.detector_urls)}
        return settings.model_copy(update={name: url for name, url in urls.items() if url})


def detector_asked(settings: Settings) -> Asked:
    """The detector, for messages."""
    return Asked(DETECTOR, settings.detector_url.rstrip("/"), "SPOTTER_DETECTOR_URL")


async def try_detector(settings: Settings, job: Job) -> Detected:
    """One real detection.

    Raises:
        ServiceUnreachable, ServiceRefuses: the service does not answer, or does not know the job's label.
    """
    asked = detector_asked(settings)
    http = HttpClient(asked.url, LIMITS, name="detector", ca_file=settings.ca_file)
    try:
        return await DetectorClient(http, job.labels, job.threshold).detect(blank_jpeg())
    except RequestFailed as error:
        if str(error).startswith("HTTP 422"):
            raise ServiceRefuses(f"job {job.name}: the detector refuses the labels: {error}") from error
        if (line := explained(error, asked, "/detect")) is not None:
            raise line from error
        raise ServiceRefuses(
            f"{asked.said()} cannot be used ({error}): start the stack with 'make up', or set {asked.setting}"
        ) from error
    except BadReply as error:
        raise ServiceRefuses(f"{asked.said()} answers in another form than Spotter's detector service") from error
    finally:
        await http.aclose()


async def find_detector(
    settings: Settings, job: Job, given: Given | None
) -> tuple[tuple[str, str | None, str, tuple[int, int] | None], Reached]:
    """The detector's name, revision, settings and input for `Services`; it is not asked where boxes are `given`.

    Raises:
        UsageError: no address can be used, or one answers otherwise than the others.
    """
    if given is not None:
        return (given.detector or given.name, given.revision, given.detector_settings, None), Reached()

    async def ask(url: str) -> tuple[str, str | None, str, tuple[int, int] | None]:
        detected = await try_detector(settings.model_copy(update={"detector_url": url}), job)
        chosen = {
            name: value for name, value in detected.settings.items() if name != "threshold" or job.threshold is None
        }
        told = ", ".join(f"{name} {value}" for name, value in sorted(chosen.items()))
        return detected.model, detected.revision, told, detected.input

    found, left_out = await ask_each(DETECTOR, addresses(settings.detector_url), ask)
    said = {
        url: f"model {model} {revision or ''} ({told}; {input})"
        for url, (model, revision, told, input) in found.items()
    }
    refuse_odd(DETECTOR, "SPOTTER_DETECTOR_URL", said)
    return next(iter(found.values())), Reached(tuple(found), left_out)


async def try_models(
    settings: Settings, job: Job, inputs: Mapping[str, Any] | None
) -> tuple[Served, RequestForm, str | None, Reached]:
    """The model, the form of request that each address takes, and why it is not the usual one.

    Raises:
        UsageError: no address can be used, or one answers otherwise than the others.
    """

    async def ask(url: str) -> tuple[Served, RequestForm, str | None]:
        one = settings.model_copy(update={"model_url": url})
        served = await find_model(one)
        return served, *await try_model(one, job, served, inputs)

    found, left_out = await ask_each(MODEL_SERVER, addresses(settings.model_url), ask)
    said = {
        url: f"{served.said()}, {form.said()}" + (", logprobs" if form.logprobs else "")
        for url, (served, form, _) in found.items()
    }
    refuse_odd(MODEL_SERVER, "SPOTTER_MODEL_URL", said)
    return *next(iter(found.values())), Reached(tuple(found), left_out)


async def probe_all(
    settings: Settings, job: Job, inputs: Mapping[str, Any] | None, given: Given | None = None
) -> Services:
    """See `probe`."""
    (detector, detectors), (served, form, why, models) = await asyncio.gather(
        find_detector(settings, job, given), try_models(settings, job, inputs)
    )
    left_out = (*detectors.left_out, *models.left_out)
    return Services(served.model, served.root, *detector, form, why, models.urls, detectors.urls, left_out)


def probe(
    settings: Settings, job: Job, inputs: Mapping[str, Any] | None = None, given: Given | None = None
) -> Services:
    """Find out what answers, and that it answers this job; `inputs` are those of one row.

    The detector is not asked where the boxes are `given`.

    Raises:
        UsageError: something would fail every row; the message says what and what to do.
    """
    return asyncio.run(probe_all(settings, job, inputs, given))
