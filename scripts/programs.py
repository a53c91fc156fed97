"""Ask other programs of this host, which may be missing, fail or hang."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

# A program that does not answer in this time hangs: nvidia-smi on a broken driver, docker on a busy engine.
ANSWER_S = 20.0


def ask(*command: str, timeout_s: float | None = ANSWER_S) -> tuple[str | None, str]:
    """What a program prints, and the last line of its complaints; None and the reason where it fails."""
    name = Path(command[0]).name
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout_s)
    except FileNotFoundError:
        return None, f"{name} is not installed"
    except OSError as error:
        return None, f"{name} cannot be started: {error.strerror}"
    except subprocess.TimeoutExpired:
        return None, f"{name} gave no answer in {timeout_s:.0f} s"
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        return None, said[-1] if said else f"{name} ended with {done.returncode}"
    return done.stdout.strip(), done.stderr.strip().rpartition("\n")[2]


def nvidia_smi(fields: str, gpus: str) -> tuple[list[list[str]], str]:
    """What nvidia-smi tells of GPUs (`all`, or numbers such as `0,1`): for each GPU a value for each name in `fields`.

    Memory is in MiB. Empty, and the reason, where it tells nothing.
    """
    chosen = [] if gpus == "all" else [f"--id={gpus}"]
    said, reason = ask("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", *chosen)
    return [[field.strip() for field in line.split(",")] for line in (said or "").splitlines()], reason


def version(text: str) -> tuple[int, ...]:
    """The numbers of a version: `v2.24.1-desktop` is (2, 24, 1); none where it has none."""
    leading = re.match(r"v?(\d+(?:\.\d+)*)", text.strip())
    return tuple(map(int, leading[1].split("."))) if leading else ()


def dotted(numbers: tuple[int, ...]) -> str:
    """A version for people."""
    return ".".join(map(str, numbers))
