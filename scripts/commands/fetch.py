"""Fetch the services' models from the hub: the only step that gets the token or needs a network."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from scripts.checks.doctor import hub
from scripts.environments import ROOT
from scripts.findings import Finding, error
from scripts.models.model_files import hub_token, is_hub_name, is_offline
from scripts.settings import FetchFailed
from scripts.stack.engine import Engine
from scripts.stack.plain_lines import PlainLines
from scripts.stack.service import TOKEN_VARIABLES, Service

Event = Mapping[str, Any]

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A model in the cache of its service."""

    service: str
    model: str
    size: int
    """Bytes."""
    came: int
    """Bytes of this download."""
    seconds: float

    def __str__(self) -> str:
        if not self.came:
            return f"{self.model}: {decimal(self.size)} in the cache"
        return f"{self.model}: {decimal(self.came)} of {decimal(self.size)} fetched in {self.seconds:.0f} s, verified"


class Display:
    """The progress: a bar in a terminal, elsewhere a line now and then."""

    def __init__(self, what: str, console: Console, verb: str = "fetching") -> None:
        self.what, self.verb = what, verb
        self.console = console
        self.total = self.first = 0
        self.begun, self.lines = time.monotonic(), PlainLines(console)
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self.bar = Progress(TextColumn("{task.description}", markup=False), *columns, console=console, transient=True)
        self.task = self.bar.add_task(what, total=None)

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def show(self, event: Event) -> None:
        """Show an event of scripts/models/hub_download.py."""
        match event["event"]:
            case "plan":
                self.total, self.first, self.begun = event["bytes"], event["present"], time.monotonic()
                self.lines = PlainLines(self.console)
                missing = self.total - self.first
                if missing and not self.console.is_terminal:
                    self.line(f"{self.verb} {decimal(missing)} of {decimal(self.total)}")
                self.bar.update(self.task, total=self.total, completed=self.first)
            case "progress":
                self.bar.update(self.task, completed=event["bytes"])
                if self.lines.due():
                    self.line(self.progress(event["bytes"]))
            case "verify":
                self.bar.update(self.task, description=f"{self.what}: verifying")
                if not self.console.is_terminal and event["bytes"] > 10**9:  # a second and more
                    self.line(f"verifying {decimal(event['bytes'])}")

    def progress(self, present: int) -> str:
        """The progress in words."""
        speed = (present - self.first) / max(time.monotonic() - self.begun, 0.1)
        left = f", about {(self.total - present) / speed:.0f} s left" if speed > 0 else ""
        return f"{decimal(present)} of {decimal(self.total)}, {decimal(int(speed))}/s{left}"

    def line(self, text: str) -> None:
        """Print a line about the model."""
        self.console.print(f"{self.what}: {text}", highlight=False)


def from_hub(service: Service) -> bool:
    """Whether a service's model comes from the hub and not from a folder."""
    return is_hub_name(service.model) and not (ROOT / service.model).is_dir()


def ensure(
    engine: Engine, services: list[Service], console: Console, *, offline: bool, verify: bool = False
) -> list[Fetched]:
    """Fetch and verify every model that its service's cache lacks.

    `verify` also compares the cached files with the hub's hashes. `offline` uses no network.

    Raises:
        FetchFailed: a model cannot be fetched; names the reason and the remedy.
    """
    environment = engine.settings.environment
    offline = offline or is_offline(environment)
    return [
        fetch(engine, service, environment, console, offline=offline, verify=verify)
        for service in services
        if from_hub(service)
    ]


def fetch(
    engine: Engine, service: Service, environment: Mapping[str, str], console: Console, *, offline: bool, verify: bool
) -> Fetched:
    """Fetch one service's model.

    Raises:
        FetchFailed: it cannot be fetched.
    """
    arguments = [service.model, "--revision", service.revision or "main"]
    arguments += ["--offline"] if offline else [] if verify else ["--if-missing"]
    token = None if offline else hub_token(environment)
    hidden = {*TOKEN_VARIABLES, *OFFLINE_VARIABLES}
    log = engine.log(f"fetch-{service.name}")
    log.parent.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with log.open("w+") as said:  # the hub client's own messages
        last = follow(
            subprocess.Popen(
                engine.fetch_command(service, arguments),
                env={name: value for name, value in environment.items() if name not in hidden},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            ),
            token,
            Display(f"{service.name}: {service.model}", console),
            engine,
        )
        said.seek(0)
        lines = said.read().split()
    if last["event"] == "done":
        return Fetched(service.name, service.model, last["bytes"], last["fetched"], time.monotonic() - begun)
    if last["event"] != "failed":
        last = {"kind": "other", "message": " ".join(lines[-60:]) or "the download ended without a word"}
    raise FetchFailed(f"{service.name}: {explain(service, last, environment, token)}")


def follow(child: subprocess.Popen[str], token: str | None, display: Display, engine: Engine) -> Event:
    """Give a download its token, show its events, return the last one. An interrupt ends it and keeps its files."""
    assert child.stdin
    assert child.stdout
    last: Event = {"event": "none"}
    try:
        with display:
            child.stdin.write(f"{token or ''}\n")
            child.stdin.close()
            for line in child.stdout:
                if line.startswith("{"):
                    last = json.loads(line)
                    display.show(last)
        child.wait()
    except BrokenPipeError:  # it ended before it read; the log has its last words
        child.wait()
    except BaseException:
        child.terminate()
        child.wait()
        engine.stop_fetching()
        raise
    return last


def explain(service: Service, failed: Event, environment: Mapping[str, str], token: str | None) -> Finding:
    """Why a model cannot be fetched; in the doctor's words for a refusal of the hub."""
    what, message = f"{service.model}@{(service.revision or 'main')[:12]}", str(failed["message"])
    wrong, elsewhere = partial(error, "model"), "or set HF_HOME to another folder"
    match failed["kind"]:
        case "refused":
            told = hub.judge(what, service.model, failed["status"], failed["code"], token)
            remedy = told.remedy or "try again later: the hub's status page may say more"
            return wrong(told.found, told.required or "an answer of the hub", remedy)
        case "unreachable":
            found = f"{what}: {hub.address(environment)} cannot be reached, or the connection broke: {message}"
            remedy = "check the network and the proxy, or set HF_ENDPOINT to a mirror; the same command resumes it"
            return wrong(found, "a connection to the hub", remedy)
        case "absent":
            found = f"{message}, and STACK_OFFLINE or HF_HUB_OFFLINE forbids the network"
            remedy = "`make fetch` where there is a network, or correct the model's name and `revision:`"
            return wrong(found, "a model on this host", remedy)
        case "name":
            return wrong(message, "owner/name", "correct `model:`")
        case "damaged":
            required, remedy = "files with the hub's hashes", "look for a proxy that changes content"
        case "disk":
            required, remedy = "room for the model", f"free some space there, {elsewhere}"
        case "cache":
            required, remedy = "a cache that can be written", f"correct its owner, {elsewhere}"
        case _:
            required, remedy = "a model that can be fetched", "`make doctor` checks this host"
    return wrong(f"{what}: {message}", required, remedy)
