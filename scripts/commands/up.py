"""`up`: bring the stack up, and wait until it answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from functools import partial

from python_on_whales import DockerException
from rich.console import Console
from rich.filesize import decimal

from pipeline.settings import PREFIX
from scripts.checks.doctor import caches, disk, hub
from scripts.checks.doctor.context import Context
from scripts.checks.preflight import command as preflight
from scripts.commands import fetch
from scripts.commands.engines import engines_in_use, one_at_a_time, plan, stop, surplus
from scripts.commands.fetch import Fetched
from scripts.docker.client import explain
from scripts.findings import refuse
from scripts.services import kind_name, kind_of
from scripts.settings import JobCommand, OtherStack, StackError, StackSettings, load_job
from scripts.stack import api_key
from scripts.stack.engine import Engine
from scripts.stack.service import Service
from scripts.stack.services import Stack, idle, without
from scripts.stack.start_history import StartHistory
from scripts.stack.warmup import first_request, is_ready, wait


def run(settings: StackSettings, console: Console) -> None:
    """Start what is not running, and say how to go on."""
    stack, engine = up(settings, console, load_job())
    console.print(f"the stack is up (engine {engine.name}, {stack.device}, preset {stack.preset}); next: make run")


def up(settings: StackSettings, console: Console, job: JobCommand, *, runs_job: bool = False) -> tuple[Stack, Engine]:
    """Start what is not running, and return when every service answers. Does nothing where all is up.

    A service that the job never asks is not started; it stays if it runs. The others must be able to do
    `job`; with `runs_job` its folders and images are checked as well. A failure or an interrupt (Ctrl-C) stops what
    this call started.

    Raises:
        StackError: a service cannot start, or died; its log's last lines were shown.
        UsageError: the job has invalid settings.
    """
    settings = settings.for_job(job.settings)
    with one_at_a_time(settings, console):
        if not settings.user_variables(f"{PREFIX}MODEL_URL"):
            api_key.settle(settings)
        whole, engine, why = plan(settings)
        unused = idle(job.settings)
        stack = without(whole, unused)
        for other in engines_in_use(settings):
            if other.name != engine.name:
                raise OtherStack(f"the stack has services on the {other.name} engine: `make down` stops them")
        on_ray = job.settings.runner == "ray"
        if runs_job or on_ray:
            engine.check_job(stack, job)
        for name in stop(engine, {name: kind_of(name).stop_grace_s for name in surplus(engine, whole)}):
            console.print(f"{name}: stopped, since the settings name fewer servers")
        missing = [service for service in stack.services if not engine.is_current(service)]
        if not missing and all(is_ready(engine.locate(service)) for service in stack.services):
            if on_ray:
                engine.start_cluster(stack, job, console)
            return stack, engine
        console.print(why)
        for service in whole.services:
            if service.name in unused and not engine.is_running(service.name):
                console.print(f"{service.name}: not started, since job {job.settings.job} does not need it")
        engine.claim()
        here = settings.model_copy(update={"engine": engine.name, "device": stack.device})
        caches.require(Context(here))
        if missing:
            preflight.require(settings, console, in_containers=engine.name == "compose")
        obtain(here, engine, stack, missing, console)
        start(engine, stack, missing, console, job)
        if on_ray:
            engine.start_cluster(stack, job, console)
    return stack, engine


def start(engine: Engine, stack: Stack, missing: Sequence[Service], console: Console, job: JobCommand) -> None:
    """Start services in order and wait for all; what fails, takes down what was begun.

    Raises:
        StackError: a service cannot start, or died.
    """
    settings, ask = engine.settings, partial(first_request, job=job.settings)
    begun: list[Service] = []
    try:
        for service in missing:
            how = "was running with other settings" if engine.is_running(service.name) else "has ended"
            if engine.stop(service.name, service.stop_grace_s):
                console.print(f"{service.name}: {how}, starts anew")
        staged = stages(stack, missing, warm_caches(engine, missing))
        for together in staged:
            for service in together:
                begun.append(service)
                engine.start(service)
            services = [engine.locate(each) for each in (stack.services if together is staged[-1] else together)]
            wait(engine, services, settings.start_timeout_s, console, state=settings.state, ask=ask)
    except BaseException as error:
        if isinstance(error, StackError):
            error.tell()  # now: to stop what was begun takes seconds
        take_back(engine, begun, console)
        raise


def stages(stack: Stack, missing: Sequence[Service], warm: Collection[str]) -> list[list[Service]]:
    """The services that start together, in order.

    On a GPU, vLLM measures the free memory: the detector must have its share before. Of the servers that share a cold
    compile cache, the first starts alone and fills it. Two at once would compile the same twice, and in containers,
    where both have the same process ids, write the same temporary file: vLLM names it by process id (0.32).
    """
    found: list[list[Service]] = [[], [], []]
    filling = set[str]()
    for service in missing:
        if service.cache in filling:
            found[2].append(service)
        else:
            found[stack.device == "cuda" and service.kind == "vllm"].append(service)
            filling |= {service.cache} - {"", *warm}
    return [together for together in found if together] or [[]]


def warm_caches(engine: Engine, services: Sequence[Service]) -> set[str]:
    """The compile caches of services that a start of one of them has filled; looks only at those that are shared."""
    shared = Counter(service.cache for service in services if service.cache)
    if max(shared.values(), default=0) < 2:
        return set()
    ready = StartHistory(engine.settings.state).fingerprints(engine.name)
    filled = {service.cache for service in services if service.fingerprint in ready}
    return filled & {each.name for each in engine.compile_caches()}


def take_back(engine: Engine, begun: Sequence[Service], console: Console) -> None:
    """Stop what a failed start began; a failure to do so is shown, and does not hide the start's own error."""
    try:
        stop(engine, dict.fromkeys((service.name for service in begun), 5.0))
        if not any(map(engine.is_running, engine.names())):
            engine.tear_down()
    except (StackError, DockerException, OSError) as error:
        told = explain(error) if isinstance(error, DockerException) else str(error)
        console.print(f"not all of it could be taken down: {told}", markup=False, soft_wrap=True)


