"""The stack's settings: read once, from the environment and `.env`."""

from __future__ import annotations

import difflib
import os
import sys
from pathlib import Path
from typing import Literal

from dotenv import dotenv_values
from pydantic import ByteSize, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pipeline.settings import EmptyIsDefault
from scripts.environments import ROOT

PREFIX = "STACK_"
ENV_FILE = ROOT / ".env"


class StackError(Exception):
    """The stack cannot do what was asked; the message says what, why and what to do."""

    told = False
    """Whether that was shown already."""

    def tell(self) -> None:
        """Show it, once."""
        if not self.told:
            print(f"error: {self}", file=sys.stderr, flush=True)
        self.told = True


class StackSettings(BaseSettings):
    """Where and how the services run."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_file=ENV_FILE, extra="ignore")

    engine: Literal["auto", "compose", "process"] = Field(
        "auto", description="auto: compose where Docker answers and has the images or can build them, else process"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where nvidia-smi finds a GPU")
    gpu: int = Field(0, ge=0, description="the GPU that the stack takes, by its number at nvidia-smi")
    preset: str = Field("auto", description="a file of services/vllm/presets by its name, or a path; auto: by the GPU")
    start: Literal["full", "fast"] = Field(
        "full", description="fast: a file of services/vllm/starts over the preset; sooner ready, slower answers"
    )
    offline: bool = Field(False, description="no network attempt at all: what is missing on this host is an error")
    host: str = Field("127.0.0.1", description="the address that the services listen on")
    vllm_port: int = Field(8000, ge=1, le=65535, description="the model server's port")
    detector_port: int = Field(8001, ge=1, le=65535, description="the detector's port")
    publish: bool = Field(False, description="compose: let programs of this host reach the services, at host and ports")
    start_timeout_s: float = Field(1800.0, gt=0, description="longest that a service may take to become ready")
    vllm_memory: ByteSize | None = Field(
        None, gt=0, description="compose: the most that vLLM may use, such as 24GiB; by default 6GiB, on a GPU 48GiB"
    )
    detector_memory: ByteSize | None = Field(
        None, gt=0, description="compose: the most that the detector may use; by default 2GiB, on a GPU 8GiB"
    )
    pipeline_memory: ByteSize = Field(
        # 300 scenes with 1,000 dogs took 0.5 GiB; large photographs take more.
        ByteSize(4 * 1024**3),
        gt=0,
        description="compose: the most that the job may use",
    )
    state: Path = Field(ROOT / ".spotter", description="folder for process ids, logs and caches")

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *_: object, **sources: PydanticBaseSettingsSource
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The usual sources, but that an empty variable is one that is not set, also where `.env` sets it."""
        return (sources["init_settings"], EmptyIsDefault(settings_cls), sources["dotenv_settings"])


def variables() -> list[str]:
    """The environment variables that `StackSettings` reads."""
    return [PREFIX + name.upper() for name in StackSettings.model_fields]


def user_variables(prefix: str) -> dict[str, str]:
    """The variables with a prefix that the user set: in the environment, or else in `.env`."""
    in_file = dotenv_values(ENV_FILE) if ENV_FILE.is_file() else {}
    return {name: value for name, value in {**in_file, **os.environ}.items() if name.startswith(prefix) and value}


def load() -> StackSettings:
    """Read the settings.

    Raises:
        StackError: a value that cannot be, or a STACK_ variable that nothing reads.
    """
    known = variables()
    for name in user_variables(PREFIX):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1) or known
            raise StackError(f"unknown variable {name} (environment or .env): did you mean {' or '.join(near)}?")
    try:
        settings = StackSettings()
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + str(first["loc"][0]).upper()
        raise StackError(f"{name}={first['input']!r} will not do: {first['msg']}") from error
    if settings.vllm_port == settings.detector_port:
        raise StackError(f"STACK_VLLM_PORT and STACK_DETECTOR_PORT are both {settings.vllm_port}: give them two ports")
    return settings
