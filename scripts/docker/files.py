"""The compose files of a stack, their variables, and the services' variables."""

from __future__ import annotations

import copy
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from python_on_whales import DockerClient

from scripts import files as whole_file
from scripts.docker import gpu as docker_gpu
from scripts.docker import host as docker_host
from scripts.docker.project import project_name
from scripts.environments import ROOT
from scripts.services import KINDS, kind_of
from scripts.settings import StackSettings, read_variables
from scripts.stack.service import without_secrets
from scripts.stack.services import own_variables, placed, variables_for
from scripts.stack.vllm_server import ModelServer, model_servers, preset_file, start_arguments
from scripts.vllm import compile_cache
from scripts.vllm.checker import CHECKER

COMPOSE_FILE = ROOT / "compose.yaml"
OVERLAYS = ROOT / "services" / "compose"
OVERLAY_OF_DEVICE = {"cpu": "cpu.yaml", "cuda": "gpu.yaml"}

# Where vLLM's container has the volume of its caches.
VLLM_CACHE = PurePosixPath("/cache/vllm")
# The program of the container that fetches models.
HUB_DOWNLOAD = ROOT / "scripts" / "models" / "hub_download.py"

# The compose files' variables that change nothing about a running service.
PASSING = frozenset({"START_PERIOD", "MEMORY_PIPELINE", "FETCH_IMAGE", "RAY_TOKEN_FILE"})


