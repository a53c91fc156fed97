"""Ask both services one small real question before the first image is read.

A wrong address, label, model name or schema would fail every row alike: it is found here, in a second.
"""

from __future__ import annotations

import asyncio
import difflib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from PIL import Image

from pipeline.clients.answer_text import shown
from pipeline.clients.connect import model_headers
from pipeline.clients.detector import BadReply, Detected, DetectorClient
from pipeline.clients.finders import Given
from pipeline.clients.http import HttpClient, Limits, RequestFailed
from pipeline.clients.model import BadAnswer, ModelClient
from pipeline.clients.remedies import CONNECT_S, Asked, explained
from pipeline.clients.retries import MODEL, PROXY, REDIRECT, UNREACHABLE
from pipeline.errors import ModelNotServed, ServiceRefuses
from pipeline.job import Job
from pipeline.settings import Settings
from pipeline.sources.images import UNKNOWN_INPUT

# A service that is up takes a connection at once; a model's first answer may take a while. A gateway may have a bad
# moment, or have used up its rate of a minute.
ANSWER_S, RATE_LIMIT_S = 60.0, 75.0
LIMITS = Limits(concurrency=1, timeout_s=ANSWER_S, attempts=4, connect_s=CONNECT_S, rate_limit_s=RATE_LIMIT_S)

# So many names of models a message shows.
SHOWN_MODELS = 5


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

    @property
    def takes(self) -> tuple[int, int]:
        """Pixels of an image that the detector makes use of."""
        return self.detector_input or UNKNOWN_INPUT


@dataclass(frozen=True, slots=True)
class Served:
    """The model to ask."""

    model: str
    root: str | None
    """Where the server has it from, if it tells."""
    listed: dict[str, str | None] | None
    """All models that the server lists, and where it has them from; None where it lists none."""


def blank_jpeg() -> bytes:
    """A grey picture of 64 x 64 pixels."""
    encoded = io.BytesIO()
    Image.new("RGB", (64, 64), (127, 127, 127)).save(encoded, "JPEG")
    return encoded.getvalue()


def detector_asked(settings: Settings) -> Asked:
    """The detector, for messages."""
    return Asked("detector", str(settings.detector_url).rstrip("/"), "SPOTTER_DETECTOR_URL")


def model_asked(settings: Settings) -> Asked:
    """The model server, for messages."""
    return Asked("model server", str(settings.model_url).rstrip("/"), "SPOTTER_MODEL_URL", settings.api_key is not None)


def model_client(settings: Settings) -> HttpClient:
    """The connection to the model server."""
    headers = model_headers(settings)
    return HttpClient(str(settings.model_url), LIMITS, name="model server", headers=headers, ca_file=settings.ca_file)


async def find_model(settings: Settings) -> Served:
    """The model to ask: the one that the settings name, or the only one that the server lists.

    A gateway may list none, or patterns, or leave out names that it serves: a name that is set is asked, not looked up.

    Raises:
        ServiceUnreachable, ServiceRefuses: the server does not answer, or not as an API does.
        ModelNotServed: none is named and the server does not list exactly one.
    """
    asked, http = model_asked(settings), model_client(settings)
    kind = "expected an OpenAI-compatible API, whose address ends in /v1: check SPOTTER_MODEL_URL, or set SPOTTER_MODEL"
    try:
        body = (await http.get("/models")).body
    except RequestFailed as error:
        unasked = error.cause in (UNREACHABLE, REDIRECT, PROXY)
        if settings.model is not None and not unasked:
            return Served(settings.model, None, None)
        if (line := explained(error, asked, "/models")) is not None:
            raise line from error
        raise ServiceRefuses(f"{asked.said()}/models answers {error}: {kind}{no_key(settings)}") from error
    finally:
        await http.aclose()
    try:
        listed = {str(entry["id"]): entry.get("root") for entry in json.loads(body)["data"]}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if settings.model is not None:
            return Served(settings.model, None, None)
        raise ServiceRefuses(f"{asked.said()}/models does not list models: {kind} ({shown(body)})") from error
    if settings.model is not None:
        return Served(settings.model, listed.get(settings.model), listed)
    if len(listed) == 1 and "*" not in next(iter(listed)):
        return Served(*next(iter(listed.items())), listed)
    raise ModelNotServed(f"{asked.said()} serves {names(listed)}: choose one with SPOTTER_MODEL")


