"""The stack's settings, and the user's variables for services and job: read once, from the environment and `.env`."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, ByteSize, Field, PrivateAttr, ValidationError, create_model
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pipeline import settings as job_settings
from pipeline.settings import EmptyIsDefault
from scripts.environments import ROOT
from scripts.services import KINDS

PREFIX = "STACK_"
ENV_FILE = ROOT / ".env"

# The job's settings on which the stack depends.
OF_STACK = (
    *("job", "images", "column", "boxes", "from_run", "runner"),
    *("model", "model_url", "detector_url", "api", "schema_form"),
)

# STACK_OFFLINE in the words of pip, uv and the hub's client; scripts/python.sh tells pip and uv before this code runs.
OFFLINE = {
    "PIP_NO_INDEX": "1",
    "UV_OFFLINE": "1",
    "UV_PYTHON_DOWNLOADS": "never",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
}


class StackError(Exception):
    """The stack cannot do what was asked; the message says what, why and what to do.

    Raise one of the kinds below. In the rooms stack, docker and commands any function may pass on one that it did not
    raise; docstrings name those that the function raises itself.
    """

    told = False
    """Whether the user has seen it."""

    def tell(self) -> None:
        """Show it, once."""
        if not self.told:
            print(f"error: {self}", file=sys.stderr, flush=True)
        self.told = True


class InvalidStackSetting(StackError):
    """A setting of the stack, a key or a preset is invalid or does not exist, or contradicts another."""


class ChecksFailed(StackError):
    """A check before a start found an error, so nothing was started."""


class NoEngine(StackError):
    """No container engine that can be used answers."""


class NoGpu(StackError):
    """There is no such GPU, or it is too small."""


class BuildFailed(StackError):
    """An image, an environment or a file that a start needs cannot be made."""


class FetchFailed(StackError):
    """A model cannot be fetched."""


class OtherStack(StackError):
    """Another checkout or engine runs these services."""


class PortTaken(StackError):
    """Another program listens on a service's port."""


class ServiceDied(StackError):
    """A service cannot start, has ended, or is unhealthy."""


class NotReady(StackError):
    """A service is not ready in time, or fails the job's first request."""


class NotRunning(StackError):
    """A service does not run on this host."""


class NotRemoved(StackError):
    """A volume or network cannot be removed."""


if TYPE_CHECKING:
    from pydantic_settings import BaseSettings as ServiceSettings
else:  # two settings for each service
    ports = {
        f"{kind.name}_port": (int, Field(kind.port, ge=1, le=65535, description=f"port of {kind.name} on this host"))
        for kind in KINDS.values()
    }
    limit = Field(None, gt=0, description="compose: memory limit, such as 24GiB; the default is in the compose files")
    limits = {f"{name}_memory": (ByteSize | None, limit) for name in KINDS}
    ServiceSettings = create_model("ServiceSettings", __base__=BaseSettings, **ports, **limits)


def gpu_numbers(value: str) -> str:
    """Check STACK_GPUS, and remove its blanks."""
    if value.strip() == "all":
        return "all"
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", value):
        raise ValueError("expected all, or numbers such as 0,1,3")
    numbers = [str(int(number)) for number in value.split(",")]
    if len(set(numbers)) < len(numbers):
        raise ValueError("a GPU is named twice")
    return ",".join(numbers)


