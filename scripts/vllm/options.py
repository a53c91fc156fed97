"""The options of `vllm serve`, from a preset and a command line, checked against the options of this vLLM."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from scripts.findings import Finding, error, warning
from scripts.vllm import tables

MULTIPLES = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

WANTED = {
    "integer": "a whole number",
    "number": "a number",
    "count": "a whole number, or one like 4k or 256M",
    "count or auto": "a whole number, one like 4k, or auto",
    "json": "JSON",
}


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a server's start."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """By the option's name without dashes, in its own type; without the options at their default."""
    environment: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    """`cpu` or `cuda`."""

    def number(self, name: str) -> float | None:
        """A numeric option, if it is set and is a number."""
        value = self.values.get(name)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def text(self, name: str) -> str | None:
        """A text option, if it is set."""
        value = self.values.get(name)
        return value if isinstance(value, str) else None

    def mapping(self, name: str) -> Mapping[str, Any]:
        """A JSON option, or nothing where it is not set."""
        value = self.values.get(name)
        return value if isinstance(value, dict) else {}


class Refused(Exception):
    """vLLM's parser refuses a value; the message says what it accepts."""


def count(text: str) -> int:
    """A whole number as vLLM's parser reads it: 4096, 4k, 4.5k, 4K."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgGtT])", text.strip())
    if match is None:
        return int(text)
    number, unit = match.groups()
    return int(number) * MULTIPLES[unit] if unit.isupper() else int(float(number) * MULTIPLES[unit])


def convert(kind: str, text: str) -> Any:
    """A value in its option's own type.

    Raises:
        Refused: the text is no such value.
    """
    try:
        if kind == "integer":
            return int(text)
        if kind == "number":
            return float(text)
        if kind == "count or auto" and text.strip().lower() in ("auto", "-1"):
            return -1
        if kind.startswith("count"):
            return count(text)
        if kind == "json":
            return json.loads(text)
    except ValueError as error:
        raise Refused(f"{WANTED[kind]} ({error})" if kind == "json" else WANTED[kind]) from error
    return text


Known = Mapping[str, tuple[str, dict[str, Any]]]
"""Every name of an option, with its first name and its entry in the table."""


def names(device: str) -> Known:
    """The options of the build for a device, `cpu` or `cuda`."""
    found = {}
    for name, entry in tables.options(device).items():
        for alias in (name, *entry.get("also", ()), *([entry["off"]] if "off" in entry else ())):
            found[alias] = (name, entry)
    return found


def resolve(given: str, known: Known) -> tuple[str, dict[str, Any]] | None:
    """The option that a name means; like argparse, also by an unambiguous beginning."""
    if given in known:
        return known[given]
    begins = {known[name][0]: known[name] for name in known if name.startswith(given)}
    return next(iter(begins.values())) if len(begins) == 1 else None


def pairs_of_arguments(arguments: Sequence[str], known: Known) -> list[tuple[str, Any]]:
    """Command-line arguments as names and values; a bare one is the model."""
    pairs: list[tuple[str, Any]] = []
    for argument in arguments:
        if argument.startswith("--"):
            name, has_value, value = argument[2:].partition("=")
            head, dot, rest = name.partition(".")
            pairs.append((head.replace("_", "-") + dot + rest, value if has_value else True))
        elif pairs and pairs[-1][1] is True and takes_value(pairs[-1][0], known):
            pairs[-1] = (pairs[-1][0], argument)
        elif pairs and takes_many(pairs[-1][0], known):
            before = pairs[-1][1]
            pairs[-1] = (pairs[-1][0], [*(before if isinstance(before, list) else [before]), argument])
        else:
            pairs.append(("model", argument))
    return pairs


def takes_value(name: str, known: Known) -> bool:
    """Whether a value follows an option; an unknown option counts as one with a value."""
    option = resolve(name.partition(".")[0], known)
    return option is None or option[1]["kind"] != "switch"


def takes_many(name: str, known: Known) -> bool:
    """Whether a list follows an option."""
    option = resolve(name, known)
    return option is not None and bool(option[1].get("many"))


def nearest(name: str, candidates: Iterable[str]) -> str:
    """The likely meaning of a misspelt name, as the end of a sentence."""
    near = difflib.get_close_matches(name, list(candidates), n=2, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else "see `vllm serve --help=all`"


def check_value(name: str, entry: Mapping[str, Any], value: Any, where: str) -> tuple[Any, list[Finding]]:
    """A value in its own type, and its faults."""

    def wrong(found: str, required: str, remedy: str) -> Finding:
        return error("option", f"{where}: --{name} {found}", required, remedy)

    kind = entry["kind"]
    if kind == "switch":
        if isinstance(value, bool):
            return value, []
        return True, [wrong(f"is a switch and got {value!r}", "no value", f"write --{name} alone, in YAML: true")]
    if value is True:
        if entry.get("optional"):
            return value, []
        return None, [wrong("has no value", WANTED.get(kind, "a value"), "give it one")]
    if isinstance(value, list) and not entry.get("many") and kind != "json":
        return None, [wrong(f"got a list: {value!r}", "one value", "keep one of them")]
    texts = [as_text(each) for each in value] if isinstance(value, list) else [as_text(value)]
    if kind == "json" and isinstance(value, list | dict):
        texts = [json.dumps(value)]
    try:
        converted = [convert(kind, text) for text in texts]
    except Refused as refusal:
        return None, [wrong(f"is {value!r}", str(refusal), "correct the value")]
    findings = []
    for each in converted:
        if (choices := entry.get("choices")) and str(each) not in choices:
            findings.append(wrong(f"is {each!r}", f"one of {', '.join(choices)}", nearest(str(each), choices)))
        if (keys := entry.get("keys")) and isinstance(each, dict):
            for key in each.keys() - set(keys):
                findings.append(wrong(f"has an unknown key {key!r}", f"keys: {', '.join(keys)}", nearest(key, keys)))
    return (converted if entry.get("many") else converted[0]), findings


def as_text(value: Any) -> str:
    """A YAML value as vLLM puts it on its command line."""
    return json.dumps(value) if isinstance(value, dict) else str(value)


def check_pairs(pairs: Iterable[tuple[str, Any]], where: str, values: dict[str, Any], known: Known) -> list[Finding]:
    """Add the options of one source to `values`, and report the invalid ones."""
    findings: list[Finding] = []
    for given, value in pairs:
        head, dot, rest = given.partition(".")
        option = resolve(head, known)
        if option is None:
            found = f"{where}: --{given} is no option of vLLM {tables.read('options')['version']}"
            remedy = f"correct or remove it: {nearest(given, known)}"
            findings.append(error("option", found, "options of this version", remedy))
            continue
        name, entry = option
        if head == entry.get("off"):
            values[name] = False
            continue
        if dot:
            try:
                parsed = json.loads(str(value))
            except ValueError:
                parsed = value
            for key in reversed(rest.split(".")):
                parsed = {key: parsed}
            merged = values.get(name)
            value = {**(merged if isinstance(merged, dict) else {}), **parsed}
        converted, wrong = check_value(name, entry, value, where)
        findings += wrong
        if converted is not None:
            values[name] = converted
    return findings


def read_preset(preset: Path) -> tuple[dict[str, Any], list[Finding]]:
    """The content of a preset's file, and its faults."""
    try:
        content = yaml.safe_load(preset.read_text())
    except OSError as fault:
        remedy = "correct STACK_PRESET, or the file's permissions"
        return {}, [error("preset", f"{preset}: {fault.strerror}", "a YAML file that can be read", remedy)]
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        return {}, [error("preset", f"{preset}: {' '.join(str(fault).split())}", "YAML", "correct the file there")]
    if not isinstance(content, dict):
        found, remedy = f"{preset} holds {type(content).__name__}", "see services/vllm/presets/cpu.yaml"
        return {}, [error("preset", found, "options as `name: value`", remedy)]
    return content, []


def read_options(
    preset: Path, environment: Mapping[str, str], device: str, arguments: Sequence[str] = ()
) -> tuple[Options, list[Finding]]:
    """The options of a preset, overridden by command-line arguments, and their faults."""
    values: dict[str, Any] = {}
    known = names(device)
    content, findings = read_preset(preset)
    in_file = [(str(name).replace("_", "-"), value) for name, value in content.items()]
    for name in (name for name, value in in_file if value is False):
        found = f"{preset.name}: `{name}: false` has no effect, vLLM drops it"
        remedy = f"remove the line, or write `no-{name}: true`"
        findings.append(warning("option", found, "true, or nothing", remedy))
    findings += check_pairs(
        [(name, value) for name, value in in_file if value is not False], preset.name, values, known
    )
    findings += check_pairs(pairs_of_arguments(arguments, known), "command line", values, known)
    return Options(values, environment, device), findings