def names(listed: dict[str, str | None], wanted: str = "") -> str:
    """Some names of models, those first that are most like the wanted one."""
    near = difflib.get_close_matches(wanted, listed, SHOWN_MODELS, 0.4) if wanted else []
    some = list(dict.fromkeys([*near, *listed]))[:SHOWN_MODELS]
    more = f" and {len(listed) - len(some)} more" if len(listed) > len(some) else ""
    return (", ".join(name[:60] for name in some) or "no model") + more


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


async def try_model(settings: Settings, job: Job, served: Served, inputs: Mapping[str, Any] | None = None) -> None:
    """One real answer to each of the job's questions; `inputs` are those of one row, by default their names.

    Raises:
        ServiceRefuses: the server refuses the job's requests, or answers in another form than the job's schema.
        ModelNotServed: it does not serve the model.
    """
    asked, http, path, model = model_asked(settings), model_client(settings), "/chat/completions", served.model
    client, values = ModelClient(http, model, job), inputs or {name: name for name in job.inputs}
    try:
        await asyncio.gather(*(client.ask(blank_jpeg(), number, values) for number in range(len(job.questions))))
    except RequestFailed as error:
        if error.cause == MODEL or (unknown(served) and "HTTP 404" in str(error)):
            lists = f", but lists {names(served.listed, model)}" if served.listed else ""
            raise ModelNotServed(
                f"{asked.said()} does not serve {model!r}{lists}: correct SPOTTER_MODEL ({error})"
            ) from error
        if (remedy := explained(error, asked, path)) is not None:
            raise remedy from error
        if "HTTP 404" in str(error) or "HTTP 405" in str(error):
            raise ServiceRefuses(
                f"{asked.said()}{path} answers {error}: expected an OpenAI-compatible API, whose address ends in /v1: "
                "check SPOTTER_MODEL_URL"
            ) from error
        raise ServiceRefuses(
            f"model {model} refuses the requests of job {job.name}: {error}{no_key(settings)}"
        ) from error
    except BadAnswer as error:
        raise ServiceRefuses(f"model {model} does not answer in the form of job {job.name}: {error}") from error
    finally:
        await http.aclose()


def no_key(settings: Settings) -> str:
    """A hint for a server that fails without a word: LiteLLM without a database answers 500 where a key is missing."""
    return "" if settings.api_key else "; if it asks for a key, set SPOTTER_API_KEY"


def unknown(served: Served) -> bool:
    """Whether the server lists its models, and not this one."""
    return served.listed is not None and not any(fnmatchcase(served.model, pattern) for pattern in served.listed)


async def probe_all(
    settings: Settings, job: Job, inputs: Mapping[str, Any] | None, given: Given | None = None
) -> Services:
    """See `probe`."""
    if given is not None:
        served = await find_model(settings)
        await try_model(settings, job, served, inputs)
        return Services(served.model, served.root, given.name, given.revision, "", None)
    detected, served = await asyncio.gather(try_detector(settings, job), find_model(settings))
    await try_model(settings, job, served, inputs)
    chosen = {name: value for name, value in detected.settings.items() if name != "threshold" or job.threshold is None}
    told = ", ".join(f"{name} {value}" for name, value in sorted(chosen.items()))
    return Services(served.model, served.root, detected.model, detected.revision, told, detected.input)


def probe(
    settings: Settings, job: Job, inputs: Mapping[str, Any] | None = None, given: Given | None = None
) -> Services:
    """Find out what answers, and that it answers this job; `inputs` are those of one row.

    The detector is not asked where the boxes are `given`.

    Raises:
        UsageError: something would fail every row; the message says what and what to do.
    """
    return asyncio.run(probe_all(settings, job, inputs, given))
