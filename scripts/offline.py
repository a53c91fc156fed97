"""`STACK_OFFLINE`: no command of ours makes a network attempt, nor does what it starts."""

from __future__ import annotations

import os

# Each program's own word for it: pip, uv, the hub's client.
VARIABLES = {
    "PIP_NO_INDEX": "1",
    "UV_OFFLINE": "1",
    "UV_PYTHON_DOWNLOADS": "never",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
}


def enforce() -> None:
    """Tell every program that this process starts; the Makefile tells those before it."""
    os.environ |= VARIABLES
