"""Ask the model server one real question of a job, in the form of request that the server takes."""

from __future__ import annotations

import asyncio
import difflib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from PIL import Image

from pipeline.clients.answer_text import shown
from pipeline.clients.connect import model_headers, refuse_clear_text
from pipeline.clients.dialects import Api, RequestForm, SchemaForm
from pipeline.clients.http import HttpClient, Limits, RequestFailed
from pipeline.clients.model import BadAnswer, ModelClient
from pipeline.clients.remedies import CONNECT_S, Asked, explained
from pipeline.clients.retries import MODEL, PROXY, REDIRECT, REQUEST, UNREACHABLE
from pipeline.errors import ModelNotServed, ServiceRefuses, UsageError
from pipeline.job import MAX_COMPLETION_TOKENS, Job
from pipeline.question import Question
from pipeline.settings import Settings
from pipeline.tables import CONFIDENCE, confidence_columns

# A service that is up takes a connection at once; a model's first answer may take a while. A gateway may have a bad
# moment, or have used up its rate of a minute.
ANSWER_S, RATE_LIMIT_S = 60.0, 75.0
LIMITS = Limits(concurrency=1, timeout_s=ANSWER_S, attempts=4, connect_s=CONNECT_S, rate_limit_s=RATE_LIMIT_S)

MODEL_SERVER = "model server"

# So many names of models a message shows.
SHOWN_MODELS = 5

# The order in which the forms of a request are tried: those that hold the model to the schema first.
APIS: tuple[Api, ...] = ("chat", "responses")
SCHEMA_FORMS: tuple[SchemaForm, ...] = ("json_schema", "structured_outputs", "json_object", "none")


@dataclass(frozen=True, slots=True)
class Served:
    """The model to ask."""

    model: str
    root: str | None
    """Where the server has it from, if it tells."""
    listed: dict[str, str | None] | None
    """All models that the server lists, and where it has them from; None where it lists none."""
    length: object = None
    """The most tokens of a question and its answer, if it tells."""

    def said(self) -> str:
        """The model in words."""
        root = f" from {self.root}" if self.root else ""
        return f"model {self.model}{root}" + (f", at most {self.length} tokens" if self.length else "")


def blank_jpeg() -> bytes:
    """A grey picture of 64 x 64 pixels."""
    encoded = io.BytesIO()
    Image.new("RGB", (64, 64), (127, 127, 127)).save(encoded, "JPEG")
    return encoded.getvalue()


def model_asked(settings: Settings) -> Asked:
    """The model server, for messages."""
    return Asked(MODEL_SERVER, settings.model_url.rstrip("/"), "SPOTTER_MODEL_URL", settings.api_key is not None)


def model_client(settings: Settings) -> HttpClient:
    """The connection to the model server."""
    headers = model_headers(settings)
    return HttpClient(settings.model_url, LIMITS, name=MODEL_SERVER, headers=headers, ca_file=settings.ca_file)


async def find_model(settings: Settings) -> Served:
    """The model to ask: the one that the settings name, or the only one that the server lists.

    A gateway may list none, or patterns, or leave out names that it serves: a name that is set is asked, not looked up.

    Raises:
        ServiceUnreachable, ServiceRefuses: the server does not answer, or not as an API does.
        ModelNotServed: none is named and the server does not list exactly one.
        InvalidSetting: the key would leave the private network as readable text.
    """
    refuse_clear_text(settings)
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
        entries = json.loads(body)["data"]
        listed = {str(entry["id"]): entry.get("root") for entry in entries}
        lengths = {str(entry["id"]): entry.get("max_model_len") for entry in entries}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if settings.model is not None:
            return Served(settings.model, None, None)
        raise ServiceRefuses(f"{asked.said()}/models does not list models: {kind} ({shown(body)})") from error
    if settings.model is not None:
        return Served(settings.model, listed.get(settings.model), listed, lengths.get(settings.model))
    if len(listed) == 1 and "*" not in next(iter(listed)):
        return Served(*next(iter(listed.items())), listed, *lengths.values())
    raise ModelNotServed(f"{asked.said()} serves {names(listed)}: choose one with SPOTTER_MODEL")


def names(listed: dict[str, str | None], wanted: str = "") -> str:
    """Some names of models, those first that are most like the wanted one."""
    near = difflib.get_close_matches(wanted, listed, SHOWN_MODELS, 0.4) if wanted else []
    some = list(dict.fromkeys([*near, *listed]))[:SHOWN_MODELS]
    more = f" and {len(listed) - len(some)} more" if len(listed) > len(some) else ""
    return (", ".join(name[:60] for name in some) or "no model") + more


# Answers after which another form of the request may be taken: an unknown field, path or kind of request.
OTHER_FORM = re.compile(r"HTTP (400|404|405|415|422|501)\b")
NO_PATH = re.compile(r"HTTP (404|405|501)\b")
# OpenAI's word to requests with max_tokens, in its newer models.
WANTS_COMPLETION_TOKENS = re.compile(r"max_completion_tokens")
LOGPROBS = re.compile(r"HTTP 4\d\d\b.*logprob", re.I | re.S)
NO_LOGPROBS = "{} gives no logprobs, which SPOTTER_CONFIDENCE=on asks for: set it to auto or off"
NO_TEMPERATURE = re.compile(
    r"temperature.{0,80}(?:not support|unsupported|only the default)|unsupported.{0,80}temperature", re.I
)

# The answer to this question stands in its schema alone: a server that ignores the schema cannot give it.
ONLY_IN_SCHEMA = Question.model_validate(
    {
        "question": "Say hello.",
        "schema": {
            "type": "object",
            "properties": {"mark": {"type": "string", "enum": ["qz7-vx"]}},
            "required": ["mark"],
            "additionalProperties": False,
        },
        "max_tokens": 32,
    }
)

