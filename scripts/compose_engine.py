"""The engine for hosts with Docker: runs the services in the containers that the compose files describe.

One command brings up one service, as on the process engine, so that order, waiting and messages are the same. What was
started, and with what settings, is known again by the container's id and a fingerprint in a state file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NoReturn

from python_on_whales import Container, DockerClient, DockerException
from python_on_whales.exceptions import NoSuchContainer
from rich.console import Console

from pipeline import settings as job_settings
from scripts import api_key, compile_cache, docker_gpu, images, job_container, whole_file
from scripts.compile_cache import Kept
from scripts.environments import ROOT, STATE
from scripts.preflight import full
from scripts.preflight.full import Place
from scripts.services import (
    DETECTOR_PRESETS,
    Service,
    Stack,
    cache_key,
    preset_file,
    read_variables,
    start_arguments,
    without_secrets,
)
from scripts.settings import StackError, StackSettings, user_variables

COMPOSE_FILE = ROOT / "compose.yaml"
OVERLAYS = ROOT / "services" / "compose"
OVERLAY_OF_DEVICE = {"cpu": "cpu.yaml", "cuda": "gpu.yaml"}

# Where vLLM's container has the volumes of its caches and of the hub's models.
VLLM_CACHE, CACHE_VOLUME = PurePosixPath("/cache/vllm"), "vllm-cache"
HUB_CACHE, HUB_VOLUME = PurePosixPath("/cache/hub"), "hub-cache"
# And where it has the preset, and for a check vLLM's own code to run.
PRESET, CHECKER = PurePosixPath("/spotter/preset.yaml"), PurePosixPath("/spotter/in_vllm.py")
# What runs in the container that fetches models.
HUB_DOWNLOAD = ROOT / "scripts" / "hub_download.py"
# What the hub's client needs to know to reach the hub from a container.
WAY_OUT = ("HF_ENDPOINT", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")

# Where the services listen in their containers, and where images/health.py finds them.
PORTS = {"detector": 8001, "vllm": 8000}
READY_PATHS = {"detector": "/", "vllm": "/health"}

# scripts/docker_engine.sh puts Compose here where the host's docker has none.
OWN_CLIENT_CONFIG = STATE / "docker" / "config"

# What `docker info` is asked for, to know whether this host reaches containers at their addresses.
REACH = "{{.OperatingSystem}} {{json .SecurityOptions}}"

# What Compose writes on a container: the project it belongs to, and the folder that this was started from.
PROJECT_LABEL = "com.docker.compose.project"
CHECKOUT_LABEL = "com.docker.compose.project.working_dir"

# Of the compose files' variables, those that change nothing of a service that is up.
PASSING = frozenset({"START_PERIOD", "MEMORY_PIPELINE"})

# What Docker says where it cannot give a container the GPU: it has no driver, the toolkit's hook fails (no driver's
# library, another version), a description of devices is missing or out of date.
NO_GPU = (
    "could not select device driver|nvidia-container|nvidia-ctk|nvidia-cdi|libnvidia|nvml|nvidia runtime|"
    "unresolvable CDI devices|CDI device injection|/dev/nvidia"
)

# A container's state is asked for this often at most: asking takes 30 ms of CPU.
STATE_AGE_S = 0.5


@dataclass(frozen=True, slots=True)
class Started:
    """A container that was started for a service, and the settings it has."""

    id: str
    fingerprint: str


def why_out_of_reach(reach: str) -> str | None:
    """Why this host does not reach containers at their addresses, from what `docker info` says to REACH; else None."""
    if "Docker Desktop" in reach:
        return "Docker Desktop keeps containers in a machine of its own, where this host does not reach them"
    if "name=rootless" in reach:
        return "a rootless Docker keeps containers in a network of its own, where this host does not reach them"
    return None


@cache
def client_config() -> Path | None:
    """The Docker client's configuration folder that has Compose: the user's own (None), or ours.

    Raises:
        StackError: no Docker engine answers, this host does not reach its containers, or there is no Compose.
    """
    if images.docker("info", "--format", "{{.ServerVersion}}", timeout_s=20) is None:
        raise StackError("no Docker engine answers (`docker info`): start one, or set STACK_ENGINE=process")
    if reason := why_out_of_reach(images.docker("info", "--format", REACH) or ""):
        raise StackError(f"{reason}: set STACK_ENGINE=process, or use a Docker Engine that root runs on this host")
    if images.docker("compose", "version") is not None:
        return None
    if images.docker("--config", str(OWN_CLIENT_CONFIG), "compose", "version") is not None:
        return OWN_CLIENT_CONFIG
    raise StackError(
        "docker has no Compose (`docker compose version`): install its plugin, or set STACK_ENGINE=process"
    )


def answers() -> bool:
    """Whether there are Docker and Compose to ask."""
    try:
        client_config()
    except StackError:
        return False
    return True


def checkouts(project: str) -> dict[str, str]:
    """The containers of a Compose project by id, whatever overlays and settings made them; and each one's checkout."""
    label, shown = f"label={PROJECT_LABEL}={project}", f'{{{{.ID}}}} {{{{.Label "{CHECKOUT_LABEL}"}}}}'
    found = images.docker("ps", "--all", "--filter", label, "--format", shown) or ""
    return {identifier: folder for identifier, _, folder in (line.partition(" ") for line in found.splitlines())}


