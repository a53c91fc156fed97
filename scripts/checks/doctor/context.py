"""The facts that the checks share: settings, GPUs, running services, and the preset of this host."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from scripts.docker import engine as compose_engine
from scripts.docker import project as compose_project
from scripts.docker.client import ask
from scripts.environments import ROOT
from scripts.models.model_files import locate_in_cache
from scripts.programs import ANSWER_S
from scripts.settings import StackError, StackSettings, read_variables
from scripts.stack.devices import Gpu, choose, find_gpus
from scripts.stack.process_engine import ProcessEngine
from scripts.stack.services import images_of
from scripts.stack.vllm_server import ModelServer, model_servers, preset_file, start_arguments
from scripts.vllm.options import Options, read_options

# Runs in a container with the volume of models: prints `there` if it holds a model (owner--name) at a revision.
LOOK = """
cd "$HF_HOME/hub/models--$1" 2>/dev/null || exit 0
commit=$(cat "refs/$2" 2>/dev/null || echo "$2")
[ ! -e "snapshots/$commit/config.json" ] || echo there
"""


@dataclass
class Context:
    """The host, its settings and its stack."""

    settings: StackSettings

    @cached_property
    def gpus(self) -> list[Gpu]:
        """The stack's GPUs; none with STACK_DEVICE=cpu."""
        return find_gpus(self.settings)

    @cached_property
    def device(self) -> str:
        """The stack's device: `cpu` or `cuda`."""
        if self.settings.device != "auto":
            return self.settings.device
        return "cuda" if self.gpus else "cpu"

    @cached_property
    def preset(self) -> str | None:
        """The stack's preset; None where this host has none."""
        try:
            return choose(self.settings, self.gpus)[1]
        except StackError:
            return None

    @cached_property
    def preset_file(self) -> Path | None:
        """The file of the preset; None without a preset or file."""
        with contextlib.suppress(StackError):
            return preset_file(self.preset) if self.preset else None
        return None

    @cached_property
    def servers(self) -> list[ModelServer]:
        """The model servers of the stack; none without a preset, or where the GPUs cannot be shared out."""
        with contextlib.suppress(StackError):
            return model_servers(self.settings, self.device, self.preset_file) if self.preset_file else []
        return []

    @cached_property
    def environment(self) -> Mapping[str, str]:
        """The model server's variables."""
        own = self.settings.environment
        return own | read_variables(self.preset_file.with_suffix(".env")) if self.preset_file else own

    @cached_property
    def options(self) -> Options | None:
        """vLLM's options by the preset; None without a preset."""
        if self.preset_file is None:
            return None
        return read_options(self.preset_file, self.environment, self.device, start_arguments(self.settings))[0]

    @cached_property
    def in_containers(self) -> bool:
        """Whether the stack runs in containers, or would start in them now."""
        process = ProcessEngine(self.settings)
        if self.settings.engine == "auto" and any(map(process.is_running, process.names())):
            return False
        return compose_engine.chosen(self.settings, self.device)

    def is_running(self, name: str) -> bool:
        """Whether a service of this stack runs, on either engine."""
        return ProcessEngine(self.settings).is_running(name) or self.container(name, "{{.ID}}") is not None

    def container(self, name: str, shown: str) -> str | None:
        """The `docker ps` line of a service's container in the format `shown`; None where none runs."""
        if not (self.settings.state / "containers" / f"{name}.json").is_file():
            return None
        project = f"label=com.docker.compose.project={compose_project.project_name(self.settings.state)}"
        service = f"label=com.docker.compose.service={name}"
        return ask("ps", "--filter", project, "--filter", service, "--format", shown, timeout_s=ANSWER_S)[0] or None

    @cached_property
    def has_servers_model(self) -> bool:
        """Whether the model server finds its model; False where this host has no preset."""
        name = self.options.text("model") if self.options else None
        if self.options is None or not name:
            return False
        return self.has_model(name, self.options.text("revision"), Path(self.options.text("download-dir") or ""))

    def has_model(self, name: str, revision: str | None, download_dir: Path = Path()) -> bool:
        """Whether a service finds its model: in a folder, in the hub's cache on this host, in the containers' volume.

        False for a volume that no image can look into.
        """
        if (ROOT / Path(name).expanduser()).is_dir():
            return True
        if not self.in_containers:
            return locate_in_cache(name, revision, self.environment, download_dir)[0].folder is not None
        volume = f"{compose_project.project_name(self.settings.state)}_{compose_engine.HUB_VOLUME}"
        volumes, _ = ask("volume", "ls", "--format", "{{.Name}}", timeout_s=ANSWER_S)
        if volume not in (volumes or "").splitlines():
            return False
        mount = f"type=volume,source={volume},target={compose_engine.HUB_CACHE},readonly"
        run = ("run", "--rm", "--network=none", "--pull=never", "--mount", mount, "--entrypoint=/bin/sh")
        look = ("-c", LOOK, "sh", name.replace("/", "--"), revision or "main")
        said = (ask(*run, image.tag, *look, timeout_s=ANSWER_S)[0] for image in images_of(self.settings, self.device))
        return next((each for each in said if each is not None), "") == "there"
