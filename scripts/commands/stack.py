"""Bring the stack up, wait until it can answer, show it, take it down."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Thread
from typing import NoReturn

from python_on_whales import DockerException
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from pipeline import settings as job_settings
from scripts.checks.doctor import caches, disk, hub
from scripts.checks.doctor.context import Context
from scripts.checks.preflight import command as preflight
from scripts.commands import fetch
from scripts.commands.fetch import Fetched
from scripts.docker import engine as compose_engine
from scripts.docker import host as docker_host
from scripts.docker import images
from scripts.docker.client import explain
from scripts.docker.engine import ComposeEngine
from scripts.docker.project import other_checkout, project_name
from scripts.environments import ROOT
from scripts.findings import errors
from scripts.settings import StackError, StackSettings, user_variables
from scripts.stack import api_key
from scripts.stack.devices import choose, find_gpus
from scripts.stack.engine import Engine
from scripts.stack.process_engine import ProcessEngine
from scripts.stack.services import STOP_GRACE_S, Service, Stack, cache_key, make_stack
from scripts.stack.warmup import is_ready, wait
from scripts.vllm.checker import Place

# The job's settings that decide what the stack has to be.
ADOPTED = ("job", "model", "model_url", "detector_url")


def plan(settings: StackSettings) -> tuple[Stack, Engine, str]:
    """The stack that this host gets, the engine that runs it, and why.

    Raises:
        StackError: the settings cannot be met here.
    """
    gpus = find_gpus(settings.gpu) if settings.device != "cpu" else []
    device, preset, why = choose(settings, gpus)
    stack = make_stack(settings, device, preset, user_variables("SPOTTER_"))
    engine, why_engine = choose_engine(settings, device, preset)
    return stack, engine, f"engine {engine.name} ({why_engine}), device {device} ({why}), preset {stack.preset}"


def choose_engine(settings: StackSettings, device: str, preset: str) -> tuple[Engine, str]:
    """The engine for a device and preset, and the reason for it.

    Raises:
        StackError: containers were asked for, and Docker or Compose does not answer.
    """
    process = ProcessEngine(settings.state, device)
    if settings.engine == "process":
        return process, "STACK_ENGINE=process"
    if settings.engine == "compose":
        docker_host.client_config()
        return ComposeEngine(settings, device, preset), "STACK_ENGINE=compose"
    if any(process.is_running(name) for name in STOP_GRACE_S):
        return process, "services run as processes already"
    if reason := compose_engine.why_not(device, offline=settings.offline):
        return process, reason
    return ComposeEngine(settings, device, preset), "Docker answers"


def engines_in_use(settings: StackSettings, leftovers: bool = False) -> list[Engine]:
    """The engines that have services of this stack, running or not, or, with `leftovers`, anything of it."""
    used: list[Engine] = []
    process = ProcessEngine(settings.state)
    if any(process.was_started(name) for name in STOP_GRACE_S):
        used.append(process)
    containers = any((settings.state / "containers" / f"{name}.json").is_file() for name in STOP_GRACE_S)
    if (containers or leftovers) and docker_host.answers():
        used.append(ComposeEngine(settings, "cpu", "cpu"))  # to find and stop containers, one device is as good as any
    return used


@contextlib.contextmanager
def one_at_a_time(settings: StackSettings, console: Console) -> Iterator[None]:
    """Let one command at a time change the stack; the lock dies with its process."""
    settings.state.mkdir(parents=True, exist_ok=True)
    with (settings.state / "stack.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print("another command is changing the stack: waiting until it has ended", highlight=False)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def up(settings: StackSettings, console: Console, job: list[str] | None = None) -> tuple[Stack, Engine]:
    """Start what is not running, and return when every service answers. Does nothing where all is up.

    A failure or an interrupt (Ctrl-C) stops what this call started. `job`: the options of a job that is to run then.

    Raises:
        StackError: a service cannot start, or died; its log's last lines were shown.
        UsageError: the job's settings cannot be.
    """
    with one_at_a_time(settings, console):
        if not user_variables("SPOTTER_MODEL_URL"):
            api_key.settle(settings.state)
        stack, engine, why = plan(settings)
        for other in engines_in_use(settings):
            if other.name != engine.name:
                raise StackError(f"the stack has services on the {other.name} engine: 'make down' stops them")
        if job is not None:
            engine.check_job(stack, job)
        missing = [service for service in stack.services if not engine.is_current(service)]
        if not missing and all(is_ready(engine.locate(service)) for service in stack.services):
            return stack, engine
        console.print(why, highlight=False)
        engine.claim()
        caches.require(Context(settings.model_copy(update={"engine": engine.name, "device": stack.device})))
        if any(service.name == "vllm" for service in missing):
            preflight.require(settings, console, in_containers=engine.name == "compose")
        begun: list[Service] = []
        try:
            obtain(settings, engine, stack, missing, console)
            for service in missing:
                if engine.stop(service.name, service.stop_grace_s):
                    console.print(f"{service.name}: was running with other settings, starts anew", highlight=False)
                begun.append(service)
                engine.start(service)
                if stack.device == "cuda":  # vLLM measures the GPU's free memory: the detector must have its share
                    wait(engine, [engine.locate(service)], settings.start_timeout_s, console, state=settings.state)
            wait(
                engine,
                [engine.locate(service) for service in stack.services],
                settings.start_timeout_s,
                console,
                state=settings.state,
            )
        except BaseException as error:
            if isinstance(error, StackError):
                error.tell()  # now: what was begun takes seconds to stop
            take_back(engine, begun, stack, console)
            raise
    return stack, engine


def take_back(engine: Engine, begun: list[Service], stack: Stack, console: Console) -> None:
    """Stop what a failed start began; what keeps that from going well is shown, and the failure's own cause stays."""
    try:
        stop(engine, dict.fromkeys((service.name for service in begun), 5.0))
        if not any(engine.is_running(service.name) for service in stack.services):
            engine.tear_down()
    except (StackError, DockerException, OSError) as error:
        told = explain(error) if isinstance(error, DockerException) else str(error)
        console.print(f"not all of it could be taken down: {told}", highlight=False, markup=False, soft_wrap=True)


