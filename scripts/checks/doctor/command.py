"""`doctor`: all checks at once, one report, one exit code. A new check is a module and its name in CHECKS."""

from __future__ import annotations

import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout

from rich.console import Console

from scripts.checks.doctor import (
    caches,
    clock,
    compile_caches,
    compiler,
    disk,
    docker,
    gpu,
    gpu_in_container,
    gpu_measured,
    hub,
    locks,
    memory,
    model,
    ports,
    proxy,
)
from scripts.checks.doctor.context import Context
from scripts.checks.gpu.part import kept
from scripts.findings import Finding, as_json, exit_code, show, unchecked
from scripts.settings import StackSettings

Check = Callable[[Context], list[Finding]]

MODULES = (
    *(docker, gpu, gpu_in_container, gpu_measured, compiler, memory, disk, ports, hub),
    *(caches, compile_caches, clock, proxy, locks, model),
)
CHECKS: dict[str, Check] = {each.__name__.rpartition(".")[2].replace("_", " "): each.check for each in MODULES}

# A check that takes longer is reported as unchecked; the others do not wait for it.
LIMIT_S = 60.0


def result(name: str, future: Future[list[Finding]], deadline: float) -> list[Finding]:
    """A check's findings; a check that fails or hangs is unchecked."""
    try:
        return future.result(timeout=max(deadline - time.monotonic(), 0))
    except FutureTimeout:
        return [unchecked(name, f"the check took longer than {LIMIT_S:.0f} s")]
    except Exception as failure:  # a bug in one check must not hide the other findings
        return [unchecked(name, f"the check failed: {type(failure).__name__}: {failure}")]


def examine(context: Context, checks: dict[str, Check] = CHECKS) -> list[Finding]:
    """Run all checks at once; their findings in the order of the list."""
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
    """`doctor`: examine and report; 1 with an error among the findings."""
    begin = time.monotonic()
    context = Context(settings)
    findings = examine(context)
    seconds = time.monotonic() - begin
    if json_output:
        about = {"device": context.device, "preset": context.preset, "seconds": round(seconds, 2)}
        print(as_json(findings, **about, gpu_check=kept()))
    else:
        show(findings, console)
        console.print(summary(findings, seconds), style="dim", highlight=False)
    return exit_code(findings)


def summary(findings: Sequence[Finding], seconds: float) -> str:
    """The last line."""
    counts = Counter(each.severity for each in findings)
    told = ", ".join(f"{counts[each]} {each}" for each in ("error", "warning", "unchecked") if counts[each])
    return f"{len(findings)} findings: {told or 'no problem'}; {seconds:.1f} s"
