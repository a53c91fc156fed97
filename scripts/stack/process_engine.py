"""The engine for hosts without containers: starts the services as child processes, watches and stops them.

It starts the same services as compose.yaml. A service outlives the command that started it: it runs in a session of its
own, its output goes to a log file, and a record says which process it is.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import psutil

from pipeline.settings import Settings
from scripts import environments
from scripts.environments import ROOT
from scripts.models.model_files import hub_cache
from scripts.services import KINDS
from scripts.settings import (
    BuildFailed,
    InvalidStackSetting,
    JobCommand,
    NotRunning,
    PortTaken,
    ServiceDied,
    StackSettings,
)
from scripts.stack import api_key
from scripts.stack.engine import Engine
from scripts.stack.hosts import refuse_host
from scripts.stack.service import Service, without_secrets
from scripts.stack.services import Stack
from scripts.stack.vllm_server import cache_root
from scripts.vllm import compile_cache
from scripts.vllm.checker import Place, in_environment
from scripts.vllm.compile_cache import Kept


@dataclass(frozen=True, slots=True)
class Started:
    """A process that was started for a service; its time of birth tells it from a later one with the same id."""

    pid: int
    born: float
    fingerprint: str


class ProcessEngine(Engine):
    """Starts and stops services as processes."""

    name = "process"

    def __init__(self, settings: StackSettings, device: str = "cpu") -> None:
        super().__init__(settings, device, settings.state / "processes")
        self.children: dict[str, subprocess.Popen[bytes]] = {}

    def started(self, name: str) -> Started | None:
        return self.record(name, Started)

    def running(self, name: str) -> psutil.Process | None:
        """A service's process, if it lives."""
        known = self.started(name)
        child = self.children.get(name)
        if known is None or (child is not None and child.poll() is not None):
            return None
        try:
            process = psutil.Process(known.pid)
            lives = process.create_time() == known.born and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if lives else None

    def is_running(self, name: str) -> bool:
        return self.running(name) is not None

    def is_current(self, service: Service) -> bool:
        known = self.started(service.name)
        return known is not None and known.fingerprint == service.fingerprint and self.is_running(service.name)

    def describe(self, name: str) -> tuple[str, float | None]:
        process = self.running(name)
        return (str(process.pid), max(time.time() - process.create_time(), 0.0)) if process else ("", None)

    def prepare(self, services: Sequence[Service]) -> None:
        try:
            for name in dict.fromkeys(service.environment for service in services):
                refuse_host(name)
                environments.prepare(name)
        except environments.EnvironmentFailed as failure:
            raise BuildFailed(str(failure)) from failure

    def prepared(self, services: Sequence[Service]) -> list[str]:
        names = dict.fromkeys(service.environment for service in services)
        return [f"environment {name}" for name in names if environments.is_current(name)]

    def compile_caches(self) -> list[Kept]:
        return compile_cache.kept(cache_root(self.settings))

    def remove_compile_caches(self, names: Sequence[str]) -> None:
        compile_cache.remove(cache_root(self.settings), names)

    def preflight_place(self) -> Place:
        return in_environment(environments.python(KINDS["vllm"].image(self.device).name))

    def fetch_command(self, service: Service, arguments: list[str]) -> list[str]:
        program = str(ROOT / "scripts" / "models" / "hub_download.py")
        return [str(environments.python(service.environment)), "-P", program, *arguments]

    def in_models(self, script: str) -> list[str]:
        cache = shlex.quote(str(hub_cache(self.settings.environment)))
        return ["sh", "-c", f"mkdir -p {cache} && cd {cache} && {script}"]

    def exit_code(self, name: str) -> int | None:
        child = self.children.get(name)
        return child.poll() if child else None

    def start(self, service: Service) -> None:
        """Start a service; its log begins anew, and the log before is kept as `<name>.log.1`.

        Raises:
            PortTaken, ServiceDied: its port is taken, or its program cannot be started.
        """
        refuse_taken_port(service)
        self.logs.mkdir(parents=True, exist_ok=True)
        if root := dict(service.variables).get("VLLM_CACHE_ROOT"):
            with contextlib.suppress(OSError):  # vLLM itself complains of its cache
                compile_cache.seed(Path(root).expanduser())
        log = self.log(service.name)
        if log.exists():
            log.replace(log.with_suffix(".log.1"))
        try:
            with log.open("wb") as output, uninterrupted():
                child = subprocess.Popen(
                    service.command,
                    cwd=ROOT,
                    env=environment_of(service),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                self.children[service.name] = child
                born = psutil.Process(child.pid).create_time()
                self.write_record(service.name, Started(child.pid, born, service.fingerprint))
        except OSError as error:
            raise ServiceDied(f"{service.name}: {service.command[0]} cannot be started: {error.strerror}") from error

    def stop(self, name: str, grace_s: float) -> bool:
        """Stop a service and all that it started; whether there was anything to stop.

        Its main process gets SIGTERM and `grace_s` seconds to finish its requests; then the rest is killed.
        """
        known = self.started(name)
        if known is None:
            return False
        family = session_members(known)
        if main := self.running(name):
            main.send_signal(signal.SIGTERM)
            psutil.wait_procs([main], timeout=grace_s)
        for process in [process for process in {*family, *session_members(known)} if process.is_running()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=5)
        if child := self.children.pop(name, None):
            child.wait(timeout=5)
        self.remove_record(name)
        return bool(family)

    def show_logs(self, names: Sequence[str], follow: bool) -> NoReturn:
        present = [str(self.log(name)) for name in names if self.log(name).exists()]
        if not present:
            raise NotRunning("no logs yet: start the stack with `make up`")
        os.execvp("tail", ["tail", "-n", "100", *(["-F"] if follow else []), *present])

    def open_shell(self, stack: Stack, name: str) -> NoReturn:
        """Become a shell with the service's variables, and its environment first in PATH."""
        service = next(each for each in stack.services if each.name == name)
        shell = os.environ.get("SHELL", "/bin/sh")
        path = f"{environments.folder(service.environment) / 'bin'}:{os.environ.get('PATH', '')}"
        os.execve(shell, [shell], {**environment_of(service), "PATH": path})

    def check_job(self, stack: Stack, job: JobCommand) -> None:
        if job.settings.runner == "ray" and self.settings.ray_workers > 1:
            raise InvalidStackSetting(
                f"STACK_RAY_WORKERS={self.settings.ray_workers}: as processes a cluster of this host has one worker, "
                "which uses all cores: set STACK_ENGINE=compose, or RAY_ADDRESS for a cluster of several hosts"
            )

    def run_job(self, stack: Stack, job: JobCommand) -> NoReturn:
        name = job_environment(job.settings)
        try:
            environments.prepare(name)
        except environments.EnvironmentFailed as failure:
            raise BuildFailed(str(failure)) from failure
        python = str(environments.python(name))
        key = {api_key.JOB_VARIABLE: api_key.ensure(stack.key_file)} if stack.key_file else {}
        os.execve(python, [python, "-m", "pipeline", *job.options], {**os.environ, **stack.job_variables, **key})


def job_environment(settings: Settings) -> str:
    """The environment that a job runs in: the commands' own, which is there, or one that has more."""
    if settings.runner == "ray":
        return "ray"
    return "video" if settings.every is not None else "operator"


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block has ended: no later command could find a process without a record."""
    if threading.current_thread() is not threading.main_thread():  # it alone gets signals
        yield
        return
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        raise KeyboardInterrupt


def environment_of(service: Service) -> dict[str, str]:
    """The variables of a service's process; the only place for its key, if it asks for one."""
    key = {api_key.SERVER_VARIABLE: api_key.ensure(service.key_file)} if service.key_file else {}
    # vLLM fails to read a number from an empty variable, which counts as not set here.
    inherited = {
        name: value for name, value in without_secrets(os.environ).items() if value or not name.startswith("VLLM_")
    }
    return {**inherited, **dict(service.variables), **key}


def session_members(known: Started) -> list[psutil.Process]:
    """The living processes of a service's session, also where the parent was killed."""
    members = []
    for process in psutil.process_iter():
        try:
            in_session = os.getsid(process.pid) == known.pid
            if in_session and process.create_time() >= known.born and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue
    return members


def refuse_taken_port(service: Service) -> None:
    """Raise PortTaken where a service's port is not free."""
    if taken := why_taken(service.ready_url.split("/")[2].rpartition(":")[0], service.port):
        raise PortTaken(
            f"{service.name}: port {service.port} cannot be used ({taken}): end that program, or set "
            f"{service.port_variable} to a free port"
        )


def why_taken(host: str, port: int) -> str | None:
    """Why nothing new can listen on a port, with the program that does, if the system tells; None where it can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return f"{error.strerror}{owner_of(port)}"
    return None


def owner_of(port: int) -> str:
    """The program that listens on a port, for a message; empty where the system does not tell."""
    try:
        pids = [
            c.pid for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port and c.status == "LISTEN"
        ]
        return next((f", by {psutil.Process(pid).name()}, process {pid}" for pid in pids if pid), "")
    except psutil.Error:
        return ""
