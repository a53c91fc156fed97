"""The compose files of a stack, their variables, and the services' variables."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from python_on_whales import DockerClient

from scripts import files as whole_file
from scripts.docker import gpu as docker_gpu
from scripts.docker import host as docker_host
from scripts.docker.project import project_name
from scripts.environments import ROOT
from scripts.services import KINDS
from scripts.settings import StackSettings, read_variables
from scripts.stack.service import without_secrets
from scripts.stack.services import own_variables, placed
from scripts.stack.vllm_server import cache_key, preset_file, start_arguments
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
PASSING = frozenset({"START_PERIOD", "MEMORY_PIPELINE", "FETCH_IMAGE"})


class ComposeFiles:
    """The compose files of a stack, and the files of variables that they name, in `state`."""

    def __init__(self, settings: StackSettings, device: str, preset_name: str) -> None:
        """Files for this device and vLLM preset; nothing is written yet."""
        self.settings = settings
        self.device = device
        self.preset = preset_file(preset_name)
        self.state = settings.state / "containers"
        self.project = project_name(settings.state)
        self.files = [COMPOSE_FILE, OVERLAYS / OVERLAY_OF_DEVICE[device]]
        published = {self.state / "publish.json": json.dumps(publish_overlay(settings))}
        self.generated = published if settings.publish else {}
        self.files += self.generated
        self.images = {kind.name: placed(settings, kind, device)[1].tag for kind in KINDS.values()}
        self.fetch_image = self.images["vllm"]
        self.key_file = self.state / "secrets" / "api_key"

    def variables(self) -> dict[str, str]:
        """The compose files' variables."""
        driver = (docker_gpu.driver() if self.device == "cuda" else None) or "nvidia"
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
            "START_PERIOD": f"{math.ceil(self.settings.start_timeout_s)}s",
            **{f"MEMORY_{name.upper()}": str(self.settings.memory(name) or "") for name in KINDS},
            "MEMORY_PIPELINE": str(self.settings.pipeline_memory),
            "GPU_DRIVER": driver,
            "GPU_DEVICE": docker_gpu.device(driver, self.settings.gpu),
        }

    def service_variables(self) -> dict[str, dict[str, str]]:
        """Each service's variables: its preset's, overridden by the user's, without the key."""
        preset = self.preset.with_suffix(".env")
        # Without the user's cache folders: they are on this host, not in the container.
        own = compile_cache.without(self.settings.user_variables("VLLM_"))
        cache_folder = VLLM_CACHE / cache_key(self.settings, self.device, self.preset)
        vllm = without_secrets(read_variables(preset) | own | compile_cache.variables(cache_folder))
        others = (kind for kind in KINDS.values() if kind.module)
        return {kind.name: own_variables(self.settings, kind, self.device) for kind in others} | {"vllm": vllm}

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
            client_call=["env", *unset, "docker"],
            compose_files=[*self.files, *also],
            compose_project_name=self.project,
            compose_project_directory=ROOT,
            compose_env_files=[self.state / "compose.env"],
        )

    def command(self, *arguments: str, also: tuple[Path, ...] = ()) -> list[str]:
        """A Compose command for this stack; `also`: further files over its own."""
        return [*(str(part) for part in self.client(*also).compose.docker_compose_cmd), *arguments]


def publish_overlay(settings: StackSettings) -> dict[str, Any]:
    """A compose file that opens the services' ports on this host, for programs of the user (STACK_PUBLISH).

    Docker publishes nothing from an internal network, so the services also join this one. It is less closed than the
    internal one: a service can reach this host, Docker resolves names for it, and its packets can leave the host. They
    leave under the container's own address, without masquerading, so no answer returns unless the network around routes
    to such addresses.
    """
    services = {
        name: {"networks": ["published"], "ports": [f"{settings.host}:{settings.port(name)}:{kind.port}"]}
        for name, kind in KINDS.items()
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
