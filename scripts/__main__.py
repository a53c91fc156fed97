"""The operator's commands: `./spotter` and the Makefile run them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from python_on_whales import DockerException
from rich.console import Console

from pipeline.errors import UsageError
from scripts import offline
from scripts.checks.preflight import command as preflight
from scripts.commands import stack
from scripts.commands.job_options import locate, located
from scripts.docker.client import explain
from scripts.environments import ROOT
from scripts.settings import StackError, load
from scripts.vllm.startup_causes import remedy_for

SERVICES = ("detector", "vllm")

DESCRIPTION = "Operate Spotter: its services, and the job that uses them. `make` runs the same commands."
EPILOG = """Settings come from the environment and from .env (.env.example lists them). Relative paths in options start
at the folder that ./spotter is called from, all others at the repository's root. Exit codes: 0 done, 1 failed, 2
invalid input, 130 interrupted; `run` and `profile` end with the job's code."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="./spotter", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False)
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT,
        help="where relative paths in options start; ./spotter gives the folder that it is called from",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start what is not running, wait until it answers")
    commands.add_parser("fetch", help="get the services' models from the hub: what is missing; verifies all")
    commands.add_parser("down", help="stop the stack")
    commands.add_parser("status", help="show the services")
    commands.add_parser("build", help="build the containers' images, where they are missing or old")
    commands.add_parser("smoke", help="bring the stack up from nothing, run the job, check it, take all down again")
    logs = commands.add_parser("logs", help="show the services' logs")
    logs.add_argument("service", nargs="?", choices=SERVICES, help="by default both")
    logs.add_argument("--follow", action="store_true", help="go on until Ctrl-C")
    shell = commands.add_parser("shell", help="open a shell in a service's container")
    shell.add_argument("service", nargs="?", choices=SERVICES, default="vllm", help="by default vllm")
    cleaning = commands.add_parser("clean", help="stop the stack and remove what it made; asks first")
    cleaning.add_argument(
        "--caches", action="store_true", help="also models and compile caches, which take long to get"
    )
    cleaning.add_argument("--yes", action="store_true", help="do not ask")
    examine = commands.add_parser("doctor", help="say what this host has and lacks, and what to do; changes nothing")
    examine.add_argument("--json", action="store_true", help="for a machine or an issue report")
    check = commands.add_parser("preflight", help="check preset, model and job without loading weights")
    check.add_argument("--preset", help="by default the host's")
    check.add_argument("--full", action="store_true", help="also with vLLM's own code")
    check.add_argument("--json", action="store_true", help="for a machine or an issue report")
    commands.add_parser("run", help="up, then the job; takes the job's options (--help)", add_help=False)
    profiling = commands.add_parser(
        "profile",
        help="run the job afresh and say where its time went; takes the job's options (--help) as well",
        description="Run the job in a folder of its own, so that nothing is done already, and say where its time went. "
        "Every other option is the job's: see `./spotter run --help`.",
        allow_abbrev=False,
    )
    profiling.add_argument("--run", metavar="FOLDER", help="show this run's profile; nothing is run")
    profiling.add_argument("--compare", metavar="FOLDER", help="show the profile beside this run's")
    parsed, options = parser.parse_known_args(arguments)
    if options and parsed.command not in ("run", "profile"):
        parser.error(f"unrecognized arguments: {' '.join(options)}")
    return argparse.Namespace(**vars(parsed), options=located(options, parsed.folder))


def main(arguments: list[str]) -> int:
    """0: done. 1: the stack could not do it. 2: a usage error. 130: interrupted. `run` ends with the job's own code."""
    parsed = parse(arguments)
    console = Console()
    if not console.is_terminal:
        console.width = 160  # for a file or a pipe nothing needs to be folded
    try:
        return command(parsed, console)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StackError as error:
        error.tell()
        return 1
    except DockerException as error:
        told = explain(error)
        print(f"error: {told} -> {remedy_for(told) or '`make doctor` says what this host lacks'}", file=sys.stderr)
        return 1
    except OSError as error:  # of this host: a full disk, a folder that cannot be written
        told = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"error: {told} -> {remedy_for(told) or '`make doctor` says what this host lacks'}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def command(parsed: argparse.Namespace, console: Console) -> int:
    """Do what the command line says. What one command alone needs is imported for it: all of it takes twice as long."""
    settings = load()
    if settings.offline:
        offline.enforce()
    if parsed.command == "up":
        running, engine = stack.up(settings, console)
        console.print(
            f"the stack is up (engine {engine.name}, {running.device}, preset {running.preset}); next: make run",
            highlight=False,
        )
    elif parsed.command == "fetch":
        stack.fetch_models(settings, console)
    elif parsed.command == "down":
        stack.down(settings, console)
    elif parsed.command == "status":
        console.print(stack.status(settings))
    elif parsed.command == "build":
        stack.build(settings, console)
    elif parsed.command == "smoke":
        from scripts.commands import smoke

        return smoke.run(settings, console)
    elif parsed.command == "logs":
        stack.logs(settings, [parsed.service] if parsed.service else list(SERVICES), parsed.follow)
    elif parsed.command == "shell":
        stack.shell(settings, parsed.service)
    elif parsed.command == "clean":
        from scripts.commands import clean

        return clean.run(settings, console, caches=parsed.caches, confirmed=parsed.yes)
    elif parsed.command == "doctor":
        from scripts.checks.doctor import command as doctor

        return doctor.run(settings, console, json_output=parsed.json)
    elif parsed.command == "preflight":
        if parsed.preset:
            path = locate(parsed.preset, parsed.folder)  # or a bundled preset's name
            settings = settings.model_copy(update={"preset": path if Path(path).is_file() else parsed.preset})
        place = stack.preflight_place(settings) if parsed.full else None
        in_containers = stack.plan(settings)[1].name == "compose"
        return preflight.run(settings, console, place=place, in_containers=in_containers, json_output=parsed.json)
    elif parsed.command == "profile":
        from scripts.profile import command as profile

        return profile.run(console, existing=parsed.run, compare=parsed.compare, options=parsed.options)
    elif parsed.command == "run":
        stack.run(settings, console, parsed.options)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
