"""`job`: write a job file to start from."""

from __future__ import annotations

import math
import os
import re
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from pipeline import job
from pipeline.errors import InvalidSetting, Unwritable
from pipeline.runtime.terminal import escaped
from scripts.environments import ROOT
from scripts.settings import StackSettings

TEMPLATE = Path(__file__).parent / "job_template.yaml"
# A test compares it with the code.
SCHEMA = ROOT / "docs" / "job.schema.json"


def editor_schema() -> dict[str, Any]:
    """The JSON Schema of a job file, for editors. It says nothing of an answer's schema, which Spotter checks."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **job.file_schema(), "title": "A Spotter job"}


def add_arguments(parser: ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("file", help="the new job file; .yaml is added to a name without an ending")
    parser.add_argument("--label", default="", help="what to find; by default the file's name")


def content(file: Path, label: str) -> str:
    """A job about `label`, with the line by which editors find the schema of a job file."""
    schema = os.path.relpath(SCHEMA, file.resolve().parent)

    def value(line: re.Match[str]) -> str:
        """A key with its text, quoted where YAML would read it as something else."""
        text = line[2].replace("LABEL", label)
        return f"{line[1]}: {yaml.safe_dump(text, width=math.inf, allow_unicode=True).splitlines()[0]}"

    template = re.sub(r"^(\w+): (.*LABEL.*)$", value, TEMPLATE.read_text(), flags=re.MULTILINE)
    return f"# yaml-language-server: $schema={schema}\n{template.replace('LABEL', label)}"


def run(settings: StackSettings, console: Console, *, file: str, label: str) -> None:
    """Write the file.

    Raises:
        InvalidSetting: there is no name or such a file already, or the label cannot be one.
        Unwritable: the file cannot be written.
    """
    path = Path(file).expanduser()
    if not path.name:
        raise InvalidSetting("no name for the new job file: make job NAME=cars, or ./spotter job cars")
    path = path if path.suffix in (".yaml", ".yml") else path.with_name(f"{path.name}.yaml")
    label = label or path.stem.replace("_", " ").replace("-", " ")
    if len(label.split("\n")) > 1 or not label.strip():
        raise InvalidSetting(f"--label {label!r} is not one line of text: give the detector's label of the objects")
    try:
        with path.open("x", encoding="utf-8") as new:
            new.write(content(path, label.strip()))
    except FileExistsError:
        raise InvalidSetting(f"{path} is there already: give another name, or remove it first") from None
    except OSError as error:
        raise Unwritable(f"{path} cannot be written: {error.strerror}: give another name") from error
    shown = path if path.resolve().is_relative_to(ROOT) else path.resolve()
    console.print(escaped(f"wrote {shown}: edit it, then `make preflight JOB={shown}`"), markup=False, soft_wrap=True)
