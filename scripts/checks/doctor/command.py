"""`doctor`: all checks at once, one report, one exit code."""

from __future__ import annotations

import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout

from rich.console import Console

from scripts.checks.doctor import (
    caches,
    clock,
    compile_caches,
    disk,
    docker,
    gpu,
    gpu_in_container,
    hub,
    locks,
    memory,
    model,
    ports,
    proxy,
)
from scripts.checks.doctor.context import Context
from scripts.findings import Finding, as_json, exit_code, show
from scripts.settings import StackSettings

Check = Callable[[Context], list[Finding]]

CHECKS: dict[str, Check] = {
    "docker": docker.check,
    "gpu": gpu.check,
    "gpu in containers": gpu_in_container.check,
    "memory": memory.check,
    "disk": disk.check,
    "ports": ports.check,
    "model at the hub": hub.check,
    "caches": caches.check,
    "compile caches": compile_caches.check,
    "clock": clock.check,
    "proxy": proxy.check,
    "locks": locks.check,
    "model": model.check,
}

# No check waits longer for what it asks; one that does is told, and the others are not held up.
LIMIT_S = 60.0


def result(name: str, future: Future[list[Finding]], deadline: float) -> list[Finding]:
    """A check's findings; a check that failed or hangs says so, and is never taken for a good one."""
    try:
        return future.result(timeout=max(deadline - time.monotonic(), 0))
    except FutureTimeout:
        return [Finding(name, "unchecked", f"the check took longer than {LIMIT_S:.0f} s")]
    except Exception as error:  # a bug in one check must not hide what the others found
        return [Finding(name, "unchecked", f"the check failed: {type(error).__name__}: {error}")]


def examine(context: Context, checks: dict[str, Check] | None = None) -> list[Finding]:
    """Run all checks at once; their findings in the order of the list."""
    checks = CHECKS if checks is None else checks
    deadline = time.monotonic() + LIMIT_S
    pool = ThreadPoolExecutor(max_workers=max(len(checks), 1))
    futures = {name: pool.submit(check, context) for name, check in checks.items()}
    found = [finding for name, future in futures.items() for finding in result(name, future, deadline)]
    pool.shutdown(wait=False, cancel_futures=True)
    return found


def add_arguments(parser: ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("--json", action="store_true", dest="json_output", help="for a machine or an issue report")


def run(settings: StackSettings, console: Console, *, json_output: bool = False) -> int:
    """`doctor`: examine, report; 1 when something cannot work."""
    begin = time.monotonic()
    context = Context(settings)
    findings = examine(context)
    seconds = time.monotonic() - begin
    if json_output:
        print(as_json(findings, device=context.device, preset=context.preset, seconds=round(seconds, 2)))
    else:
        show(findings, console)
        console.print(summary(findings, seconds), style="dim", highlight=False)
    return exit_code(findings)


def summary(findings: Sequence[Finding], seconds: float) -> str:
    """The last line."""
    counts = [
        (severity, sum(each.severity == severity for each in findings))
        for severity in ("error", "warning", "unchecked")
    ]
    told = ", ".join(f"{count} {severity}" for severity, count in counts if count) or "nothing to complain about"
    return f"{len(findings)} findings: {told}; {seconds:.1f} s"
