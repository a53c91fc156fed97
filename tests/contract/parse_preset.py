#!/usr/bin/env python3
"""Parse files as `vllm serve --config FILE` does, with vLLM's own parser, and print what arrived as JSON.

Runs in vLLM's environment, which has none of the tests' packages; one process for all files, for vLLM takes a quarter
of a minute to import.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import shlex
from pathlib import Path
from typing import Any

import yaml
from vllm import envs
from vllm.entrypoints.cli import serve
from vllm.utils.argparse_utils import FlexibleArgumentParser


def typed(value: Any) -> Any:
    """What JSON has no form for: a configuration object as its class' name and fields."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"class": type(value).__name__, **dataclasses.asdict(value)}
    return repr(value)


def parse(words: str) -> dict[str, Any]:
    """A preset's values as vLLM has them after parsing, or the reason why it refuses them.

    `words` are the file and the options behind it, as a shell has them.
    """
    file, *options = shlex.split(words)
    # As in vllm.entrypoints.cli.main, without the other subcommands.
    parser = FlexibleArgumentParser(prog="vllm")
    subparsers = parser.add_subparsers(required=False, dest="subparser")
    (command,) = serve.cmd_init()
    command.subparser_init(subparsers)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            arguments = parser.parse_args(["serve", "--config", file, *options])
            command.validate(arguments)
    except (SystemExit, ValueError, TypeError) as error:
        return {"error": complaint.getvalue().strip() or str(error), "values": {}}
    keys = [*yaml.safe_load(Path(file).read_text()), *(option.lstrip("-").partition("=")[0] for option in options)]
    return {"error": None, "values": {key: getattr(arguments, key.replace("-", "_"), None) for key in keys}}


def main() -> int:
    """Parse the files that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", nargs="+", help="file for `vllm serve --config`; in the same word options behind it")
    arguments = parser.parse_args()
    parsed = {words: parse(words) for words in arguments.preset}
    print(json.dumps({"presets": parsed, "variables": sorted(envs.environment_variables)}, default=typed))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
