"""`fetch`: get the models of this host's stack from the hub."""

from __future__ import annotations

from rich.console import Console

from scripts.commands import fetch
from scripts.commands.engines import one_at_a_time, plan
from scripts.commands.up import prepare
from scripts.settings import StackSettings


def run(settings: StackSettings, console: Console) -> None:
    """Get the models that are missing, and check all against the hub's hashes."""
    with one_at_a_time(settings, console):
        stack, engine, why = plan(settings)
        console.print(why)
        engine.claim()
        wanted = [service for service in stack.services if fetch.from_hub(service)]
        for service in stack.services:
            if service.model and service not in wanted:
                console.print(f"{service.name}: {service.model} is a folder: nothing to fetch")
        prepare(engine, wanted)
        try:
            models = fetch.ensure(engine, wanted, console, offline=settings.offline, verify=True)
        finally:
            if wanted and not any(engine.is_running(service.name) for service in stack.services):
                engine.tear_down()
        for model in models:
            verified = "" if model.came or settings.offline else ", verified"
            console.print(f"{model.service}: {model}{verified}")
