"""The engine for hosts with Docker: runs the services in the containers that the compose files describe.

Each command to Compose brings up one service, so that order, waiting and messages are those of the process engine.
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
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NoReturn

from python_on_whales import DockerException
from rich.console import Console

from pipeline import settings as job_settings
from scripts import files as whole_file
from scripts.docker import cluster, images
from scripts.docker import gpu as docker_gpu
from scripts.docker import host as docker_host
from scripts.docker.client import PROXIES, ask, command
from scripts.docker.containers import ContainerEngine, Started
from scripts.docker.files import VLLM_CACHE, ComposeFiles, hand_over
from scripts.docker.project import left_over, other_checkout, volumes
from scripts.environments import ROOT
from scripts.services import RAY, Image, kind_of
from scripts.settings import (
    InvalidStackSetting,
    JobCommand,
    NotRemoved,
    NotRunning,
    OtherStack,
    ServiceDied,
    StackSettings,
)
from scripts.stack import api_key
from scripts.stack.service import Service
from scripts.stack.services import Stack, placed
from scripts.vllm import compile_cache
from scripts.vllm.checker import Place
from scripts.vllm.compile_cache import Kept

if TYPE_CHECKING:  # it loads Daft, which takes as long as most commands: those that run a job import it themselves
    from scripts.docker import job as job_container

# The volumes of vLLM's caches and of the hub's models; vLLM's container has the latter, and the preset, here.
CACHE_VOLUME, HUB_VOLUME = "vllm-cache", "hub-cache"
HUB_CACHE = PurePosixPath("/cache/hub")
PRESET = PurePosixPath("/spotter/preset.yaml")
# Where the image has what vLLM knows of the presets' models.
MODEL_INFOS = PurePosixPath("/spotter/modelinfos")
# The variables with which the hub's client reaches the hub from a container.
WAY_OUT = ("HF_ENDPOINT", *PROXIES)

# Docker's words where it cannot give a container the GPU: no driver, a failure of the toolkit's hook (no driver's
# library, another version), a missing or outdated description of devices.
NO_GPU = (
    "could not select device driver|nvidia-container|nvidia-ctk|nvidia-cdi|libnvidia|nvml|nvidia runtime|"
    "unresolvable CDI devices|CDI device injection|/dev/nvidia"
)


def chosen(settings: StackSettings, device: str) -> bool:
    """Whether a stack that is not up yet would run in containers."""
    if settings.engine == "auto":
        return why_not(settings, device) is None
    return settings.engine == "compose"


def why_not(settings: StackSettings, device: str) -> str | None:
    """Why this host cannot run the stack in containers; None where it can, as far as one can tell beforehand."""
    if fault := docker_host.fault():
        return fault.found
    if device == "cuda" and docker_gpu.driver() is None:
        return "Docker has no NVIDIA runtime, and no description of a GPU (install nvidia-container-toolkit)"
    wanted = images.of_stack(settings, device)
    if all(images.has(image.tag) for image in wanted):
        return None
    if settings.offline:
        return "the images are not built, and STACK_OFFLINE forbids it"
    return images.why_not_buildable(wanted)


class ComposeEngine(ContainerEngine):
    """Starts and stops services as containers."""

    name = "compose"

    def __init__(self, settings: StackSettings, device: str, preset_name: str) -> None:
        super().__init__(settings, device)
        self.files = ComposeFiles(settings, device, preset_name)
        self.jobs = self.records / "jobs"

    def image(self, name: str) -> Image:
        """The image of a service."""
        return placed(self.settings, kind_of(name), self.device)[1]

    def images_of(self, services: Sequence[Service]) -> list[Image]:
        """The images of services, each once."""
        return list({image.name: image for service in services for image in [self.image(service.name)]}.values())

    def fingerprint(self, service: Service) -> str:
        """Changes when settings, compose files or image require a new start of the service."""
        parts = [service.fingerprint, images.fingerprint(self.image(service.name)), *self.files.about(service.name)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def is_current(self, service: Service) -> bool:
        known, container = self.started(service.name), self.find(service.name)
        return (
            container is not None
            and known == Started(container.id, self.fingerprint(service))
            and self.is_running(service.name)
        )

    def claim(self) -> None:
        if other := other_checkout(self.project):
            raise OtherStack(
                f"another checkout, {other}, runs the containers of {self.project}: run `make down` there, or set "
                "STACK_STATE to a folder of this checkout, such as .spotter/own, to run a second stack"
            )

    def prepare(self, services: Sequence[Service]) -> None:
        for service in services:
            self.refuse_folder(service)
        self.ensure_images(self.images_of(services))

    def ensure_images(self, wanted: Sequence[Image]) -> None:
        """Build the images that are missing or old."""
        images.ensure(
            wanted,
            self.logs,
            Console(highlight=False, markup=False),
            offline=self.settings.offline,
        )

    def refuse_folder(self, service: Service) -> None:
        """Check that a service's container can have its model: from the hub, or in its image.

        Raises:
            InvalidStackSetting: the model is a folder of this host.
        """
        sources = [Path(source) for source in self.image(service.name).sources]
        model = Path(service.model)
        inside = any(place in sources for place in (model, *model.parents))
        if service.model and not inside and (ROOT / model).exists():
            raise InvalidStackSetting(
                f"{service.name}: the model {service.model} is on this host, and its container takes models "
                "from the hub: mount it in a compose overlay of yours, or set STACK_ENGINE=process"
            )

    def prepared(self, services: Sequence[Service]) -> list[str]:
        wanted = self.images_of(services)
        return [f"image {image.tag} ({images.size(image)})" for image in wanted if images.is_current(image)]

    def in_cache(self, script: str) -> str | None:
        """The output of a shell in the volume of vLLM's caches; None without the volume or an image to look with."""
        volume = f"{self.project}_{CACHE_VOLUME}"
        if volume not in volumes(self.project):
            return None
        cache = f"type=volume,source={volume},target={VLLM_CACHE}"
        shell = ("--entrypoint=/bin/sh", self.image("vllm").tag, "-c", f"cd {VLLM_CACHE} && {script}")
        return ask("run", "--rm", "--network=none", "--mount", cache, *shell)[0]

    def compile_caches(self) -> list[Kept]:
        rows = [line.split("\t") for line in (self.in_cache("du -sk -- *") or "").splitlines()]
        return [Kept(name, int(kib) * 1024) for kib, name in rows if compile_cache.NAME.fullmatch(name)]

    def remove_compile_caches(self, names: Sequence[str]) -> None:
        self.in_cache(f"rm -rf -- {' '.join(map(shlex.quote, names))}")

    def preflight_place(self) -> Place:
        """A container of vLLM's image: the service `preflight` of compose.yaml."""
        image = self.image("vllm")
        if not images.has(image.tag):
            return Place((), "", f"image {image.tag} is not built yet: `make build` makes it")
        name = f"{self.project}-preflight-{uuid.uuid4().hex[:12]}"
        run = self.files.command("--progress", "quiet", "run", "--rm", "-T", "--name", name, "preflight")
        fingerprint = "\0".join([images.fingerprint(image), *self.files.about("vllm")])
        ending = tuple(command("rm", "--force", name))
        return Place(tuple(run), str(PRESET), "", str(MODEL_INFOS), ending, fingerprint)

    def fetch_command(self, service: Service, arguments: list[str]) -> list[str]:
        """The command of a container that has a way out, and the volume of models to write."""
        image = self.image(service.name)
        self.ensure_images([image])
        self.files.fetch_image = image.tag
        way_out = {name.upper(): value for name, value in self.settings.environment.items() if name.upper() in WAY_OUT}
        given = [part for name, value in way_out.items() for part in ("--env", f"{name}={value}")]
        return self.files.command("run", "--rm", "-T", *given, "fetch", *arguments)

    def in_models(self, script: str) -> list[str]:
        self.files.fetch_image = self.image("vllm").tag
        script = f"mkdir -p {HUB_CACHE}/hub && cd {HUB_CACHE}/hub && {script}"
        return self.files.command("run", "--rm", "-T", "--entrypoint", "sh", "fetch", "-c", script)

    def stop_fetching(self) -> None:
        labels = (f"project={self.project}", f"project.working_dir={ROOT}", "service=fetch", "oneoff=True")
        filters = [part for label in labels for part in ("--filter", f"label=com.docker.compose.{label}")]
        for identifier in (ask("ps", "--quiet", *filters)[0] or "").split():
            ask("stop", "--time", "2", identifier)

    def start(self, service: Service) -> None:
        """Start a service's container, anew where there is one.

        Raises:
            ServiceDied: Docker cannot start it; says why.
        """
        self.begin(service.name)
        if service.key_file:
            hand_over(api_key.ensure(service.key_file), self.files.key_file)
        client = self.files.client()
        try:
            client.compose.up(
                [service.name], detach=True, no_build=True, force_recreate=True, dependencies=False, quiet=True
            )
            container = client.container.inspect(self.container_name(service.name))
        except DockerException as error:
            raise cannot_start(service, error.stderr or str(error)) from error
        self.write_record(service.name, Started(container.id, self.fingerprint(service)))

    def tear_down(self) -> None:
        """Remove jobs that were cut off, and networks. Volumes stay, and so does what another checkout has."""
        containers, networks = left_over(self.project)
        for identifier in containers:
            ask("stop", identifier)
            ask("rm", "--force", identifier)
        for identifier in networks:
            if ask("network", "rm", identifier)[0] is None:
                raise NotRemoved(f"network {identifier} cannot be removed: `docker network inspect` shows who uses it")
        shutil.rmtree(self.jobs, ignore_errors=True)

    def show_logs(self, names: Sequence[str], follow: bool) -> NoReturn:
        if not any(self.find(name) for name in names):
            stopped = [str(self.log(name)) for name in names if self.log(name).exists()]
            raise NotRunning(f"nothing is running; the last logs: {', '.join(stopped) or 'none'}")
        become(self._command("logs", "--tail", "100", *(["--follow"] if follow else []), *names))

    def open_shell(self, stack: Stack, name: str) -> NoReturn:
        if not self.is_running(name):
            raise NotRunning(f"{name} does not run: `make up` starts it")
        become(self._command("exec", name, "/bin/sh"))

    def _command(self, *arguments: str) -> list[str]:
        """A command of Compose about services, and nodes of the Ray cluster where it was started."""
        return self.files.command(*arguments, also=(cluster.OVERLAY, self.files.cluster) if self.nodes() else ())

    def check_job(self, stack: Stack, job: JobCommand) -> None:
        if job.settings.runner == "ray" and (address := self.settings.environment.get("RAY_ADDRESS")):
            raise InvalidStackSetting(
                f"RAY_ADDRESS={address}: the job's container joins the cluster of STACK_RAY_WORKERS alone: unset it, "
                "or set STACK_ENGINE=process"
            )
        self.tell_job(stack, job)

    def start_cluster(self, stack: Stack, job: JobCommand, console: Console) -> None:
        wanted = cluster.nodes(self.settings.ray_workers)
        self.ensure_images([RAY])
        for name in set(self.nodes()) - set(wanted):
            self.stop(name, kind_of(name).stop_grace_s)
            console.print(f"{name}: stopped, since STACK_RAY_WORKERS is less")
        before = {name: self.describe(name)[0] for name in wanted}
        for name in wanted:
            self.write_record(name, Started("", ""))  # `down` finds also those of a start that fails
        cluster.up(self.files, self.tell_job(stack, job), len(wanted) - 1, self.settings.start_timeout_s)
        for name in wanted:
            self.forget(name)
        began = [name for name in wanted if self.describe(name)[0] != before[name]]
        if began:
            console.print(f"the Ray cluster is up: started {', '.join(began)}")

    def tell_job(self, stack: Stack, job: JobCommand) -> job_container.Told:
        """Make what Compose is told of the job; raises as `check_job`."""
        from scripts.docker import job as job_container

        variables = self.settings.environment | self.settings.user_variables(job_settings.PREFIX)
        if revision := stack.job_variables.get("SPOTTER_MODEL_REVISION"):
            variables["SPOTTER_MODEL_REVISION"] = revision
        return job_container.tell(job, variables, self.records / "secrets")

    def run_job(self, stack: Stack, job: JobCommand) -> NoReturn:
        """Run the job in a container that sees images and runs' folder under the same paths as this host.

        This process ends with the job's exit code.
        """
        from scripts.docker import job as job_container

        self.ensure_images([images.of_job(self.settings)])
        if stack.key_file:
            key = api_key.ensure(stack.key_file)
        else:  # the model server is elsewhere: its key must not replace that of a server here
            key = job.settings.api_key.get_secret_value() if job.settings.api_key else ""
            self.files.key_file = self.files.key_file.with_name("job_api_key")
        hand_over(key, self.files.key_file)
        told = self.tell_job(stack, job)
        name = f"spotter-job-{uuid.uuid4().hex[:12]}"
        overlay = self.jobs / f"{name}.json"  # its own: another job may run
        whole_file.write(overlay, json.dumps(told.overlay).encode(), 0o600)
        over = (cluster.OVERLAY,) if job.settings.runner == "ray" else ()
        try:
            compose = self.files.command(also=(*over, overlay))
            sys.exit(job_container.run(compose, name, told.arguments, self.settings.pipeline_memory))
        finally:
            overlay.unlink(missing_ok=True)


def cannot_start(service: Service, said: str) -> ServiceDied:
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
    return ServiceDied(f"{service.name}: Docker cannot start its container: {reason}: {remedy}")


def become(command: list[str]) -> NoReturn:
    """Replace this process by a command, which gets the terminal's signals and decides the exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp(command[0], command)