def is_elsewhere(checkout: str) -> bool:
    """Whether a container's checkout is another one than this. One that is gone has left its containers to us."""
    if not checkout or Path(checkout) == ROOT:
        return False
    try:
        return not Path(checkout).samefile(ROOT)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # another user's, which this one may not look at
        return True


def other_checkout(project: str) -> str | None:
    """Another checkout of this repository that has containers in a Compose project; None where there is none."""
    return next((folder for folder in checkouts(project).values() if is_elsewhere(folder)), None)


def left_over(project: str) -> tuple[list[str], list[str]]:
    """This checkout's containers in a Compose project, and its networks where no other checkout has containers."""
    found = checkouts(project)
    own = [identifier for identifier, folder in found.items() if not is_elsewhere(folder)]
    if len(own) < len(found):
        return own, []
    label = f"label={PROJECT_LABEL}={project}"
    return own, (images.docker("network", "ls", "--quiet", "--filter", label) or "").split()


def volumes(project: str) -> list[str]:
    """The volumes of a Compose project, by name."""
    label = f"label={PROJECT_LABEL}={project}"
    return (images.docker("volume", "ls", "--quiet", "--filter", label) or "").split()


def chosen(settings: StackSettings, device: str) -> bool:
    """Whether a stack that is not up yet would run in containers."""
    if settings.engine == "auto":
        return why_not(device, offline=settings.offline) is None
    return settings.engine == "compose"


