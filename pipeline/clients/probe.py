"""Ask both services one small real question before the first image is read.

A wrong address, label, model name or schema would fail every row alike: it is found here, in a second.
"""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import dataclass

import aiohttp
from PIL import Image

from pipeline.clients.connect import model_headers
from pipeline.clients.detector import BadReply, Detected, DetectorClient
from pipeline.clients.http import HttpClient, Limits, RequestFailed, describe
from pipeline.clients.model import BadAnswer, ModelClient
from pipeline.errors import UsageError
from pipeline.job import Job
from pipeline.settings import Settings

# A service that is up takes a connection at once; a model's first answer may take a while.
CONNECT_S = 3.0
ANSWER_S = 60.0
ONE_TRY = Limits(concurrency=1, timeout_s=ANSWER_S, attempts=1, connect_s=CONNECT_S)


@dataclass(frozen=True, slots=True)
class Services:
    """What answers behind the two addresses."""

    model: str
    """The model's name at the server."""
    model_root: str | None
    """Where the server has the model from, if it tells."""
    detector: str
    detector_revision: str | None
    detector_settings: str
    """What the detector says of how it chooses boxes; a threshold that the job names is in the job."""


def blank_jpeg() -> bytes:
    """A grey picture of 64 x 64 pixels."""
    encoded = io.BytesIO()
    Image.new("RGB", (64, 64), (127, 127, 127)).save(encoded, "JPEG")
    return encoded.getvalue()


async def find_model(settings: Settings) -> tuple[str, str | None]:
    """The name of the model to ask, and where the server has it from.

    Raises:
        UsageError: the server cannot be reached, is none of this kind, or does not serve the model.
    """
    url = str(settings.model_url).rstrip("/") + "/models"
    timeout = aiohttp.ClientTimeout(total=ANSWER_S, sock_connect=CONNECT_S)
    hint = "start the stack with 'make up', or set SPOTTER_MODEL_URL"
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=model_headers(settings)) as session,
            session.get(url) as response,
        ):
            status, body = response.status, await response.read()
    except TimeoutError as error:
        raise UsageError(f"model server {url} cannot be reached (no answer in time): {hint}") from error
    except aiohttp.ClientError as error:
        raise UsageError(f"model server {url} cannot be reached ({describe(error)}): {hint}") from error
    if status in (401, 403):
        raise UsageError(f"model server {url} refuses the key (HTTP {status}): set SPOTTER_API_KEY")
    kind = "an OpenAI-compatible API, whose address ends in /v1: check SPOTTER_MODEL_URL"
    if status != 200:
        raise UsageError(f"model server {url} answers HTTP {status}: expected {kind}")
    try:
        served = {entry["id"]: entry.get("root") for entry in json.loads(body)["data"]}
    except (ValueError, LookupError, TypeError) as error:
        raise UsageError(f"model server {url} does not list models: expected {kind}") from error
    names = ", ".join(served) or "none"
    if settings.model is None and len(served) == 1:
        return next(iter(served.items()))
    if settings.model is None:
        raise UsageError(f"model server {url} serves several models ({names}): choose one with SPOTTER_MODEL")
    if settings.model not in served:
        raise UsageError(f"model server {url} does not serve {settings.model!r}, but {names}: correct SPOTTER_MODEL")
    return settings.model, served[settings.model]


async def try_detector(settings: Settings, job: Job) -> Detected:
    """One real detection.

    Raises:
        UsageError: the service cannot be reached or does not know the job's label.
    """
    http = HttpClient(str(settings.detector_url), ONE_TRY)
    try:
        return await DetectorClient(http, job.label, job.threshold).detect(blank_jpeg())
    except RequestFailed as error:
        if str(error).startswith("HTTP 422"):
            raise UsageError(f"job {job.name}: the detector refuses label {job.label!r}: {error}") from error
        raise UsageError(
            f"detector {http.base_url} cannot be used ({error}): start the stack with 'make up', "
            "or set SPOTTER_DETECTOR_URL"
        ) from error
    except BadReply as error:
        raise UsageError(f"detector {http.base_url} answers in another form than Spotter's detector service") from error
    finally:
        await http.aclose()


async def try_model(settings: Settings, job: Job, model: str) -> None:
    """One real answer of the job's form.

    Raises:
        UsageError: the server refuses the job's requests, or answers in another form than the job's schema.
    """
    http = HttpClient(str(settings.model_url), ONE_TRY, headers=model_headers(settings))
    try:
        await ModelClient(http, model, job).ask(blank_jpeg())
    except RequestFailed as error:
        raise UsageError(f"model {model} refuses the requests of job {job.name}: {error}") from error
    except BadAnswer as error:
        raise UsageError(f"model {model} does not answer in the form of job {job.name}: {error}") from error
    finally:
        await http.aclose()


async def probe_all(settings: Settings, job: Job) -> Services:
    """See `probe`."""
    detected, (model, root) = await asyncio.gather(try_detector(settings, job), find_model(settings))
    await try_model(settings, job, model)
    chosen = {name: value for name, value in detected.settings.items() if name != "threshold" or job.threshold is None}
    told = ", ".join(f"{name} {value}" for name, value in sorted(chosen.items()))
    return Services(model, root, detected.model, detected.revision, told)


def probe(settings: Settings, job: Job) -> Services:
    """Find out what answers, and that it answers this job.

    Raises:
        UsageError: something would fail every row; the message says what and what to do.
    """
    return asyncio.run(probe_all(settings, job))
