"""The engine for hosts with Docker: runs the services in the containers that the compose files describe.

One command brings up one service, as on the process engine, so that order, waiting and messages are the same. What was
started, and with what settings, is known again by the container's id and a fingerprint in a state file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import sys
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NoReturn

from python_on_whales import DockerException
from rich.console import Console

from pipeline import settings as job_settings
from scripts import files as whole_file
from scripts.docker import gpu as docker_gpu
from scripts.docker import host as docker_host
from scripts.docker import images
from scripts.docker.client import ask, command
from scripts.docker.containers import Containers
from scripts.docker.files import VLLM_CACHE, ComposeFiles, hand_over
from scripts.docker.project import left_over, other_checkout, volumes
from scripts.environments import ROOT
from scripts.settings import StackError, StackSettings, user_variables
from scripts.stack import api_key
from scripts.stack.services import Service, Stack
from scripts.vllm import compile_cache
from scripts.vllm.checker import Place
from scripts.vllm.compile_cache import Kept

if TYPE_CHECKING:  # it loads Daft, as long as most commands take: those that run a job import it themselves
    from scripts.docker import job as job_container

# The volumes of vLLM's caches and of the hub's models, and where vLLM's container has the latter.
CACHE_VOLUME, HUB_VOLUME = "vllm-cache", "hub-cache"
HUB_CACHE = PurePosixPath("/cache/hub")
# And where it has the preset.
PRESET = PurePosixPath("/spotter/preset.yaml")
# Where the image has what vLLM knows of the presets' models.
MODEL_INFOS = PurePosixPath("/spotter/modelinfos")
# What the hub's client needs to know to reach the hub from a container.
WAY_OUT = ("HF_ENDPOINT", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")

# Where the services listen in their containers, and where images/health.py finds them.
PORTS = {"detector": 8001, "vllm": 8000}
READY_PATHS = {"detector": "/", "vllm": "/health"}

# What Docker says where it cannot give a container the GPU: it has no driver, the toolkit's hook fails (no driver's
# library, another version), a description of devices is missing or out of date.
NO_GPU = (
    "could not select device driver|nvidia-container|nvidia-ctk|nvidia-cdi|libnvidia|nvml|nvidia runtime|"
    "unresolvable CDI devices|CDI device injection|/dev/nvidia"
)


@dataclass(frozen=True, slots=True)
class Started:
    """A container that was started for a service, and the settings it has."""

    id: str
    fingerprint: str


def chosen(settings: StackSettings, device: str) -> bool:
    """Whether a stack that is not up yet would run in containers."""
    if settings.engine == "auto":
        return why_not(device, offline=settings.offline) is None
    return settings.engine == "compose"


def why_not(device: str, *, offline: bool = False) -> str | None:
    """Why this host cannot run the stack in containers; None where it can, as far as one can tell beforehand."""
    try:
        docker_host.client_config()
    except StackError as error:
        return str(error).partition(": ")[0]
    if device == "cuda" and docker_gpu.driver() is None:
        return "Docker has no NVIDIA runtime, and no description of a GPU (install nvidia-container-toolkit)"
    if all(images.has(images.IMAGES[name].tag) for name in images.OF_DEVICE[device]):
        return None
    return "the images are not built, and STACK_OFFLINE forbids it" if offline else images.why_not_buildable(device)


class ComposeEngine:
    """Starts and stops services as containers; knows them by the files in `state`."""

    name = "compose"

    def __init__(self, settings: StackSettings, device: str, preset_name: str) -> None:
        """Containers of this device and vLLM preset; nothing is started yet."""
        self.settings = settings
        self.device = device
        self.files = ComposeFiles(settings, device, preset_name)
        self.project = self.files.project
        self.containers = Containers(self.project)
        self.state = settings.state / "containers"
        self.jobs = self.state / "jobs"
        self.logs = settings.state / "logs"

    def image(self, name: str) -> images.Image:
        """The image of a service."""
        detector, vllm, _ = images.OF_DEVICE[self.device]
        return images.IMAGES[{"detector": detector, "vllm": vllm}[name]]

    def fingerprint(self, service: Service) -> str:
        """Changes when the service has to be started anew to be what settings, compose files and image say."""
        parts = [service.fingerprint, self.image(service.name).fingerprint(), *self.files.about(service.name)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def was_started(self, name: str) -> bool:
        """Whether the service was started and not stopped since, running or not."""
        return self.started(name) is not None

    def started(self, name: str) -> Started | None:
        """What was last started for a service and not stopped since, running or not."""
        try:
            return Started(**json.loads((self.state / f"{name}.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def claim(self) -> None:
        """See that no other checkout has containers in this stack's project, which a start here would replace.

        Raises:
            StackError: one has.
        """
        if other := other_checkout(self.project):
            raise StackError(
                f"the containers of {self.project} belong to another checkout, {other}: `make down` there, or set "
                "STACK_STATE to a folder of this one's, such as .spotter/own, for a stack of its own beside that"
            )

    def prepare(self, services: list[Service]) -> None:
        """Build the images that are missing or old.

        Raises:
            StackError: one cannot be built, or must not be, without a network.
        """
        for service in services:
            self.refuse_folder(service)
        self.ensure_images([self.image(service.name) for service in services])

    def ensure_images(self, wanted: list[images.Image]) -> None:
        """Build the images that are missing or old, where that is allowed.

        Raises:
            StackError: one cannot be built, or must not be, for that needs a network.
        """
        names = [image.name for image in wanted]
        images.ensure(names, self.logs, Console(), offline=self.settings.offline)

    def refuse_folder(self, service: Service) -> None:
        """See that a service's model is one that its container can have: of the hub, or in its image.

        Raises:
            StackError: it is a folder of this host.
        """
        inside = self.device == "cpu" and service.model in self.image(service.name).sources
        if not inside and (ROOT / service.model).is_dir():
            raise StackError(
                f"{service.name}: the model {service.model} is a folder of this host, and its container takes models "
                "from the hub: mount it in a compose overlay of yours, or set STACK_ENGINE=process"
            )

    def prepared(self, services: list[Service]) -> list[str]:
        """The images that are there and current."""
        wanted = [self.image(service.name) for service in services]
        return [f"image {image.tag} ({images.size(image)})" for image in wanted if images.is_current(image)]

    def in_cache(self, script: str) -> str | None:
        """What a shell says in the volume of vLLM's caches; None where there is no volume, or no image to look with."""
        volume = f"{self.project}_{CACHE_VOLUME}"
        if volume not in volumes(self.project):
            return None
        cache = f"type=volume,source={volume},target={VLLM_CACHE}"
        shell = ("--entrypoint=/bin/sh", self.image("vllm").tag, "-c", f"cd {VLLM_CACHE} && {script}")
        return ask("run", "--rm", "--network=none", "--mount", cache, *shell)[0]

    def compile_caches(self) -> list[Kept]:
        """What is kept of compiled kernels, by key."""
        rows = [line.split("\t") for line in (self.in_cache("du -sk -- *") or "").splitlines()]
        return [Kept(name, int(kib) * 1024) for kib, name in rows if compile_cache.NAME.fullmatch(name)]

    def prune_compile_caches(self, current: str) -> list[str]:
        """Remove what is kept under other keys; their names."""
        old = [each.name for each in self.compile_caches() if each.name != current]
        if old:
            self.in_cache(f"rm -rf -- {' '.join(map(shlex.quote, old))}")
        return old

    def preflight_place(self) -> Place:
        """A container of vLLM's image: the service `preflight` of compose.yaml."""
        image = self.image("vllm")
        if not images.has(image.tag):
            return Place((), "", f"image {image.tag} is not built yet: `make build` makes it")
        name = f"{self.project}-preflight-{uuid.uuid4().hex[:12]}"
        run = self.files.command("--progress", "quiet", "run", "--rm", "-T", "--name", name, "preflight")
        fingerprint = "\0".join([image.fingerprint(), *self.files.about("vllm")])
        ending = tuple(command("rm", "--force", name))
        return Place(tuple(run), str(PRESET), "", str(MODEL_INFOS), ending, fingerprint)

    def fetch_command(self, service: Service, arguments: list[str]) -> list[str]:
        """How to run models/hub_download.py: in a container that has a way out, and the volume of models to write.

        Raises:
            StackError: its image, the detector's, cannot be had.
        """
        self.ensure_images([self.image("detector")])
        way_out = {name.upper(): value for name, value in os.environ.items() if name.upper() in WAY_OUT}
        given = [
            part
            for name, value in (way_out | user_variables("HF_ENDPOINT")).items()
            for part in ("--env", f"{name}={value}")
        ]
        return self.files.command("run", "--rm", "-T", *given, "fetch", *arguments)

    def stop_fetching(self) -> None:
        """End a download's container that its command has left behind; what it has is kept."""
        labels = (f"project={self.project}", f"project.working_dir={ROOT}", "service=fetch", "oneoff=True")
        filters = [part for label in labels for part in ("--filter", f"label=com.docker.compose.{label}")]
        for identifier in (ask("ps", "--quiet", *filters)[0] or "").split():
            ask("stop", "--time", "2", identifier)

    def is_running(self, name: str) -> bool:
        """Whether the service's container runs, and has not been restarted since this engine first looked."""
        return self.containers.is_running(name)

    def unhealthy(self, name: str) -> str | None:
        """What the container's last health check said, once Docker holds it for unhealthy."""
        return self.containers.unhealthy(name)

    def is_current(self, service: Service) -> bool:
        """Whether the service runs with the settings as they are now."""
        known, container = self.started(service.name), self.containers.find(service.name)
        return (
            known is not None
            and container is not None
            and known == Started(container.id, self.fingerprint(service))
            and self.is_running(service.name)
        )

    def locate(self, service: Service) -> Service:
        """The service with the address under which this host reaches its container; unchanged where none runs."""
        address, port = self.containers.address(service.name, "inside"), PORTS[service.name]
        if address is None:
            return service
        return replace(service, ready_url=f"http://{address}:{port}{READY_PATHS[service.name]}", port=port)

    def start(self, service: Service) -> None:
        """Start a service's container, anew where there is one.

        Raises:
            StackError: Docker cannot start it; says why.
        """
        self.containers.begin(service.name)
        if service.key_file:
            hand_over(api_key.ensure(service.key_file), self.files.key_file)
        client = self.files.client()
        try:
            client.compose.up(
                [service.name], detach=True, no_build=True, force_recreate=True, dependencies=False, quiet=True
            )
            container = client.container.inspect(self.containers.name(service.name))
        except DockerException as error:
            raise cannot_start(service, error.stderr or str(error)) from error
        known = Started(container.id, self.fingerprint(service))
        (self.state / f"{service.name}.json").write_text(json.dumps(asdict(known)))

    def stop(self, name: str, grace_s: float) -> bool:
        """Stop and remove a service's container; its log is kept in a file. Whether there was one."""
        there = self.containers.remove(name, grace_s, self.log(name))
        (self.state / f"{name}.json").unlink(missing_ok=True)
        return there

    def tear_down(self) -> None:
        """Remove what is left beside the services: jobs that were cut off, networks. The caches' volumes stay.

        What another checkout has in the same project stays as well.
        """
        containers, networks = left_over(self.project)
        for identifier in containers:
            ask("stop", identifier)
            ask("rm", "--force", identifier)
        for identifier in networks:
            if ask("network", "rm", identifier)[0] is None:
                raise StackError(f"network {identifier} cannot be removed: `docker network inspect` shows who uses it")
        shutil.rmtree(self.jobs, ignore_errors=True)

    def exit_code(self, name: str) -> int | None:
        """The exit code of a service's container when it last ended; also after a restart."""
        return self.containers.exit_code(name)

    def memory_limit_hit(self, name: str) -> int | None:
        """The limit, in bytes, of a service's container that the system has killed, or a process in it, for it."""
        return self.containers.memory_limit_hit(name)

    def last_lines(self, name: str, count: int = 20, *, earlier: bool = False) -> str:
        """The end of a service's log, since Docker last started it; with `earlier` also of the starts before."""
        said = self.containers.last_lines(name, count, earlier=earlier)
        if said is not None:
            return said
        try:
            return "\n".join(self.log(name).read_text(errors="replace").rstrip().splitlines()[-count:])
        except OSError:
            return ""

    def log(self, name: str) -> Path:
        """Where a service's log is once it has been stopped; `show_logs` has it before."""
        return self.logs / f"{name}.log"

    def show_logs(self, names: list[str], follow: bool) -> NoReturn:
        """Become a program that shows the services' logs."""
        if not any(self.containers.find(name) for name in names):
            stopped = [str(self.log(name)) for name in names if self.log(name).exists()]
            raise StackError(f"nothing is running; the last logs: {', '.join(stopped) or 'none'}")
        become(self.files.command("logs", "--tail", "100", *(["--follow"] if follow else []), *names))

    def describe(self, name: str) -> tuple[str, float | None]:
        """What a service runs as, and for how many seconds."""
        return self.containers.describe(name)

    def open_shell(self, service: Service) -> NoReturn:
        """Become a shell in the service's container."""
        if not self.is_running(service.name):
            raise StackError(f"{service.name} does not run: 'make up' starts it")
        become(self.files.command("exec", service.name, "/bin/sh"))

    def check_job(self, stack: Stack, options: list[str]) -> None:
        """See that the job's container can have what it needs of this host.

        Raises:
            StackError: a service's address leads nowhere from a container.
            UsageError: the job's settings cannot be, or images or runs' folder cannot be reached from a container.
        """
        self.tell_job(stack, job_settings.load(options), options)

    def tell_job(self, stack: Stack, settings: job_settings.Settings, options: list[str]) -> job_container.Told:
        """Make what Compose is told of the job; what it raises is said in `check_job`."""
        from scripts.docker import job as job_container

        variables = user_variables(job_settings.PREFIX)
        if revision := stack.job_variables.get("SPOTTER_MODEL_REVISION"):
            variables["SPOTTER_MODEL_REVISION"] = revision
        return job_container.tell(settings, variables, options, self.state / "secrets")

    def run_job(self, stack: Stack, options: list[str]) -> NoReturn:
        """Run the job, in a container that sees the images and the runs' folder at the same places as this host.

        This process ends with the job's exit code.

        Raises:
            StackError: its image cannot be built, or a service's address leads nowhere from a container.
            UsageError: the job's settings cannot be.
        """
        from scripts.docker import job as job_container

        self.ensure_images([images.IMAGES["pipeline"]])
        settings = job_settings.load(options)
        if stack.key_file:
            key = api_key.ensure(stack.key_file)
        else:  # the model server is elsewhere: what the job tells it is not the key of a server here
            key = settings.api_key.get_secret_value() if settings.api_key else ""
            self.files.key_file = self.files.key_file.with_name("job_api_key")
        hand_over(key, self.files.key_file)
        told = self.tell_job(stack, settings, options)
        name = f"spotter-job-{uuid.uuid4().hex[:12]}"
        overlay = self.jobs / f"{name}.json"  # its own: another job may run
        whole_file.write(overlay, json.dumps(told.overlay).encode(), 0o600)
        try:
            code = job_container.run(
                self.files.command(also=(overlay,)), name, told.arguments, self.settings.pipeline_memory
            )
        finally:
            overlay.unlink(missing_ok=True)
        sys.exit(code)


def cannot_start(service: Service, said: str) -> StackError:
    """The error for a container that Docker does not start."""
    reason = said.rstrip().rpartition("\n")[2]
    if re.search(NO_GPU, said, re.IGNORECASE):
        remedy = (
            "install nvidia-container-toolkit, or its version for this host's driver, and restart Docker; or set "
            "STACK_DEVICE=cpu"
        )
    elif "port is already allocated" in said or "address already in use" in said:
        remedy = f"end the program that listens there, or set {service.port_variable} to a free port"
    else:
        remedy = "the container's settings are in compose.yaml and services/compose"
    return StackError(f"{service.name}: Docker cannot start its container: {reason}: {remedy}")


def become(command: list[str]) -> NoReturn:
    """Replace this process by a command, which so gets the terminal's signals, and whose exit code is ours."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp(command[0], command)