class StackSettings(ServiceSettings):
    """Where and how the services run. Immutable; it also holds the user's variables as they were when it was made."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=ENV_FILE,
        env_file_encoding=job_settings.ENV_ENCODING,
        extra="ignore",
        frozen=True,
    )

    engine: Literal["auto", "compose", "process"] = Field(
        "auto", description="auto: compose where Docker answers and has the images or can build them, else process"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where nvidia-smi finds a GPU")
    gpus: Annotated[str, AfterValidator(gpu_numbers)] = Field(
        "0", description="the GPUs' numbers at nvidia-smi, such as 0,1,3, or all; each gets a vLLM"
    )
    replicas: int = Field(1, ge=1, description="on a CPU: the number of vLLM servers; on GPUs, STACK_GPUS decides")
    ray_workers: int = Field(1, ge=1, description="compose: workers of the Ray cluster, for SPOTTER_RUNNER=ray")
    preset: str = Field(
        "auto", description="a preset of services/vllm/presets by its name, or a file; auto: by the GPU's memory"
    )
    start: Literal["full", "fast"] = Field("full", description="fast: vLLM is ready sooner and answers slower")
    vllm_image: Literal["locked", "official"] = Field(
        "locked", description="compose, on a GPU: locked: vLLM from its lock; official: vLLM's own image"
    )
    offline: bool = Field(False, description="no command makes a network attempt; anything missing is an error")
    host: str = Field("127.0.0.1", description="address that the services listen on")
    publish: bool = Field(False, description="compose: let programs of this host reach the services")
    start_timeout_s: float = Field(1800.0, gt=0, description="longest time until a service is ready")
    pipeline_memory: ByteSize = Field(
        # 300 scenes with 1,000 dogs took 0.5 GiB; large photographs take more.
        ByteSize(4 * 1024**3),
        gt=0,
        description="compose: memory limit of the job, and of each Ray worker",
    )
    state: Path = Field(ROOT / ".spotter", description="folder for process ids, logs and caches")

    _file: Mapping[str, str] = PrivateAttr(default_factory=lambda: read_variables(ENV_FILE))
    _environment: Mapping[str, str] = PrivateAttr(default_factory=lambda: dict(os.environ))

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *_: object, **sources: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The usual sources, but an empty variable counts as not set, also where `.env` sets it."""
        return (sources["init_settings"], EmptyIsDefault(settings_cls), sources["dotenv_settings"])

    def port(self, service: str) -> int:
        """The port of a service on this host."""
        return int(getattr(self, f"{service}_port"))

    def memory(self, service: str) -> ByteSize | None:
        """The memory limit of a service's container; None: that of the compose files."""
        limit: ByteSize | None = getattr(self, f"{service}_memory")
        return limit

    def user_variables(self, prefix: str) -> dict[str, str]:
        """The variables with a prefix that the user set: in the environment, or else in `.env`."""
        given = {**self._file, **self._environment}
        return {name: value for name, value in given.items() if name.startswith(prefix) and value}

    @property
    def environment(self) -> dict[str, str]:
        """The environment, with the hub's variables of `.env`, and those that forbid the network if `offline`."""
        offline = OFFLINE if self.offline else {}
        return self.user_variables("HF_") | dict(self._environment) | offline

    def for_job(self, job: job_settings.Settings) -> StackSettings:
        """These settings, with the job's options over the user's variables of the same names."""
        known = self.user_variables(job_settings.PREFIX)
        chosen = {job_settings.PREFIX + name.upper(): (name, getattr(job, name)) for name in OF_STACK}
        changed = {
            variable: str(value)
            for variable, (name, value) in chosen.items()
            if variable in known or value != type(job).model_fields[name].default
        }
        copy = self.model_copy()
        copy._environment = {**self._environment, **changed}
        return copy


@dataclass(frozen=True, slots=True)
class JobCommand:
    """The job as the user asks for it."""

    settings: job_settings.Settings
    """Of options, environment and `.env`."""
    options: tuple[str, ...] = ()
    """The options by themselves, for the job's own command line."""


def load_job(options: Sequence[str] = ()) -> JobCommand:
    """Read the job's settings; `--help` among the options prints them and exits."""
    return JobCommand(job_settings.load(list(options)), tuple(options))


def variables() -> list[str]:
    """The environment variables that `StackSettings` reads."""
    return [PREFIX + name.upper() for name in StackSettings.model_fields]


def read_variables(path: Path) -> dict[str, str]:
    """The variables of an .env file; none where there is no file."""
    return {name: value or "" for name, value in job_settings.read_env_file(path).items()}


def load() -> StackSettings:
    """Read the settings; with STACK_OFFLINE, forbid the network to every program that this process starts.

    Raises:
        InvalidStackSetting: an invalid value, or a STACK_ variable that nothing reads.
        Unreadable: `.env` is not UTF-8.
    """
    read_variables(ENV_FILE)
    try:
        settings = StackSettings()
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + str(first["loc"][0]).upper()
        raise InvalidStackSetting(f"{name}={first['input']!r} is invalid: {first['msg']}") from error
    known = variables()
    for name in settings.user_variables(PREFIX):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1) or known
            meant = f"did you mean {' or '.join(near)}?"
            raise InvalidStackSetting(f"unknown variable {name} (environment or .env): {meant}")
    for one, other in combinations(KINDS, 2):
        if (port := settings.port(one)) == settings.port(other):
            names = f"{PREFIX}{one.upper()}_PORT and {PREFIX}{other.upper()}_PORT"
            raise InvalidStackSetting(f"{names} are both {port}: give them two ports")
    if settings.offline:
        os.environ |= OFFLINE
    return settings
