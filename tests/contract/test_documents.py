"""README, Makefile, .env.example and the code say the same."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from pydantic import BaseModel, ByteSize

from pipeline import job, tables
from pipeline import settings as pipeline_settings
from scripts import settings as stack_settings
from scripts.stack.services import VLLM_PRESETS
from services.detector import settings as detector_settings
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
DOCUMENTS = {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md")}

TARGETS = set(re.findall(r"^([a-z-]+):.*##", MAKEFILE, re.MULTILINE))
SHORT_NAMES = dict(re.findall(r"^ifdef (\w+)\nexport (\w+) := ", MAKEFILE, re.MULTILINE))
VARIABLES = {*pipeline_settings.variables(), *stack_settings.variables()}
DETECTOR_VARIABLES = {detector_settings.variable(name) for name in detector_settings.Settings.model_fields}
# The stack decides these two, by STACK_HOST and STACK_DETECTOR_PORT.
DETECTOR_VARIABLES -= {"DETECTOR_HOST", "DETECTOR_PORT"}


def commands(document: str) -> list[str]:
    """The `make` commands of a document: in code blocks and in backticks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", document, flags=re.MULTILINE | re.DOTALL))
    return [text for text in lines + inline if re.match(r"^(?:[A-Z_]+=\S+ )*make\b", text)]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_targets_that_are_named_exist(name: str) -> None:
    named = commands(DOCUMENTS[name])
    assert named
    for command in named:
        match = re.search(r"\bmake\s+([a-z-]+)", command)
        if match:
            assert match[1] in TARGETS, command


@pytest.mark.parametrize("name", DOCUMENTS)
def test_settings_that_are_named_exist(name: str) -> None:
    text = DOCUMENTS[name]
    for variable in re.findall(r"\b(?:SPOTTER|STACK)_[A-Z_]+\b", text):
        assert variable in VARIABLES, variable
    makes_own = {"SERVICE", "FOLLOW", "TESTS", "OPTIONS", "FULL", "JSON", "CACHES", "YES", "RUN", "COMPARE"}
    for command in commands(text):
        for variable in re.findall(r"\b([A-Z][A-Z_]+)=", command):
            assert variable in {*VARIABLES, *SHORT_NAMES, *makes_own}, command


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_that_are_named_exist(name: str) -> None:
    text = DOCUMENTS[name]
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    paths = set(re.findall(r"`((?:pipeline|services|scripts|images|samples|tests|docs)/[\w./-]*)`", text))
    assert links | paths
    for path in links | paths:
        assert (ROOT / path).exists(), path


def test_short_names_lead_to_settings() -> None:
    assert set(SHORT_NAMES) == {"IMAGES", "OUTPUT", "JOB", "DEVICE", "PRESET", "START", "OFFLINE"}
    assert set(SHORT_NAMES.values()) <= VARIABLES


def test_every_target_is_listed_and_the_default_is_help() -> None:
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in TARGETS:
        assert re.search(rf"^  make {target} ", shown, re.MULTILINE), target
    phony = set(re.findall(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE))
    assert phony >= TARGETS


def test_the_two_commands_stand_at_the_top_of_the_readme() -> None:
    head = README.split("\n## ")[0]
    assert commands(head) == ["make run", "make test"]


def test_env_example_shows_every_setting_with_its_default() -> None:
    shown = dict(re.findall(r"^#([A-Z0-9_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    # Of the hub's and vLLM's own variables, those that the operator's code looks at itself; all others are passed on.
    code = "\n".join(path.read_text() for path in (ROOT / "scripts").rglob("*.py"))
    passed_on = set(re.findall(r"""(?:environment|user_variables\("\w+"\))\.get\("((?:HF|VLLM)_\w+)\"""", code))
    assert {"HF_TOKEN", "HF_ENDPOINT", "VLLM_CACHE_ROOT"} <= passed_on
    assert set(shown) == VARIABLES | DETECTOR_VARIABLES | passed_on
    models: tuple[tuple[str, type[BaseModel]], ...] = (
        (pipeline_settings.PREFIX, pipeline_settings.Settings),
        (stack_settings.PREFIX, stack_settings.StackSettings),
        (detector_settings.PREFIX, detector_settings.Settings),
    )
    for prefix, model in models:
        for name, field in model.model_fields.items():
            if prefix + name.upper() not in shown:  # what the stack decides
                continue
            default = "" if field.default is None else str(field.default).rstrip("/")
            if isinstance(field.default, Path):
                default = str(Path(field.default).relative_to(ROOT)) if Path(field.default).is_absolute() else default
            if isinstance(field.default, float):
                default = f"{field.default:g}"
            if isinstance(field.default, ByteSize):
                default = field.default.human_readable().replace(".0", "")
            assert shown[prefix + name.upper()].rstrip("/") == default, name


def test_presets_and_jobs_that_are_named_exist() -> None:
    presets = {path.stem for path in VLLM_PRESETS.glob("*.yaml")}
    table = README.split("| preset |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)) == {"`cpu`", "`l4`", "`a100-40`, `a100-80`"}
    assert presets == {"cpu", "l4", "a100-40", "a100-80"}
    assert "dog_breeds" in job.bundled_names()


def test_columns_that_are_named_exist() -> None:
    columns = {*tables.IMAGES.names, *tables.detections_schema(job.load("dog_breeds").properties).names}
    selected = re.search(r"\.select\((.*?)\)", README)
    assert selected
    assert set(re.findall(r'"(\w+)"', selected[1])) <= columns
    for outcome in tables.IMAGE_OUTCOMES:
        assert f"`{outcome}`" in README


def test_no_variable_is_read_outside_the_settings() -> None:
    """Settings are read once, at the edge: nothing else in the pipeline looks at the environment."""
    reads = re.compile(r"os\.environ|os\.getenv|getenv\(")
    allowed = {"pipeline/settings.py", "pipeline/__main__.py"}
    found = {
        str(path.relative_to(ROOT)) for path in (ROOT / "pipeline").rglob("*.py") if reads.search(path.read_text())
    }
    assert found == allowed
