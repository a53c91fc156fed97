"""Find the running stack for a measurement: its addresses and its key, unless the user has set others."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr
from rich.console import Console

from pipeline import settings as job_settings
from pipeline.clients.probe import Services, probe
from pipeline.errors import InvalidSetting, UsageError
from pipeline.job import load as load_job
from pipeline.locations import read_addresses
from pipeline.settings import Settings
from scripts import settings as stack_settings
from scripts.stack import api_key
from scripts.stack.devices import choose, find_gpus
from scripts.stack.services import Stack, make_stack


def stack() -> Stack:
    """This host's stack as its settings have it.

    Raises:
        InvalidSetting: a setting is invalid.
    """
    try:
        given = stack_settings.load()
        device, preset, _ = choose(given, find_gpus(given))
        return make_stack(given, device, preset, given.user_variables(job_settings.PREFIX))
    except stack_settings.StackError as error:
        raise InvalidSetting(str(error)) from error


def settings() -> Settings:
    """The job's settings as `make run` has them.

    Raises:
        InvalidSetting: a setting of the job or the stack is invalid.
    """
    given, of = job_settings.load([]), stack()
    here: dict[str, Any] = {
        name: read_addresses(of.job_variables[job_settings.PREFIX + name.upper()])
        for name in ("detector_url", "model_url")
    }
    if of.key_file and of.key_file.exists():
        here["api_key"] = SecretStr(api_key.ensure(of.key_file))
    return given.model_copy(update=here)


def find(settings: Settings) -> Services:
    """Ask both services what they serve.

    Raises:
        UsageError: a service does not answer; the message says which and why.
    """
    try:
        return probe(settings, load_job(settings.job))
    except UsageError as error:
        raise type(error)(f"{error} (containers: with STACK_PUBLISH=True)") from error


def find_model(settings: Settings, console: Console, required: bool) -> str | None:
    """The name of the stack's model; None, and a line, where the stack is not up.

    Raises:
        UsageError: the stack is not up, but `required`.
    """
    try:
        return find(settings).model
    except UsageError as error:
        if required:
            raise
        console.print(f"\nnot measured on the running stack: {error}")
        return None


def key_variable(settings: Settings) -> dict[str, str]:
    """The key as an environment variable for a client process, because any user can read a command line."""
    return {api_key.JOB_VARIABLE: settings.api_key.get_secret_value()} if settings.api_key else {}


def origin(url: object) -> str:
    """An address without its path."""
    parts = urlsplit(str(url))
    return f"{parts.scheme}://{parts.netloc}"