def why_not(device: str, *, offline: bool = False) -> str | None:
    """Why this host cannot run the stack in containers; None where it can, as far as one can tell beforehand."""
    try:
        client_config()
    except StackError as error:
        return str(error).split(":")[0]
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
        self.preset = preset_file(preset_name)
        self.state = settings.state / "containers"
        self.logs = settings.state / "logs"
        self.project = project_name(settings.state)
        self.files = [COMPOSE_FILE, OVERLAYS / OVERLAY_OF_DEVICE[device]]
        if settings.publish:
            self.files.append(OVERLAYS / "publish.yaml")
        self.key_file = self.state / "secrets" / "api_key"
        self._seen: dict[str, tuple[float, Container | None]] = {}
        self._restarts: dict[str, int] = {}

    def variables(self) -> dict[str, str]:
        """The compose files' variables."""
        driver = (docker_gpu.driver() if self.device == "cuda" else None) or "nvidia"
        return {
            "VLLM_PRESET": str(self.mounted(self.preset)),
            "HUB_DOWNLOAD": str(self.mounted(HUB_DOWNLOAD)),
            "VLLM_ARGUMENTS": " ".join(shlex.quote(each) for each in start_arguments(self.settings)),
            "VLLM_ENV": str(self.state / "vllm.env"),
            "DETECTOR_ENV": str(self.state / "detector.env"),
            "API_KEY_FILE": str(self.key_file),
            "START_PERIOD": f"{math.ceil(self.settings.start_timeout_s)}s",
            "MEMORY_VLLM": str(self.settings.vllm_memory or ""),
            "MEMORY_DETECTOR": str(self.settings.detector_memory or ""),
            "MEMORY_PIPELINE": str(self.settings.pipeline_memory),
            "GPU_DRIVER": driver,
            "GPU_DEVICE": docker_gpu.device(driver, self.settings.gpu),
            "PUBLISH_HOST": self.settings.host,
            "PUBLISH_VLLM_PORT": str(self.settings.vllm_port),
            "PUBLISH_DETECTOR_PORT": str(self.settings.detector_port),
        }

    def service_variables(self) -> dict[str, dict[str, str]]:
        """Each service's variables: its preset's, and over them those that the user set, but for the key."""
        preset = self.preset.with_suffix(".env")
        chosen = compile_cache.without(user_variables("VLLM_"))  # this host's places are not there
        cache_folder = VLLM_CACHE / cache_key(self.settings, self.device, self.preset)
        vllm = without_secrets(read_variables(preset) | chosen | compile_cache.variables(cache_folder))
        detector = read_variables(DETECTOR_PRESETS / f"{self.device}.env") | user_variables("DETECTOR_")
        return {"vllm": vllm, "detector": detector}

    def mounted(self, file: Path) -> Path:
        """Where containers get a file of this host from: a copy that their user may read, whatever the umask was."""
        return (self.state / "mounted" / file.name).resolve()

    def copy_mounted(self) -> None:
        """Make the copies of the files that containers get."""
        for file in (self.preset, HUB_DOWNLOAD, full.CHECKER):
            whole_file.write(self.mounted(file), file.read_bytes(), 0o444)

    def write_variables(self) -> None:
        """Write the files that Compose reads: its variables, and the services'. They are left to look at."""
        self.copy_mounted()
        write_env(self.state / "compose.env", self.variables())
        for name, values in self.service_variables().items():
            write_env(self.state / f"{name}.env", values)

    def compose_client(self, *also: Path) -> DockerClient:
        """Docker and Compose with this stack's files and variables; `also`: further files over these."""
        self.write_variables()
        # A variable of the shell's would win over the file's of the same name.
        unset = [part for name in self.variables() for part in ("-u", name)]
        return DockerClient(
            config=client_config(),
            client_call=["env", *unset, "docker"],
            compose_files=[*self.files, *also],
            compose_project_name=self.project,
            compose_project_directory=ROOT,
            compose_env_files=[self.state / "compose.env"],
        )

    def container_name(self, name: str) -> str:
        """Compose's name for the one container of a service."""
        return f"{self.project}-{name}-1"

    def container(self, name: str) -> Container | None:
        """A service's container, running or not, as of the last STATE_AGE_S; None where we have none."""
        asked, found = self._seen.get(name, (0.0, None))
        if time.monotonic() - asked > STATE_AGE_S:
            try:
                found = DockerClient(config=client_config()).container.inspect(self.container_name(name))
                if is_elsewhere((found.config.labels or {}).get(CHECKOUT_LABEL, "")):
                    found = None
            except NoSuchContainer:
                found = None
            self._seen[name] = (time.monotonic(), found)
        return found

    def image(self, name: str) -> images.Image:
        """The image of a service."""
        detector, vllm, _ = images.OF_DEVICE[self.device]
        return images.IMAGES[{"detector": detector, "vllm": vllm}[name]]

    def fingerprint(self, service: Service) -> str:
        """Changes when the service has to be started anew to be what settings, compose files and image say."""
        variables = {name: value for name, value in self.variables().items() if name not in PASSING}
        parts = [service.fingerprint, self.image(service.name).fingerprint(), json.dumps(variables)]
        parts.append(json.dumps(self.service_variables()[service.name]))
        parts += [path.read_text() for path in self.files]
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
        old = [image.tag for image in wanted if not images.is_current(image)] if self.settings.offline else []
        if old:
            raise StackError(
                f"{', '.join(old)}: not built from the files as they are now: `make build`, or set STACK_ENGINE=process"
            )
        images.ensure([image.name for image in wanted], self.logs, Console())

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
        mount = f"type=volume,source={volume},target={VLLM_CACHE}"
        shell = ("--entrypoint=/bin/sh", self.image("vllm").tag, "-c", f"cd {VLLM_CACHE} && {script}")
        return images.docker("run", "--rm", "--network=none", "--mount", mount, *shell)

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
        """A container of vLLM's image: with the preset, the volumes of models and caches, and no network."""
        image = self.image("vllm")
        if not images.has(image.tag):
            return Place((), "", f"image {image.tag} is not built yet: `make build` makes it")
        told = ["docker", "run", "--rm", "--interactive", "--network=none", "--read-only", "--tmpfs=/tmp"]
        told += ["--cap-drop=ALL", "--security-opt=no-new-privileges:true", "--entrypoint=python3"]
        told += [docker_gpu.option(docker_gpu.driver() or "nvidia", self.settings.gpu)] if self.device == "cuda" else []
        there = volumes(self.project)
        variables = self.service_variables()["vllm"] | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": "/tmp/modules"}
        if (
            f"{self.project}_{CACHE_VOLUME}" not in there
        ):  # nothing was started yet: a start's caches are its own to make
            variables |= compile_cache.variables(PurePosixPath("/tmp/vllm"))
        for name, value in variables.items():
            told += ["--env", f"{name}={value}"]
        for name, target, mode in ((CACHE_VOLUME, VLLM_CACHE, "rw"), (HUB_VOLUME, HUB_CACHE, "ro")):
            kept = f"{self.project}_{name}"
            told += ["--volume", f"{kept}:{target}:{mode}"] if kept in there else []
        self.copy_mounted()
        for file, target in ((self.preset, PRESET), (full.CHECKER, CHECKER)):
            told += ["--volume", f"{self.mounted(file)}:{target}:ro"]
        return Place((*told, image.tag, "-P", str(CHECKER)), str(PRESET))

    def fetch_command(self, service: Service, arguments: list[str]) -> list[str]:
        """How to run scripts/hub_download.py: in a container that has a way out, and the volume of models to write.

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
        return self.compose("run", "--rm", "-T", *given, "fetch", *arguments)

    def stop_fetching(self) -> None:
        """End a download's container that its command has left behind; what it has is kept."""
        labels = (f"project={self.project}", f"project.working_dir={ROOT}", "service=fetch", "oneoff=True")
        filters = [part for label in labels for part in ("--filter", f"label=com.docker.compose.{label}")]
        for identifier in (images.docker("ps", "--quiet", *filters) or "").split():
            images.docker("stop", "--time", "2", identifier)

    def is_running(self, name: str) -> bool:
        """Whether the service's container runs, and has not been restarted since this engine first looked."""
        container = self.container(name)
        if container is None:
            return False
        before = self._restarts.setdefault(name, container.restart_count or 0)
        return container.state.status == "running" and (container.restart_count or 0) <= before

    def unhealthy(self, name: str) -> str | None:
        """What the container's last health check said, once Docker holds it for unhealthy."""
        container = self.container(name)
        health = container.state.health if container else None
        if health is None or health.status != "unhealthy":
            return None
        last = health.log[-1] if health.log else None
        return (last.output or "").strip() if last else ""

    def is_current(self, service: Service) -> bool:
        """Whether the service runs with the settings as they are now."""
        known, container = self.started(service.name), self.container(service.name)
        return (
            known is not None
            and container is not None
            and known == Started(container.id, self.fingerprint(service))
            and self.is_running(service.name)
        )

    def locate(self, service: Service) -> Service:
        """The service with the address under which this host reaches its container; unchanged where none runs."""
        container = self.container(service.name)
        networks = (container.network_settings.networks or {}) if container else {}
        inside = networks.get(f"{self.project}_inside")
        if inside is None or not inside.ip_address:
            return service
        address = f"http://{inside.ip_address}:{PORTS[service.name]}{READY_PATHS[service.name]}"
        return replace(service, ready_url=address, port=PORTS[service.name])

    def start(self, service: Service) -> None:
        """Start a service's container, anew where there is one.

        Raises:
            StackError: Docker cannot start it; says why.
        """
        self._seen.pop(service.name, None)
        self._restarts[service.name] = 0
        if service.key_file:
            hand_over(api_key.ensure(service.key_file), self.key_file)
        client = self.compose_client()
        try:
            client.compose.up(
                [service.name], detach=True, no_build=True, force_recreate=True, dependencies=False, quiet=True
            )
            container = client.container.inspect(self.container_name(service.name))
        except DockerException as error:
            raise cannot_start(service, error.stderr or str(error)) from error
        known = Started(container.id, self.fingerprint(service))
        (self.state / f"{service.name}.json").write_text(json.dumps(asdict(known)))

    def stop(self, name: str, grace_s: float) -> bool:
        """Stop and remove a service's container; its log is kept in a file. Whether there was one."""
        self._seen.pop(name, None)
        try:
            container = self.container(name)
            if container is None:
                return False
            container.stop(time=round(grace_s))
            self.logs.mkdir(parents=True, exist_ok=True)
            self.log(name).write_text(container_log(container.id))
            container.remove(force=True)
        except NoSuchContainer:  # another command was quicker
            return False
        finally:
            self._seen.pop(name, None)
            (self.state / f"{name}.json").unlink(missing_ok=True)
        return True

    def tear_down(self) -> None:
        """Remove what is left beside the services: jobs that were cut off, networks. The caches' volumes stay.

        What another checkout has in the same project stays as well.
        """
        containers, networks = left_over(self.project)
        for identifier in containers:
            images.docker("stop", identifier)
            images.docker("rm", "--force", identifier)
        for identifier in networks:
            if images.docker("network", "rm", identifier) is None:
                raise StackError(f"network {identifier} cannot be removed: `docker network inspect` shows who uses it")

    def exit_code(self, name: str) -> int | None:
        """The exit code of a service's container when it last ended; also after a restart."""
        container = self.container(name)
        if container is None:
            return None
        if container.state.status == "exited":
            return container.state.exit_code
        died = job_container.events(container.id, "die", container.created)
        return int(died[-1]) if died else None

    def memory_limit_hit(self, name: str) -> int | None:
        """The limit, in bytes, of a service's container that the system has killed, or a process in it, for it."""
        container = self.container(name)
        if container is None or not container.host_config.memory:
            return None
        # By now its end is known, and this came before.
        seen = job_container.events(container.id, "oom", container.created, looks=1)
        killed = container.state.oom_killed or seen
        return container.host_config.memory if killed else None

    def last_lines(self, name: str, count: int = 20, *, earlier: bool = False) -> str:
        """The end of a service's log, since Docker last started it; with `earlier` also of the starts before."""
        container = self.container(name)
        if container is not None:
            # When the start before ended: Docker notes that this one has started after its first lines may be out.
            ended = container.state.finished_at
            begun = ended if not earlier and ended is not None and ended.year > 1 else None
            return container_log(container.id, count, begun).rstrip()
        try:
            return last_lines(self.log(name).read_text(errors="replace"), count)
        except OSError:
            return ""

    def log(self, name: str) -> Path:
        """Where a service's log is once it has been stopped; `show_logs` has it before."""
        return self.logs / f"{name}.log"

    def show_logs(self, names: list[str], follow: bool) -> NoReturn:
        """Become a program that shows the services' logs."""
        if not any(self.container(name) for name in names):
            stopped = [str(self.log(name)) for name in names if self.log(name).exists()]
            raise StackError(f"nothing is running; the last logs: {', '.join(stopped) or 'none'}")
        become(self.compose("logs", "--tail", "100", *(["--follow"] if follow else []), *names))

    def describe(self, name: str) -> tuple[str, float | None]:
        """What a service runs as, and for how many seconds."""
        container = self.container(name)
        if container is None:
            return "", None
        age = time.time() - container.state.started_at.timestamp() if container.state.started_at else None
        return container.id[:12], age

    def open_shell(self, service: Service) -> NoReturn:
        """Become a shell in the service's container."""
        if not self.is_running(service.name):
            raise StackError(f"{service.name} does not run: 'make up' starts it")
        become(self.compose("exec", service.name, "/bin/sh"))

    def compose(self, *arguments: str, also: tuple[Path, ...] = ()) -> list[str]:
        """A Compose command for this stack; `also`: further files over its own."""
        return [*(str(part) for part in self.compose_client(*also).compose.docker_compose_cmd), *arguments]

    def check_job(self, stack: Stack, options: list[str]) -> None:
        """See that the job's container can have what it needs of this host.

        Raises:
            StackError: a service's address leads nowhere from a container.
            UsageError: the job's settings cannot be, or images or runs' folder cannot be reached from a container.
        """
        self.tell_job(stack, job_settings.load(options), options)

    def tell_job(self, stack: Stack, settings: job_settings.Settings, options: list[str]) -> job_container.Told:
        """Make what Compose is told of the job; what it raises is said in `check_job`."""
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
        self.ensure_images([images.IMAGES["pipeline"]])
        settings = job_settings.load(options)
        if stack.key_file:
            key = api_key.ensure(stack.key_file)
        else:  # the model server is elsewhere: what the job tells it is not the key of a server here
            key = settings.api_key.get_secret_value() if settings.api_key else ""
            self.key_file = self.key_file.with_name("job_api_key")
        hand_over(key, self.key_file)
        told = self.tell_job(stack, settings, options)
        name = f"spotter-job-{uuid.uuid4().hex[:12]}"
        overlay = self.state / f"{name}.json"  # its own: another job may run
        whole_file.write(overlay, json.dumps(told.overlay).encode(), 0o600)
        try:
            code = job_container.run(self.compose(also=(overlay,)), name, told.arguments, self.settings.pipeline_memory)
        finally:
            overlay.unlink()
        sys.exit(code)


