"""The operator's commands: `./spotter` and the Makefile run them."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from python_on_whales import DockerException

from pipeline.errors import UsageError
from pipeline.runtime.terminal import make_console, open_standard_streams
from pipeline.version import version
from scripts.commands.job_options import located
from scripts.docker.client import explain
from scripts.environments import ROOT
from scripts.settings import StackError, load, load_job
from scripts.vllm.startup_causes import remedy_for

# A command is a line here and a module with a function `run(settings, console)`, which returns an exit code or None for
# 0. A module may have a function `add_arguments(parser)`; `run` gets them by name. Only the command that runs is
# imported: all of them take twice as long.
COMMANDS = {
    "run": ("scripts.commands.run", "up, then the job; takes the job's options: run --help"),
    "up": ("scripts.commands.up", "start what is not running, wait until it answers"),
    "down": ("scripts.commands.down", "stop the stack; requests in flight may finish"),
    "status": ("scripts.commands.status", "show the services"),
    "logs": ("scripts.commands.logs", "show the services' logs"),
    "shell": ("scripts.commands.shell", "open a shell where a service runs"),
    "job": ("scripts.commands.new_job", "write a job file to start from"),
    "fetch": ("scripts.commands.fetch_models", "get the models that are missing from the hub; verify all"),
    "build": ("scripts.commands.build", "build the containers' images that are missing or old"),
    "bundle": ("scripts.release.bundle", "make a folder that installs Spotter on a host without a network"),
    "unbundle": ("scripts.release.unbundle", "load images and models of a bundle, as its install.sh does"),
    "upgrade": ("scripts.release.upgrade", "show what another version changes, ask, then change to it"),
    "report": ("scripts.commands.report", "make a run's report again from its tables"),
    "try": ("scripts.commands.try_one", "show box, request and answer for one picture; takes the job's options"),
    "estimate": ("scripts.commands.estimate", "say what a run would cost, by the last run of the job; asks no service"),
    "export": ("scripts.commands.export", "write a finished run as COCO, YOLO, Label Studio, FiftyOne, datasets, CSV"),
    "review": ("scripts.commands.review", "write the doubtful answers of a finished run as tasks of Label Studio"),
    "merge": ("scripts.commands.merge", "join the shards of a run into one run's folder"),
    "compare": ("scripts.commands.compare", "compare the answers of two finished runs"),
    "sql": ("scripts.commands.sql", "ask the tables of a finished run with SQL"),
    "profile": ("scripts.profile.command", "run the job afresh and say where its time went; takes its options as well"),
    "doctor": ("scripts.checks.doctor.command", "say what this host has and lacks, and what to do; change nothing"),
    "preflight": ("scripts.commands.preflight", "check preset, model and job without loading weights"),
    "smoke": ("scripts.commands.smoke", "start the stack from nothing, run the job, check it, remove all again"),
    "sbom": ("scripts.commands.sbom", "list what environments and images consist of, and check the licences"),
    "clean": ("scripts.commands.clean", "stop the stack and remove what it made; asks first"),
}
# The commands that take the job's options beside their own.
OF_THE_JOB = ("run", "try", "estimate", "profile")

DESCRIPTION = "Operate Spotter: its services, and the job that uses them. `make` runs the same commands."
EPILOG = """Settings come from the environment and from .env (.env.example lists them). Relative paths in options start
at the folder that ./spotter is called from, all others at the repository's root. Exit codes: 0 done, 1 failed, 2
invalid input, 130 interrupted; `run` and `profile` end with the job's code."""


def parse(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The command of a command line, and the arguments that it gets by name."""
    parser = argparse.ArgumentParser(prog="./spotter", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False)
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT,
        help="where relative paths in options start; ./spotter gives the folder that it is called from",
    )
    parser.add_argument("--version", action="version", version=version())
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, purpose) in COMMANDS.items():
        command = parsers.add_parser(
            name,
            help=purpose,
            description=f"{purpose[0].upper()}{purpose[1:]}.",
            epilog="The job's options: ./spotter run --help" if name in OF_THE_JOB else None,
            add_help=name != "run",
            allow_abbrev=False,
        )
        if name in arguments and (add_arguments := getattr(module_of(name), "add_arguments", None)):
            add_arguments(command)
    parsed, options = parser.parse_known_args(arguments)
    given = vars(parsed)
    name, folder = given.pop("command"), given.pop("folder")
    for argument in {"preset", "existing", "compare", "run"} & given.keys():
        if given[argument] and (place := folder / given[argument]).exists() and folder != ROOT:
            given[argument] = str(place)
    if given.get("to") and (folder / given["to"]).is_dir():  # a bundle; else a tag
        given["to"] = str(folder / given["to"])
    if "runs" in given and folder != ROOT:
        given["runs"] = [str(folder / run) if (folder / run).exists() else run for run in given["runs"]]
    for argument in {"file", "output", "bundle"} & given.keys():
        if given[argument] and folder != ROOT:
            given[argument] = str(folder / Path(given[argument]).expanduser())
    if name in OF_THE_JOB:
        given["job"] = load_job(located(options, folder))
    elif options:
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    return name, given


def module_of(command: str) -> ModuleType:
    """A command's module."""
    return importlib.import_module(COMMANDS[command][0])


def main(arguments: list[str]) -> int:
    """0: done. 1: the stack could not do it. 2: a usage error. 130: interrupted. `run` ends with the job's own code."""
    open_standard_streams()
    console = make_console(highlight=False)  # numbers in a sentence need no colour
    if not console.is_terminal:
        console.width = 160  # a file or a pipe needs no narrow lines
    try:
        name, given = parse(arguments)
        run: Callable[..., int | None] = module_of(name).run
        return run(load(), console, **given) or 0
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StackError as error:
        error.tell()
        return 1
    except DockerException as error:
        return failed(explain(error))
    except OSError as error:  # of this host: a full disk, a folder that cannot be written
        return failed(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def failed(reason: str) -> int:
    """Say why a command failed, and what helps; its exit code."""
    print(f"error: {reason} -> {remedy_for(reason) or '`make doctor` says what this host lacks'}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
