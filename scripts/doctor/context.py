"""What the checks may ask about: the settings, the host, and the preset that the host would get."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from scripts.devices import Gpu, choose, find_gpus
from scripts.preflight.options import Options, read_options
from scripts.services import preset_file, read_variables, start_arguments
from scripts.settings import StackError, StackSettings, user_variables

# A program that does not answer in this time hangs: nvidia-smi on a broken driver, docker on a busy engine.
ANSWER_S = 20.0


@dataclass
class Context:
    """The host as the checks see it."""

    settings: StackSettings

    @cached_property
    def gpus(self) -> list[Gpu]:
        """The host's GPUs, unless the settings want none."""
        return find_gpus() if self.settings.device != "cpu" else []

    @cached_property
    def device(self) -> str:
        """`cpu` or `cuda`: what the stack would run on."""
        if self.settings.device != "auto":
            return self.settings.device
        return "cuda" if self.gpus else "cpu"

    @cached_property
    def preset(self) -> str | None:
        """The preset that the stack would take; None where there is none for this host."""
        try:
            return choose(self.settings, self.gpus)[1]
        except StackError:
            return None

    @cached_property
    def environment(self) -> Mapping[str, str]:
        """The variables that the model server would have."""
        own = user_variables("HF_") | dict(os.environ)
        if self.preset is None:
            return own
        try:
            return own | read_variables(preset_file(self.preset).with_suffix(".env"))
        except StackError:
            return own

    @cached_property
    def options(self) -> Options | None:
        """vLLM's options by the preset; None where there is none."""
        if self.preset is None:
            return None
        try:
            file = preset_file(self.preset)
            return read_options(file, self.environment, self.device, start_arguments(self.settings))[0]
        except StackError:
            return None


def ask(*command: str) -> tuple[str | None, str]:
    """What a program prints; None and the reason where it cannot be asked."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S)
    except FileNotFoundError:
        return None, f"{command[0]} is not installed"
    except OSError as error:
        return None, f"{command[0]} cannot be started: {error.strerror}"
    except subprocess.TimeoutExpired:
        return None, f"{command[0]} gave no answer in {ANSWER_S:.0f} s"
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        return None, said[-1] if said else f"{command[0]} ended with {done.returncode}"
    return done.stdout.strip(), ""


def version(text: str) -> tuple[int, ...]:
    """The numbers of a version: `v2.24.1-desktop` is (2, 24, 1)."""
    numbers = []
    for part in text.strip().removeprefix("v").split("."):
        digits = part[: next((place for place, char in enumerate(part) if not char.isdigit()), len(part))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)


def dotted(numbers: tuple[int, ...]) -> str:
    """A version for people."""
    return ".".join(str(number) for number in numbers)