class ComposeFiles:
    """The compose files of a stack, and the files of variables that they name, in `state`."""

    def __init__(self, settings: StackSettings, device: str, preset_name: str) -> None:
        """Files for this device and vLLM preset; nothing is written yet."""
        self.settings = settings
        self.device = device
        self.preset = preset_file(preset_name)
        self.state = settings.state / "containers"
        self.project = project_name(settings.state)
        self.driver: docker_gpu.Driver = (docker_gpu.driver() if device == "cuda" else None) or "nvidia"
        self.servers = model_servers(settings, device, self.preset)
        overlay = OVERLAYS / OVERLAY_OF_DEVICE[device]
        self.generated: dict[Path, str] = {}
        if len(self.servers) > 1 or len(self.servers[0].gpus) > 1:
            place, overlay = overlay, self.state / "servers.json"
            self.generated[overlay] = json.dumps(self.servers_overlay(place))
        if settings.publish:
            self.generated[self.state / "publish.json"] = json.dumps(publish_overlay(settings, self.servers))
        self.files = list(dict.fromkeys([COMPOSE_FILE, overlay, *self.generated]))
        self.images = {kind.name: placed(settings, kind, device)[1].tag for kind in KINDS.values()}
        self.fetch_image = self.images["vllm"]
        self.key_file = self.state / "secrets" / "api_key"
        self.token_file = self.state / "secrets" / "ray_token"
        self.cluster = self.state / "ray.json"

    def variables(self) -> dict[str, str]:
        """The compose files' variables."""
        gpus = self.servers[0].gpus or (0,)
        return {
            "VLLM_PRESET": str(self.mounted(self.preset)),
            "HUB_DOWNLOAD": str(self.mounted(HUB_DOWNLOAD)),
            "CHECKER": str(self.mounted(CHECKER)),
            "DETECTOR_IMAGE": self.images["detector"],
            "VLLM_IMAGE": self.images["vllm"],
            "FETCH_IMAGE": self.fetch_image,
            "VLLM_ARGUMENTS": " ".join(shlex.quote(each) for each in start_arguments(self.settings)),
            **{f"{kind.prefix}ENV": str(self.state / f"{kind.name}.env") for kind in KINDS.values()},
            "API_KEY_FILE": str(self.key_file),
            "RAY_TOKEN_FILE": str(self.token_file),
            "START_PERIOD": f"{math.ceil(self.settings.start_timeout_s)}s",
            **{f"MEMORY_{name.upper()}": str(self.settings.memory(name) or "") for name in KINDS},
            "MEMORY_PIPELINE": str(self.settings.pipeline_memory),
            "GPU_DRIVER": self.driver,
            "GPU_DEVICE": docker_gpu.device(self.driver, gpus[0]),
        }

    def service_variables(self) -> dict[str, dict[str, str]]:
        """Each service's variables: its preset's, overridden by the user's, without the key."""
        preset = self.preset.with_suffix(".env")
        # Without the user's cache folders: they are on this host, not in the container.
        own = compile_cache.without(self.settings.user_variables("VLLM_"))
        caches = {server.name: compile_cache.variables(VLLM_CACHE / server.cache) for server in self.servers}
        vllm = {name: without_secrets(read_variables(preset) | own | cache) for name, cache in caches.items()}
        others = (kind for kind in KINDS.values() if kind.module)
        return {kind.name: own_variables(self.settings, kind, self.device) for kind in others} | vllm

    def servers_overlay(self, device: Path) -> dict[str, Any]:
        """The overlay of a device, with a block for each model server that gives it its GPUs, and the job's list.

        `docker compose up --scale` would give all servers the same GPU.
        """
        content = {name: part for name, part in read_compose(device).items() if not name.startswith("x-")}
        base, block = read_compose(COMPOSE_FILE)["services"]["vllm"], content["services"]["vllm"]
        for server in self.servers:
            environment = base["environment"] | block.get("environment", {})
            own = copy.deepcopy(base | block) | {"environment": environment}
            own["env_file"] = str(self.state / f"{server.name}.env")
            if server.gpus:
                names = [docker_gpu.device(self.driver, number) for number in server.gpus]
                own["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] = names
            content["services"][server.name] = own
        content["services"]["preflight"]["deploy"] = content["services"]["vllm"].get("deploy", {})
        kind = KINDS["vllm"]
        addresses = [f"http://{server.name}:{kind.port}{kind.url_path}" for server in self.servers]
        content["services"]["pipeline"] = {"environment": variables_for(kind, addresses)}
        return content

    def mounted(self, file: Path) -> Path:
        """The copy of a file of this host that containers get: their user may read it, whatever the umask was."""
        return (self.state / "mounted" / file.name).resolve()

    def copy_mounted(self) -> None:
        """Make the copies of the files that containers get."""
        for file in (self.preset, HUB_DOWNLOAD, CHECKER):
            whole_file.write(self.mounted(file), file.read_bytes(), 0o444)

    def write(self) -> None:
        """Write what Compose reads beside the repository's compose files; it stays for people to look at."""
        self.copy_mounted()
        for path, text in self.generated.items():
            whole_file.write(path, text.encode(), 0o600)
        write_env(self.state / "compose.env", self.variables())
        for name, values in self.service_variables().items():
            write_env(self.state / f"{name}.env", values)

    def about(self, service: str) -> list[str]:
        """What a service's container depends on: its variables, and the compose files."""
        variables = {name: value for name, value in self.variables().items() if name not in PASSING}
        told = [json.dumps(variables), json.dumps(self.service_variables()[service])]
        return told + [self.generated.get(path) or path.read_text() for path in self.files]

    def client(self, *also: Path) -> DockerClient:
        """Docker and Compose with this stack's files and variables; `also`: further files over these."""
        self.write()
        # A variable of the shell would override the file's.
        unset = [part for name in self.variables() for part in ("-u", name)]
        return DockerClient(
            config=docker_host.client_config(),
            # Without the overlay of the Ray cluster, Compose takes the cluster's containers for orphans.
            client_call=["env", *unset, "COMPOSE_IGNORE_ORPHANS=1", "docker"],
            compose_files=[*self.files, *also],
            compose_project_name=self.project,
            compose_project_directory=ROOT,
            compose_env_files=[self.state / "compose.env"],
        )

    def command(self, *arguments: str, also: tuple[Path, ...] = ()) -> list[str]:
        """A Compose command for this stack; `also`: further files over its own."""
        return [*(str(part) for part in self.client(*also).compose.docker_compose_cmd), *arguments]


def read_compose(file: Path) -> dict[str, Any]:
    """A compose file, with its anchors resolved and its variables as they stand."""
    content: dict[str, Any] = yaml.safe_load(file.read_text())
    return content


def publish_overlay(settings: StackSettings, servers: Sequence[ModelServer]) -> dict[str, Any]:
    """A compose file that opens the services' ports on this host, for programs of the user (STACK_PUBLISH).

    Docker publishes nothing from an internal network, so the services also join this one. It is less closed than the
    internal one: a service can reach this host, Docker resolves names for it, and its packets can leave the host. They
    leave under the container's own address, without masquerading, so no answer returns unless the network around routes
    to such addresses.
    """
    ports = {kind.name: settings.port(kind.name) for kind in KINDS.values() if kind.module}
    ports |= {server.name: server.port for server in servers}
    services = {
        name: {"networks": ["published"], "ports": [f"{settings.host}:{port}:{kind_of(name).port}"]}
        for name, port in ports.items()
    }
    options = {"com.docker.network.bridge.enable_ip_masquerade": "false"}
    return {"services": services, "networks": {"published": {"driver_opts": options}}}


def hand_over(key: str, place: Path) -> None:
    """Write a key to the file that Compose mounts as a secret.

    The file keeps its owner and mode in the container, and this user cannot give it to the container's user. So all may
    read it, in a folder that only this user may enter: the container gets the file without the folder.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    place.parent.chmod(0o700)
    whole_file.write(place, key.encode(), 0o444)


def write_env(path: Path, variables: Mapping[str, str]) -> None:
    """Write a file of variables as Compose reads it, which takes `$` in a value for another variable."""
    quoted = {name: json.dumps(value, ensure_ascii=False).replace("$", "\\$") for name, value in variables.items()}
    whole_file.write(path, "".join(f"{name}={value}\n" for name, value in quoted.items()).encode(), 0o600)
