"""`status`: show the services."""

from __future__ import annotations

import os
import urllib.error
from contextlib import suppress

from rich.console import Console
from rich.table import Table

from pipeline.clients.network import opener
from pipeline.errors import UsageError
from scripts.commands.engines import plan, surplus
from scripts.environments import ROOT
from scripts.services import KINDS
from scripts.settings import StackSettings, load_job
from scripts.stack.services import idle
from scripts.stack.warmup import is_ready

ANSWERS_S = 2.0


def run(settings: StackSettings, console: Console) -> None:
    """Show each service: state, id, address, for how long it runs, and its log."""
    stack, engine, _ = plan(settings)
    unused = frozenset[str]()
    with suppress(UsageError):  # status shows a stack for any job
        unused = idle(load_job().settings)
    table = Table("service", "state", "id", "address", "up for", "log", box=None, pad_edge=False)
    for service in map(engine.locate, stack.services):
        identifier, age_s = engine.describe(service.name)
        if engine.is_running(service.name):
            state = "ready" if is_ready(service) else "starting or not answering"
            if not engine.is_current(service):
                state += " (settings have changed: make up)"
        else:
            state = "ended by itself" if engine.started(service.name) else "down"
            if service.name in unused:
                state += " (the job does not need it)"
        age = "" if age_s is None else f"{age_s:.0f} s"
        log = os.path.relpath(engine.log(service.name), ROOT)
        table.add_row(service.name, state, identifier, service.ready_url.rsplit("/", 1)[0], age, log)
    for name in surplus(engine, stack):
        table.add_row(name, "the settings name fewer servers: make up stops it", engine.describe(name)[0])
    for name in engine.nodes():
        identifier, age_s = engine.describe(name)
        answering = "running" if engine.unhealthy(name) is None else "does not answer"
        state = answering if engine.is_running(name) else "ended by itself"
        age = "" if age_s is None else f"{age_s:.0f} s"
        table.add_row(name, state, identifier, "", age, os.path.relpath(engine.log(name), ROOT))
    for kind in KINDS.values():
        for url in filter(None, settings.user_variables(kind.url_variable).get(kind.url_variable, "").split(",")):
            state = "answers" if answers(url.strip()) else "does not answer"
            table.add_row(kind.name, f"elsewhere; {state}", "", url.strip())
    console.print(table)


def answers(url: str) -> bool:
    """Whether somebody at an address answers HTTP, whatever it says."""
    try:
        opener(url).open(url, timeout=ANSWERS_S).close()
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, ValueError, UsageError):
        return False
    return True
