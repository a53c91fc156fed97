"""The engine for hosts without containers: starts the services as child processes, watches and stops them.

It starts what the compose file starts, nothing else. A service outlives the command that started it: it runs in a
session of its own, its output goes to a log file, and a state file says which process it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import psutil

from scripts import environments
from scripts.environments import ROOT
from scripts.settings import StackError
from scripts.stack import api_key
from scripts.stack.services import Service, Stack, cache_root, without_secrets
from scripts.vllm import compile_cache
from scripts.vllm.checker import Place, in_environment
from scripts.vllm.compile_cache import Kept


@dataclass(frozen=True, slots=True)
class Started:
    """A process that was started for a service, known again by its id and birth: ids come round."""

    pid: int
    born: float
    fingerprint: str


class ProcessEngine:
    """Starts and stops services as processes; knows them by the files in `state`."""

    name = "process"

    def __init__(self, state: Path, device: str = "cpu") -> None:
        """Processes on this device; nothing is started yet."""
        self.device = device
        self.caches = cache_root(state)
        self.processes = state / "processes"
        self.logs = state / "logs"
        self.children: dict[str, subprocess.Popen[bytes]] = {}

    def log(self, name: str) -> Path:
        """Where a service's output goes."""
        return self.logs / f"{name}.log"

    def was_started(self, name: str) -> bool:
        """Whether the service was started and not stopped since, running or not."""
        return self.started(name) is not None

    def started(self, name: str) -> Started | None:
        """What was last started for a service and not stopped since, running or not."""
        try:
            return Started(**json.loads((self.processes / f"{name}.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

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

    def claim(self) -> None:
        """Nothing: processes are known by this stack's own state alone."""

    def prepare(self, services: list[Service]) -> None:
        """Make the services' environments.

        Raises:
            StackError: one cannot be made.
        """
        try:
            for name in dict.fromkeys(service.environment for service in services):
                environments.prepare(name)
        except environments.EnvironmentFailed as failure:
            raise StackError(str(failure)) from failure

    def prepared(self, services: list[Service]) -> list[str]:
        """The environments that are there and current."""
        names = dict.fromkeys(service.environment for service in services)
        return [f"environment {name}" for name in names if environments.is_current(name)]

    def compile_caches(self) -> list[Kept]:
        """What is kept of compiled kernels, by key."""
        return compile_cache.kept(self.caches)

    def prune_compile_caches(self, current: str) -> list[str]:
        """Remove what is kept under other keys; their names."""
        return compile_cache.prune(self.caches, current)

    def preflight_place(self) -> Place:
        """vLLM's environment."""
        return in_environment(environments.python(f"vllm-{self.device}"))

    def fetch_command(self, service: Service, arguments: list[str]) -> list[str]:
        """How to run scripts/models/hub_download.py: in the service's environment, which has the hub's client."""
        return [
            str(environments.python(service.environment)),
            "-P",
            str(ROOT / "scripts" / "models" / "hub_download.py"),
            *arguments,
        ]

    def stop_fetching(self) -> None:
        """Nothing: a download is a child of the command that wants it."""

    def is_running(self, name: str) -> bool:
        """Whether the service's process lives."""
        return self.running(name) is not None

    def unhealthy(self, name: str) -> str | None:
        """None: nobody checks a process but who waits for it."""

    def is_current(self, service: Service) -> bool:
        """Whether the service runs with the settings as they are now."""
        known = self.started(service.name)
        return known is not None and known.fingerprint == service.fingerprint and self.is_running(service.name)

    def locate(self, service: Service) -> Service:
        """The service as it is: a process listens where its settings say."""
        return service

    def tear_down(self) -> None:
        """Nothing: processes leave nothing behind."""

    def exit_code(self, name: str) -> int | None:
        """The exit code of a service that this engine started and that has ended."""
        child = self.children.get(name)
        return child.poll() if child else None

    def memory_limit_hit(self, name: str) -> int | None:
        """None: a process has the host's memory."""

    def start(self, service: Service) -> None:
        """Start a service; its log begins anew, the one before is kept as `<name>.log.1`.

        Raises:
            StackError: its port is taken, or its program cannot be started.
        """
        refuse_taken_port(service)
        self.processes.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        if root := dict(service.variables).get("VLLM_CACHE_ROOT"):
            with contextlib.suppress(OSError):  # it is vLLM's to complain of its cache
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
                known = Started(child.pid, psutil.Process(child.pid).create_time(), service.fingerprint)
                (self.processes / f"{service.name}.json").write_text(json.dumps(asdict(known)))
        except OSError as error:
            raise StackError(f"{service.name}: {service.command[0]} cannot be started: {error.strerror}") from error

    def stop(self, name: str, grace_s: float) -> bool:
        """Stop a service and whatever it started; whether there was anything to stop.

        Its main process gets SIGTERM and `grace_s` seconds to finish its requests; what is left then is killed.
        """
        known = self.started(name)
        if known is None:
            return False
        family = session_members(known)
        if main := self.running(name):
            main.send_signal(signal.SIGTERM)
            psutil.wait_procs([main], timeout=grace_s)
        for process in [process for process in {*family, *session_members(known)} if process.is_running()]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=5)
        if child := self.children.pop(name, None):
            child.wait(timeout=5)
        (self.processes / f"{name}.json").unlink(missing_ok=True)
        return bool(family)

    def last_lines(self, name: str, count: int = 20, *, earlier: bool = False) -> str:
        """The end of a service's log; that of an earlier start was put aside, and nobody restarts a process."""
        try:
            return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-count:])
        except OSError:
            return ""

    def show_logs(self, names: list[str], follow: bool) -> NoReturn:
        """Become `tail`, on the services' logs."""
        present = [str(self.log(name)) for name in names if self.log(name).exists()]
        if not present:
            raise StackError("no logs yet: start the stack with 'make up'")
        os.execvp("tail", ["tail", "-n", "100", *(["-F"] if follow else []), *present])

    def describe(self, name: str) -> tuple[str, float | None]:
        """A service's process id, and for how many seconds it runs."""
        process = self.running(name)
        return (str(process.pid), uptime(process)) if process else ("", None)

    def open_shell(self, service: Service) -> NoReturn:
        """Become a shell that finds the service's environment first, with the service's variables."""
        shell = os.environ.get("SHELL", "/bin/sh")
        path = f"{environments.folder(service.environment) / 'bin'}:{os.environ.get('PATH', '')}"
        os.execve(shell, [shell], {**environment_of(service), "PATH": path})

    def check_job(self, stack: Stack, options: list[str]) -> None:
        """Nothing: a process has what this host has."""

    def run_job(self, stack: Stack, options: list[str]) -> NoReturn:
        """Become the job, as a process."""
        python = str(environments.python("operator"))
        key = {api_key.JOB_VARIABLE: api_key.ensure(stack.key_file)} if stack.key_file else {}
        os.execve(python, [python, "-m", "pipeline", *options], {**os.environ, **stack.job_variables, **key})


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block has ended: no later command would know a process that was not written down."""
    if threading.current_thread() is not threading.main_thread():  # signals come to the main thread
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
    """The variables that a service's process has: the key is among them, if it asks for one, and nowhere else."""
    key = {api_key.SERVER_VARIABLE: api_key.ensure(service.key_file)} if service.key_file else {}
    # An empty variable counts as not set; vLLM would fail to read a number from one.
    inherited = {
        name: value for name, value in without_secrets(os.environ).items() if value or not name.startswith("VLLM_")
    }
    return {**inherited, **dict(service.variables), **key}


def session_members(known: Started) -> list[psutil.Process]:
    """The living processes of a service's session: also those whose parent was killed."""
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
    """See that a service can listen where it should.

    Raises:
        StackError: something else does; names it where the system tells.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((service.ready_url.split("/")[2].rpartition(":")[0], service.port))
        except OSError as error:
            raise StackError(
                f"{service.name}: port {service.port} cannot be used ({error.strerror}{owner_of(service.port)}): "
                f"end that program, or set {service.port_variable} to a free port"
            ) from error


def owner_of(port: int) -> str:
    """Who listens on a port, as far as the system tells."""
    try:
        pids = [
            c.pid for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port and c.status == "LISTEN"
        ]
        return next((f", by {psutil.Process(pid).name()}, process {pid}" for pid in pids if pid), "")
    except psutil.Error:
        return ""


def uptime(process: psutil.Process) -> float:
    """Seconds since a process was started."""
    return max(time.time() - process.create_time(), 0.0)
