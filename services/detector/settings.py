"""The service's settings: environment variables `DETECTOR_*`, read and checked once, when the service starts."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

PREFIX = "DETECTOR_"

# Mosec reads variables of its own, which would override these settings.
SERVER_PREFIX = "MOSEC_"

# The value of DETECTOR_BACKEND that leaves the choice to the model's files.
AUTO = "auto"

Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class SettingsError(Exception):
    """The environment holds invalid variables; one line for each."""


class Settings(BaseModel):
    """Everything that an operator can set, with its default.

    Each field is the environment variable `DETECTOR_<NAME>`; an empty variable counts as not set. Timings in this
    package are CPU time on one core of a two-core machine, unless they say otherwise: a tiny RT-DETRv2 (0.89 million
    parameters, input 256 x 192) on drawn 640 x 480 scenes as JPEGs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(
        default="samples/models/tiny-detector/model.onnx",
        description="an .onnx file, or a checkpoint of transformers: its folder or its id on the Hugging Face hub",
    )
    backend: str = Field(default=AUTO, description="the kind of model: a name in services/detector/backends")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub id (none: main)")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: cuda where there is one")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto",
        # Against float32, the tiny model's boxes move by 0.2 px on average (0.4 at most) in float16 and by 1.7 px (8.5)
        # in bfloat16, whose step near 1 is 1/256 of the image. On a CPU float16 takes 14 times as long as float32.
        description="number format of the weights; auto: float32 on a CPU, float16 on a GPU",
    )
    # 0.4 counts the dogs of drawn scenes best (494 of 500 scenes exact) once duplicates are suppressed at 0.6.
    threshold: Share = Field(default=0.4, description="lowest score of a box, if the request has no threshold")
    nms_iou: PositiveShare = Field(default=0.6, description="a box that overlaps a better one by more is dropped")
    max_batch: Count = Field(default=8, description="most images in one pass through the model")
    max_wait_ms: Count = Field(default=10, description="longest wait for a batch to fill")
    queue: Count = Field(default=128, description="most waiting requests; the next one is refused with 429")
    max_body_mb: Count = Field(default=20, description="largest request body in MiB; a larger one is refused with 413")
    timeout_s: Count = Field(
        default=60,
        description="seconds until an answer of 408; also how long a stop waits for open requests",
    )
    # Decoding and scaling takes 2.4 ms of CPU for 640 x 480 and 8 ms for 1080p, the tiny model 7 ms an image:
    # one worker keeps a CPU host busy. A GPU that takes 2 ms an image wants four.
    decode_workers: Count = Field(default=1, description="processes that decode images")
    memory_share: PositiveShare | None = Field(
        default=None, description="largest share of the GPU's memory for this service (none: no limit)"
    )
    # With two threads on two shared cores a pass took four times as long as with one.
    threads: Count = Field(default=1, description="CPU threads of the model")
    host: IPv4Address = Field(default=IPv4Address("127.0.0.1"), description="IPv4 address to listen on")
    port: Annotated[int, Field(ge=1, le=65535)] = Field(default=8001, description="port to listen on")

    @field_validator("backend")
    @classmethod
    def refuse_unknown_backend(cls, name: str) -> str:
        """See that a backend is in the registry."""
        from services.detector.backends import BACKENDS  # which imports this module

        if name not in (AUTO, *BACKENDS):
            raise PydanticCustomError("backend", f"known are {', '.join((AUTO, *BACKENDS))}")
        return name


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Check the `DETECTOR_*` variables of a process environment.

    Raises:
        SettingsError: a value is invalid, a `DETECTOR_` variable is unknown, or a `MOSEC_` variable is set.
    """
    problems = [
        f"{name} is set, but the detector service configures its server itself: unset it and use {PREFIX}* instead"
        for name in sorted(environ)
        if name.startswith(SERVER_PREFIX)
    ]
    given: dict[str, str] = {}
    for name, value in sorted(environ.items()):
        field = name.removeprefix(PREFIX).lower()
        if not name.startswith(PREFIX):
            continue
        if field not in Settings.model_fields:
            problems.append(f"{name} is not a setting of the detector service: {_suggestion(field)}")
        elif value:
            given[field] = value
    try:
        settings = Settings.model_validate(given)
    except ValidationError as error:
        problems += [
            f"{variable(str(detail['loc'][0]))}={detail['input']!r}: {detail['msg'][0].lower()}{detail['msg'][1:]}"
            for detail in error.errors()
        ]
        raise SettingsError("\n".join(problems)) from None
    if settings.device == "cpu" and settings.memory_share is not None:
        problems.append(
            f"DETECTOR_MEMORY_SHARE={settings.memory_share} limits a GPU, but DETECTOR_DEVICE=cpu: unset one"
        )
    if problems:
        raise SettingsError("\n".join(problems))
    return settings


def variable(field: str) -> str:
    """The environment variable of a field of `Settings`."""
    return PREFIX + field.upper()


def _suggestion(field: str) -> str:
    close = difflib.get_close_matches(field, Settings.model_fields, n=1)
    if close:
        return f"did you mean {variable(close[0])}?"
    return "unset it; `python -m services.detector --help` lists all variables"
