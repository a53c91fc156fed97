"""`down`: stop the stack."""

from __future__ import annotations

from rich.console import Console

from scripts.commands.engines import engines_in_use, one_at_a_time, stop
from scripts.docker.host import answers
from scripts.docker.project import other_checkout, project_name
from scripts.services import kind_of
from scripts.settings import StackSettings


def run(settings: StackSettings, console: Console) -> None:
    """Stop every service, however it was started; requests in flight may finish."""
    with one_at_a_time(settings, console):
        stopped = []
        for engine in engines_in_use(settings, leftovers=True):
            stopped += stop(engine, {name: kind_of(name).stop_grace_s for name in engine.names()})
            engine.tear_down()
    console.print(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")
    project = project_name(settings.state)
    if not stopped and answers() and (other := other_checkout(project)):
        console.print(
            f"the containers of {project} belong to another checkout, {other}: `make down` there stops them",
            soft_wrap=True,
        )
