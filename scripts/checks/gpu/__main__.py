#!/usr/bin/env python3
"""Measure on this host's GPU what no other test can, in three parts of at most ten minutes each:

    detector   the detector alone: images a second for each batch, memory, boxes in half precision
    model      the production architecture with dummy weights under a preset: start, memory, rows a second
    job        the whole job with the tiny models

Each prints a table and keeps its figures for `make doctor JSON=1`. With --rehearse, each runs on the CPU with its small
stand-in: the figures then say nothing of a GPU. Makes the environments that are missing.
"""

from __future__ import annotations

import argparse
import sys
import time

from rich.console import Console

from scripts.checks.gpu import detector, job, model
from scripts.checks.gpu.part import Host, Part, keep, markdown
from scripts.environments import EnvironmentFailed
from scripts.settings import StackError, StackSettings
from scripts.stack.devices import PRESETS, find_gpus

PARTS: dict[str, Part] = {"detector": detector.measure, "model": model.measure, "job": job.measure}


def host_of(arguments: argparse.Namespace) -> Host | None:
    """This host; None without a GPU, unless for a rehearsal."""
    if arguments.rehearse:
        return Host("cpu", "CPU, rehearsal", 0, arguments.port, ("cpu",))
    gpus = find_gpus(StackSettings())
    if not gpus:
        return None
    gpu = gpus[0]
    fitting = [name for name, card_mib in PRESETS if gpu.memory_mib >= card_mib]
    return Host("cuda", gpu.name, gpu.memory_mib, arguments.port, tuple(arguments.presets or fitting[:1]))


def main() -> int:
    """0: every part ran and what it expects holds. 1: one did not, or there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with small stand-ins")
    parser.add_argument("--presets", nargs="+", help="for the model (default: the largest that fits)")
    parser.add_argument("--port", type=int, default=18800, help="first of three free ports (default: %(default)s)")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
    host, console = host_of(arguments), Console(stderr=True, markup=False)
    if host is None:
        print("error: nvidia-smi finds no GPU: nothing was checked; --rehearse runs on the CPU", file=sys.stderr)
        return 1
    failed = False
    for name in arguments.parts or PARTS:
        console.print(f"{name}, on {host.name} ...", style="dim", markup=False, highlight=False)
        begin = time.monotonic()
        try:
            result = PARTS[name](host)
        except (StackError, EnvironmentFailed, OSError) as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            failed = True
            continue
        seconds = time.monotonic() - begin
        print(f"\n{name}, {host.name}, {seconds:.0f} s\n\n{markdown(result)}\n")
        for sentence in result.wrong:
            print(f"error: {name}: {sentence}", file=sys.stderr)
        print(f"kept: {keep(name, host, result, seconds)}")
        failed |= bool(result.wrong)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
