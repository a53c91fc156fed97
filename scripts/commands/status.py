"""`status`: show the services."""

from __future__ import annotations

import os

from rich.console import Console
from rich.table import Table

from scripts.commands.engines import plan
from scripts.environments import ROOT
from scripts.settings import StackSettings
from scripts.stack.warmup import is_ready


def run(settings: StackSettings, console: Console) -> None:
    """Show each service: state, id, address, for how long it runs, and its log."""
    stack, engine, _ = plan(settings)
    table = Table("service", "state", "id", "address", "up for", "log", box=None, pad_edge=False)
    for service in map(engine.locate, stack.services):
        identifier, age_s = engine.describe(service.name)
        if engine.is_running(service.name):
            state = "ready" if is_ready(service) else "starting or not answering"
            if not engine.is_current(service):
                state += " (settings have changed: make up)"
        else:
            state = "ended by itself" if engine.started(service.name) else "down"
        age = "" if age_s is None else f"{age_s:.0f} s"
        log = os.path.relpath(engine.log(service.name), ROOT)
        table.add_row(service.name, state, identifier, service.ready_url.rsplit("/", 1)[0], age, log)
    console.print(table)