def obtain(
    settings: StackSettings, engine: Engine, stack: Stack, services: Sequence[Service], console: Console
) -> None:
    """Make or get what services need before they start: environments or images, models. Say what was there already."""
    reused = engine.prepared(services)
    if len(reused) < len({service.environment for service in services}):
        refuse_in_vain(Context(settings))
    prepare(engine, services)
    models = fetch.ensure(engine, list(services), console, offline=settings.offline)
    for model in models:
        if model.came:
            console.print(f"{model.service}: {model}")
    check_fetched(settings, engine, models, console)
    caches_of = {service.cache for service in services}
    reused += [str(model) for model in models if not model.came]
    reused += [f"compile cache {decimal(each.size)}" for each in engine.compile_caches() if each.name in caches_of]
    reused += [f"running: {service.name}" for service in stack.services if service not in services]
    if reused:
        console.print(f"reused: {', '.join(reused)}", soft_wrap=True)


def refuse_in_vain(context: Context) -> None:
    """Check, before images or environments take minutes, that there is room for all and the models can be had.

    Raises:
        ChecksFailed: there is not, or they cannot.
    """
    refuse([*disk.check(context), *hub.check(context)], "nothing was made, because the stack could not start:")


def prepare(engine: Engine, services: Sequence[Service]) -> None:
    """Make the environments or images of services.

    Raises:
        StackError: one cannot be made.
    """
    try:
        engine.prepare(services)
    except StackError as error:
        if not engine.settings.offline or "STACK_OFFLINE" in str(error):
            raise
        raise type(error)(f"{error}; STACK_OFFLINE forbids the network: do this step where there is one") from error


def check_fetched(settings: StackSettings, engine: Engine, models: Sequence[Fetched], console: Console) -> None:
    """Check the model server's files against the job, once they are there."""
    model = next((each for each in models if kind_name(each.service) == "vllm"), None)
    if model is None:
        return
    if engine.name == "compose":  # its files are in a volume, where only a container looks
        preflight.require_full(settings, console, engine.preflight_place(), settings.state / "containers")
    elif model.came:
        preflight.require(settings, console)
