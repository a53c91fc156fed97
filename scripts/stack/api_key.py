"""The key of the stack's own model server: made at first use, kept in one file that only its owner reads.

vLLM asks for it under /v1. Its /metrics, /invocations and /docs ask nobody: they are guarded by where the server
listens, which is a network of the containers alone, or 127.0.0.1.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from scripts import files as whole_file
from scripts.settings import InvalidStackSetting, StackSettings

# What the job and vLLM call it. Either may be set, and is then the key.
JOB_VARIABLE = "SPOTTER_API_KEY"
SERVER_VARIABLE = "VLLM_API_KEY"


def file_in(state: Path) -> Path:
    """Where the key of the stack with this state is."""
    return state / "api_key"


def ensure(file: Path) -> str:
    """The key in a file: the one that is there, or else a new one."""
    try:
        key = file.read_text().strip()
    except FileNotFoundError:
        key = ""
    if not key:
        key = secrets.token_urlsafe(32)
        whole_file.write(file, key.encode(), 0o600)
    return key


def settle(settings: StackSettings) -> None:
    """Give the stack a key: the one that the user set, else the last one, else a new one.

    Raises:
        InvalidStackSetting: two are set, or one that cannot be sent.
    """
    keys = {settings.user_variables(name).get(name) for name in (JOB_VARIABLE, SERVER_VARIABLE)} - {None}
    if len(keys) > 1:
        raise InvalidStackSetting(f"{JOB_VARIABLE} and {SERVER_VARIABLE} are two keys for one server: unset one")
    file = file_in(settings.state)
    key = (keys.pop() if keys else None) or ensure(file)
    if not re.fullmatch(r"[!-~]+", key):
        raise InvalidStackSetting(
            f"{JOB_VARIABLE} or {SERVER_VARIABLE} holds a blank or a character outside ASCII, which no HTTP header "
            "takes: set another key, or unset it for a generated one"
        )
    if not file.exists() or file.read_text().strip() != key:
        whole_file.write(file, key.encode(), 0o600)
    file.chmod(0o600)


def headers(file: Path | None) -> dict[str, str]:
    """The HTTP header that shows the key of a file; none without a file."""
    return {"Authorization": f"Bearer {ensure(file)}"} if file else {}


def without(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables for a process that has no use for the key."""
    return {name: value for name, value in environment.items() if name not in (JOB_VARIABLE, SERVER_VARIABLE)}