def project_name(state: Path) -> str:
    """The Compose project of a stack: `spotter`, or for another state folder one of its own."""
    if state.resolve() == STATE.resolve():
        return "spotter"
    return f"spotter-{hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:8]}"


def cannot_start(service: Service, said: str) -> StackError:
    """The error for a container that Docker does not start."""
    reason = last_lines(said, 1)
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


def docker_said(error: DockerException) -> str:
    """Why Docker did not do something, in one line."""
    return f"docker: {last_lines(error.stderr or '', 1) or f'ended with exit code {error.return_code}'}"


def hand_over(key: str, place: Path) -> None:
    """Write a key where Compose takes it from.

    Such a file keeps its owner and mode in the container, and this user cannot give it to the container's. So it is
    readable for all, in a folder that nobody but this user may enter: the container gets the file without the folder.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    place.parent.chmod(0o700)
    api_key.write(place, key, 0o444)


def last_lines(text: str, count: int) -> str:
    """The end of a text."""
    return "\n".join(text.rstrip().splitlines()[-count:])


def write_env(path: Path, variables: Mapping[str, str]) -> None:
    """Write a file of variables as Compose reads it, which takes `$` in a value for another variable."""
    quoted = {name: json.dumps(value, ensure_ascii=False).replace("$", "\\$") for name, value in variables.items()}
    whole_file.write(path, "".join(f"{name}={value}\n" for name, value in quoted.items()).encode(), 0o600)


def container_log(identifier: str, count: int | None = None, begun: datetime | None = None) -> str:
    """A container's output, both streams in the order in which they were written; the whole, or what is asked for.

    That is its last `count` lines, and of them those since `begun`.
    """
    since = ["--since", begun.isoformat()] if begun else []
    return images.feed(["docker", "logs", "--tail", str(count or "all"), *since, identifier], "")[1]


def become(command: list[str]) -> NoReturn:
    """Replace this process by a command, which so gets the terminal's signals, and whose exit code is ours."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp(command[0], command)
