"""`python -m scripts`: the operator's commands behind the Makefile."""

from __future__ import annotations

import argparse
import os
import sys

from rich.console import Console

from scripts import environments, stack
from scripts.process_engine import ProcessEngine
from scripts.settings import StackError, load


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts", description="Operate Spotter's stack.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start what is not running, wait until it answers")
    commands.add_parser("down", help="stop the stack")
    commands.add_parser("status", help="show the services")
    logs = commands.add_parser("logs", help="show the services' logs")
    logs.add_argument("service", nargs="?", choices=("detector", "vllm"), help="by default both")
    logs.add_argument("--follow", action="store_true", help="go on until Ctrl-C")
    commands.add_parser("run", help="up, then the job; takes the options of `python -m pipeline`", add_help=False)
    if arguments[:1] == ["run"]:  # its options are the pipeline's to read
        return argparse.Namespace(command="run", options=arguments[1:])
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """0: done. 1: the stack could not do it. 130: interrupted. `run` ends with the job's own code."""
    parsed = parse(arguments)
    console = Console()
    if not console.is_terminal:
        console.width = 160  # for a file or a pipe nothing needs to be folded
    try:
        settings = load()
        if parsed.command == "up":
            running = stack.up(settings, console)
            console.print(
                f"the stack is up ({running.device}, preset {running.preset}); next: make run", highlight=False
            )
        elif parsed.command == "down":
            stack.down(settings, console)
        elif parsed.command == "status":
            console.print(stack.status(settings))
        elif parsed.command == "logs":
            logs = ProcessEngine(settings.state).logs
            files = [logs / f"{name}.log" for name in ([parsed.service] if parsed.service else ["detector", "vllm"])]
            present = [str(path) for path in files if path.exists()]
            if not present:
                raise StackError("no logs yet: start the stack with 'make up'")
            os.execvp("tail", ["tail", "-n", "100", *(["-F"] if parsed.follow else []), *present])
        elif parsed.command == "run":
            variables = {} if {"-h", "--help"} & set(parsed.options) else stack.up(settings, console).job_variables
            python = str(environments.python("operator"))
            os.execve(python, [python, "-m", "pipeline", *parsed.options], {**os.environ, **variables})
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
