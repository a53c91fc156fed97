"""Asking other programs of this host, which may be missing, refuse or hang."""

from __future__ import annotations

import subprocess

# A program that does not answer in this time hangs: nvidia-smi on a broken driver, docker on a busy engine.
ANSWER_S = 20.0


def ask(*command: str) -> tuple[str | None, str]:
    """What a program prints, and the last line of its complaints; None and the reason where it cannot be asked."""
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
    return done.stdout.strip(), done.stderr.strip().rpartition("\n")[2]


def version(text: str) -> tuple[int, ...]:
    """The numbers of a version: `v2.24.1-desktop` is (2, 24, 1); none where it has none."""
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