Failed = RequestFailed | BadAnswer


async def try_model(
    settings: Settings, job: Job, served: Served, inputs: Mapping[str, Any] | None = None
) -> tuple[RequestForm, str | None]:
    """One real answer to each of the job's questions; `inputs` are those of one row, by default their names.

    Returns the form of request that the server takes, and why it is not the usual one.

    Raises:
        ServiceRefuses: the server refuses the job's requests, or answers in another form than the job's schema.
        ModelNotServed: it does not serve the model.
    """
    http, values = model_client(settings), inputs or {name: name for name in job.inputs}

    # Of a job that has no choice there is nothing to learn.
    wanted = settings.confidence != "off" and bool(confidence_columns(job.properties))

    async def ask(form: RequestForm) -> tuple[RequestForm, Failed | None]:
        client = ModelClient(http, served.model, job, form)
        asking = [client.ask(blank_jpeg(), number, values) for number in range(len(job.questions))]
        if not form.in_words and any("json" in question.question.lower() for question in job.questions):
            asking.append(ModelClient(http, served.model, with_one(job, ONLY_IN_SCHEMA), form).ask(blank_jpeg()))
        try:
            answers = await asyncio.gather(*asking)
        except (RequestFailed, BadAnswer) as error:
            other = adjusted(form, error)
            return (form, error) if other is None else await ask(other)
        told = any(
            name.endswith(CONFIDENCE) and value is not None for each in answers for name, value in each.columns.items()
        )
        return replace(form, logprobs=form.logprobs and told), None

    apis = APIS if settings.api == "auto" else (settings.api,)
    schema_forms = SCHEMA_FORMS if settings.schema_form == "auto" else (settings.schema_form,)
    left = [RequestForm(api, schema_form, logprobs=wanted) for api in apis for schema_form in schema_forms]
    failures: list[tuple[RequestForm, Failed]] = []
    try:
        while left:
            form, error = await ask(left.pop(0))
            if error is None:
                if settings.confidence == "on" and wanted and not form.logprobs:
                    raise ServiceRefuses(NO_LOGPROBS.format(model_asked(settings).said()))
                return form, (str(failures[0][1]) if failures else None)
            failures.append((form, error))
            missing = NO_PATH.match(str(error)) is not None
            if not other_form_may_do(error, served) or (missing and unknown(served)):
                break
            if missing:
                left = [each for each in left if each.api != form.api]
            elif left and left[0].api != form.api:
                break  # the server has this API, and takes the question in none of its forms
    finally:
        await http.aclose()
    # A path that is missing says less than what the other path answers.
    form, error = next((each for each in failures if not NO_PATH.match(str(each[1]))), failures[0])
    raise refusal(settings, job, served, form, error) from error


def adjusted(form: RequestForm, error: Failed) -> RequestForm | None:
    """The form without what the server's error is about; None where another field will not help."""
    said = str(error)
    if form.api == "chat" and form.limit is None and WANTS_COMPLETION_TOKENS.search(said):
        return replace(form, limit=MAX_COMPLETION_TOKENS)
    if not form.logprobs or not isinstance(error, RequestFailed):
        return None
    refused = error.cause in (None, REQUEST) and OTHER_FORM.match(said) and not NO_PATH.match(said)
    return replace(form, logprobs=False) if refused or LOGPROBS.match(said) else None


def with_one(job: Job, question: Question) -> Job:
    """The job with this question alone, about an image or not as its first one."""
    alone = question.model_copy(update={"image": job.questions[0].image})
    return job.model_copy(update={"questions": [alone], "inputs": {}})


def other_form_may_do(error: Failed, served: Served) -> bool:
    """Whether a server that fails so may take the question in another form."""
    if isinstance(error, BadAnswer):
        return error.unbound
    if error.cause not in (None, REQUEST) or (unknown(served) and "HTTP 404" in str(error)):
        return False
    return OTHER_FORM.match(str(error)) is not None


def refusal(settings: Settings, job: Job, served: Served, form: RequestForm, error: Failed) -> UsageError:
    """Why the job cannot be done with this model server, and what to do."""
    asked, path, model = model_asked(settings), form.dialect.PATH, served.model
    if isinstance(error, BadAnswer):
        return ServiceRefuses(f"model {model} does not answer in the form of job {job.name}: {error}")
    if error.cause == MODEL or (unknown(served) and "HTTP 404" in str(error)):
        lists = f", but lists {names(served.listed, model)}" if served.listed else ""
        return ModelNotServed(f"{asked.said()} does not serve {model!r}{lists}: correct SPOTTER_MODEL ({error})")
    if (remedy := explained(error, asked, path)) is not None:
        return remedy
    if NO_PATH.match(str(error)):
        return ServiceRefuses(
            f"{asked.said()}{path} answers {error}: expected an OpenAI-compatible API, whose address ends in /v1: "
            "check SPOTTER_MODEL_URL"
        )
    hint = "; give the job `temperature: null`" if NO_TEMPERATURE.search(str(error)) else no_key(settings)
    return ServiceRefuses(f"model {model} refuses the requests of job {job.name}: {error}{hint}")


def no_key(settings: Settings) -> str:
    """A hint for a server that fails without a word: LiteLLM without a database answers 500 where a key is missing."""
    return "" if settings.api_key else "; if it asks for a key, set SPOTTER_API_KEY"


def unknown(served: Served) -> bool:
    """Whether the server lists its models, and not this one."""
    return served.listed is not None and not any(fnmatchcase(served.model, pattern) for pattern in served.listed)