def stop(engine: Engine, grace_s: Mapping[str, float]) -> list[str]:
    """Stop services, side by side: each takes some seconds. `grace_s` is by their names; returns those there were.

    All have been stopped, or have failed to, before an error is raised. Ctrl-C does not wait for them.
    """
    there: dict[str, bool] = {}
    failures: list[Exception] = []

    def stop_one(name: str, seconds: float) -> None:
        try:
            there[name] = engine.stop(name, seconds)
        except Exception as error:
            failures.append(error)

    # Plain threads: a pool of multiprocessing needs room in /dev/shm, and one of concurrent.futures would hold Ctrl-C.
    threads = [Thread(target=stop_one, args=each, daemon=True) for each in grace_s.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [name for name in grace_s if there[name]]


def obtain(settings: StackSettings, engine: Engine, stack: Stack, services: list[Service], console: Console) -> None:
    """Make or get what services need before they start: environments or images, models. Say what was there already.

    Raises:
        StackError: something cannot be had, or the model could not do the job.
    """
    reused = engine.prepared(services)
    if len(reused) < len(services):
        refuse_in_vain(Context(settings.model_copy(update={"engine": engine.name, "device": stack.device})))
    prepare(settings, engine, services)
    models = fetch.ensure(engine, services, console, offline=settings.offline)
    for model in models:
        if model.came:
            console.print(f"{model.service}: {model}", highlight=False)
    check_fetched(settings, engine, models, console)
    key = cache_key(settings, stack.device, stack.preset_file)
    reused += [str(model) for model in models if not model.came]
    reused += [f"compile cache {decimal(each.size)}" for each in engine.compile_caches() if each.name == key]
    reused += [f"running: {service.name}" for service in stack.services if service not in services]
    if reused:
        console.print(f"reused: {', '.join(reused)}", highlight=False, soft_wrap=True)


def refuse_in_vain(context: Context) -> None:
    """See, before minutes go into images or environments, that there is room for all, and that the models can be had.

    Raises:
        StackError: there is not, or they cannot.
    """
    if wrong := errors([*disk.check(context), *hub.check(context)]):
        raise StackError("\n".join(["nothing was made, for the stack could not start:", *(f"  {x}" for x in wrong)]))


def prepare(settings: StackSettings, engine: Engine, services: list[Service]) -> None:
    """Make what the services run in.

    Raises:
        StackError: it cannot be made.
    """
    try:
        engine.prepare(services)
    except StackError as error:
        if not settings.offline or "STACK_OFFLINE" in str(error):
            raise
        raise StackError(f"{error}; STACK_OFFLINE forbids the network: do this step where there is one") from error


def check_fetched(settings: StackSettings, engine: Engine, models: list[Fetched], console: Console) -> None:
    """Hold the model server's files against the job, once they are there.

    Raises:
        StackError: it could not do the job.
    """
    model = next((each for each in models if each.service == "vllm"), None)
    if model is None:
        return
    if engine.name == "compose":  # its files are in a volume, where only a container looks
        preflight.require_full(settings, console, engine.preflight_place(), settings.state / "containers")
    elif model.came:
        preflight.require(settings, console)


def fetch_models(settings: StackSettings, console: Console) -> None:
    """Get the models of this host's stack from the hub, and hold what is there against the hub's hashes.

    Raises:
        StackError: one cannot be had; says why.
    """
    with one_at_a_time(settings, console):
        stack, engine, why = plan(settings)
        console.print(why, highlight=False)
        engine.claim()
        wanted = [service for service in stack.services if fetch.from_hub(service)]
        for service in stack.services:
            if service not in wanted:
                console.print(f"{service.name}: {service.model} is a folder: nothing to fetch", highlight=False)
        prepare(settings, engine, wanted)
        try:
            models = fetch.ensure(engine, wanted, console, offline=settings.offline, verify=True)
        finally:
            if wanted and not any(engine.is_running(service.name) for service in stack.services):
                engine.tear_down()
        for model in models:
            verified = "" if model.came or settings.offline else ", verified"
            console.print(f"{model.service}: {model}{verified}", highlight=False)


def preflight_place(settings: StackSettings) -> Place:
    """Where vLLM's own code is to check this host's preset: where it would serve.

    Raises:
        StackError: the settings cannot be met here.
    """
    _, engine, _ = plan(settings)
    return engine.preflight_place()


def down(settings: StackSettings, console: Console) -> None:
    """Stop every service, however it was started; requests in flight may finish.

    Raises:
        StackError: something cannot be stopped.
    """
    with one_at_a_time(settings, console):
        stopped = []
        for engine in engines_in_use(settings, leftovers=True):
            stopped += stop(engine, STOP_GRACE_S)
            engine.tear_down()
    console.print(f"stopped {', '.join(stopped)}" if stopped else "nothing was running", highlight=False)
    project = project_name(settings.state)
    if not stopped and docker_host.answers() and (other := other_checkout(project)):
        console.print(
            f"the containers of {project} belong to another checkout, {other}: `make down` there stops them",
            highlight=False,
            soft_wrap=True,
        )


def status(settings: StackSettings) -> Table:
    """Each service: state, what it runs as, address, uptime and log."""
    stack, engine, _ = plan(settings)
    table = Table("service", "state", "id", "address", "up for", "log", box=None, pad_edge=False)
    for service in map(engine.locate, stack.services):
        identifier, age_s = engine.describe(service.name)
        if engine.is_running(service.name):
            state = "ready" if is_ready(service) else "starting or not answering"
            if not engine.is_current(service):
                state += " (settings have changed: make up)"
        else:
            state = "ended by itself" if engine.was_started(service.name) else "down"
        age = "" if age_s is None else f"{age_s:.0f} s"
        log = os.path.relpath(engine.log(service.name), ROOT)
        table.add_row(service.name, state, identifier, service.ready_url.rsplit("/", 1)[0], age, log)
    return table


def run(settings: StackSettings, console: Console, options: list[str]) -> NoReturn:
    """Bring the stack up, and become the job on it.

    Raises:
        StackError: the stack cannot come up.
        UsageError: the job's settings cannot be.
    """
    if {"-h", "--help"} & set(options):  # the same words from every engine
        ProcessEngine(settings.state).run_job(Stack("", "", Path(), (), {}), options)
    adopt(options)
    stack, engine = up(settings, console, options)
    engine.run_job(stack, options)


def adopt(options: list[str]) -> None:
    """Let the job's options count for the stack as well, as the variables of the same names do.

    Raises:
        UsageError: they cannot be.
    """
    given, before = job_settings.load(options), job_settings.load([])
    for name in ADOPTED:
        if (value := getattr(given, name)) != getattr(before, name):
            os.environ[job_settings.PREFIX + name.upper()] = str(value)


def logs(settings: StackSettings, names: list[str], follow: bool) -> NoReturn:
    """Show the services' logs.

    Raises:
        StackError: there are none.
    """
    _, engine, _ = plan(settings)
    engine.show_logs(names, follow)


def shell(settings: StackSettings, name: str) -> NoReturn:
    """Open a shell where a service runs.

    Raises:
        StackError: the service does not run, or runs elsewhere.
    """
    stack, engine, _ = plan(settings)
    for service in stack.services:
        if service.name == name:
            engine.open_shell(service)
    raise StackError(f"{name} runs elsewhere: an address is set for it")


def build(settings: StackSettings, console: Console) -> None:
    """Build the images of the device that is set, or of this host's, where they are missing or old.

    Raises:
        StackError: there is no Docker, or one cannot be built, or must not be, without a network.
    """
    docker_host.client_config()
    # Where it is said for which device, a host without a GPU may build for others.
    device = choose(settings, find_gpus(settings.gpu))[0] if settings.device == "auto" else settings.device
    images.ensure(list(images.OF_DEVICE[device]), settings.state / "logs", console, offline=settings.offline)
    for name in images.OF_DEVICE[device]:
        console.print(f"{images.IMAGES[name].tag:<32}{images.size(images.IMAGES[name]):>10}", highlight=False)
