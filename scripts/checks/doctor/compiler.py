"""The compiler that vLLM needs on a GPU: Triton compiles the launcher of its kernels when the server starts."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

from scripts.checks.doctor.context import Context
from scripts.findings import Finding, error, ok

REMEDY = "install them (Debian, Ubuntu: the packages g++ and python3-dev), or use containers, whose image has them"


def check(context: Context) -> list[Finding]:
    """A C compiler and Python's headers, where vLLM runs as a process on a GPU; its image has them."""
    if context.device != "cuda" or context.in_containers:
        return []
    # The environment of vLLM is made from the same Python as this one.
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    found = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    missing = [what for what, there in (("a C compiler", found), (str(header), header.is_file())) if not there]
    if missing:
        return [error("compiler", f"missing: {', '.join(missing)}", "a C compiler and Python's headers", REMEDY)]
    return [ok("compiler", f"{found}, {header}")]
