"""The documents, the Makefile and .env.example name what the code has, and leave out nothing that people need."""

from __future__ import annotations

import ast
import io
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import BaseModel, ByteSize

from pipeline import job, tables
from pipeline import settings as pipeline_settings
from pipeline.output import run_folder
from pipeline.question import Question
from scripts import __main__ as spotter
from scripts import environments, minimum_versions
from scripts import settings as stack_settings
from scripts.stack.vllm_server import PRESETS as VLLM_PRESETS
from scripts.vllm import tables as vllm_tables
from services.detector import settings as detector_settings
from services.detector.exported.description import Description
from services.detector.exported.families import FAMILIES
from tests.conftest import ROOT

README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *PAGES, *sorted((ROOT / "examples").rglob("*.md"))]
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))

README_LINES = range(110, 141)
PAGE_LINES = 120

MAKEFILE = (ROOT / "Makefile").read_text()
ENV_EXAMPLE = (ROOT / ".env.example").read_text()
# A target's recipe, from its line to the next `.PHONY`.
RECIPES = dict(re.findall(r"^([a-z-]+):[^\n]*##([^\0]*?)(?=^\.PHONY|\Z)", MAKEFILE, re.MULTILINE))
SHORT_NAMES = dict(re.findall(r"^ifdef (\w+)\nexport (\w+) := ", MAKEFILE, re.MULTILINE))
VARIABLES = {*pipeline_settings.variables(), *stack_settings.variables()}
DETECTOR_VARIABLES = {detector_settings.variable(name) for name in detector_settings.Settings.model_fields}
# The stack decides these two, by STACK_HOST and STACK_DETECTOR_PORT.
DETECTOR_VARIABLES -= {"DETECTOR_HOST", "DETECTOR_PORT"}
SHOWN = dict(re.findall(r"^#([A-Z0-9_]+)=(.*)$", ENV_EXAMPLE, re.MULTILINE))
JOB_OPTIONS = {"--" + name.replace("_", "-") for name in pipeline_settings.Settings.model_fields} - {"--api-key"}
PRESETS = {path.stem for path in VLLM_PRESETS.glob("*.yaml")}


@dataclass(frozen=True)
class Block:
    """A code block."""

    language: str
    text: str


def blocks(document: str, *languages: str) -> list[Block]:
    """The code blocks of a document, in these languages or all."""
    found = [Block(*each) for each in re.findall(r"^```(\w*)\n(.*?)^```", document, re.MULTILINE | re.DOTALL)]
    return [block for block in found if block.language in languages or not languages]


def prose(document: str) -> str:
    """A document without its code blocks."""
    return re.sub(r"^```.*?^```", "", document, flags=re.MULTILINE | re.DOTALL)


def quoted(text: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`\n]+)`", text)


def commands(document: str, program: str) -> list[str]:
    """The commands of a document that run a program (a pattern), in code blocks and in backticks."""
    lines = [line.partition(" #")[0] for block in blocks(document, "", "sh") for line in block.text.splitlines()]
    single = [part.strip() for line in [*lines, *quoted(prose(document))] for part in line.split("&&")]
    variables = r"(?:[A-Z_]+=(?:\$\([^)]*\)|\S*)\s+)*"
    return [text for text in single if re.match(rf"(?:\$ )?{variables}{program}(?:\s|$)", text)]


def table_rows(document: str) -> Iterator[tuple[str, list[str]]]:
    """Each table row's first header, in lower case, and its cells."""
    header = ""
    for line in prose(document).splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] if line.startswith("|") else []
        if not cells:
            header = ""
        elif not header:
            header = cells[0].lower()
        elif set(cells[0]) - set("-:"):
            yield header, cells


def anchors(document: str) -> set[str]:
    """The addresses of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def options_of(module: str) -> str:
    """The source of the module that a `python -m` command runs.

    Raises:
        AssertionError: there is no such module.
    """
    path = ROOT.joinpath(*module.split("."))
    source = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    assert source.is_file(), module
    return source.read_text()


# --- commands -------------------------------------------------------------------------------------------------------


@each_document
def test_make_commands_work_as_written(path: Path) -> None:
    for command in commands(path.read_text(), "make"):
        words = re.sub(r"'[^']*'|\"[^\"]*\"", "''", command).split()
        targets = [word for word in words[words.index("make") + 1 :] if re.fullmatch(r"[a-z][a-z-]*", word)]
        recipes = "".join(RECIPES.get(target, "") for target in targets)
        assert set(targets) <= RECIPES.keys(), command
        given = re.findall(r"\b([A-Z][A-Z0-9_]+)=", command)
        for variable in given:
            known = {*SHOWN, *SHORT_NAMES, "AWS_ENDPOINT_URL", "RAY_ADDRESS"}
            assert variable in known or re.search(rf"\$\((value )?{variable}\)", recipes), command
        for option in re.findall(r"OPTIONS=\S*?(--[a-z-]+)", command):
            if {"run", "estimate", "profile"} & set(targets):
                assert option in JOB_OPTIONS, command
            elif own := set(targets) & spotter.COMMANDS.keys():
                assert any(f'"{option}"' in options_of(spotter.COMMANDS[name][0]) for name in own), command
            elif option != "--help":
                modules = re.findall(r"\$\(BENCH\)\.(\w+)", recipes)
                assert any(f'"{option}"' in options_of(f"scripts.bench.{name}") for name in modules), command


@each_document
def test_commands_for_programs_work_as_written(path: Path) -> None:
    for command in commands(path.read_text(), r"\./spotter"):
        words = command.partition("./spotter")[2].split()
        if not words or words[0] in ("COMMAND", "--help", "--version"):
            continue
        name = words[0]
        assert name in spotter.COMMANDS, command
        known = {"--help", *re.findall(r'"(--[\w-]+)"', options_of(spotter.COMMANDS[name][0]))}
        known |= JOB_OPTIONS if name in spotter.OF_THE_JOB else set()
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, command


@each_document
def test_modules_that_are_run_exist_with_their_options(path: Path) -> None:
    document = path.read_text()
    for environment in re.findall(r"\.spotter/envs/([a-z-]+)/", document):
        assert environment in environments.NAMES, environment
    for command in commands(document, r"(?:\S*/)?python3?"):
        module = re.search(r"python -m ([\w.]+)", command)
        if module:
            source = options_of(module[1])
            for option in re.findall(r"\s(--[a-z-]+)", command):
                assert option == "--help" or f'"{option}"' in source, command
        script = re.search(r"python3? ([\w/.]+\.py)", command)
        assert script is None or (ROOT / script[1]).is_file(), command


@each_document
def test_shell_commands_can_be_parsed(path: Path) -> None:
    for block in blocks(path.read_text(), "sh"):
        parsed = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True, check=False)
        assert parsed.returncode == 0, (parsed.stderr, block.text)


def test_every_target_is_explained() -> None:
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    named = {word for path in DOCUMENTS for each in commands(path.read_text(), "make") for word in each.split()}
    for target in RECIPES:
        assert re.search(rf"^  make {target} ", shown, re.MULTILINE), target
        assert target in named | {"help"}, target
    assert max(map(len, shown.splitlines())) <= 120
    assert set(re.findall(r"^\.PHONY: ([\w-]+)", MAKEFILE, re.MULTILINE)) >= RECIPES.keys()
    assert RECIPES.keys() >= spotter.COMMANDS.keys()


# --- settings -------------------------------------------------------------------------------------------------------


@each_document
def test_settings_that_are_named_exist(path: Path) -> None:
    text = path.read_text()
    for variable in re.findall(r"\b(?:SPOTTER|STACK|DETECTOR)_[A-Z0-9_]*[A-Z0-9]\b", text):
        assert variable in VARIABLES | DETECTOR_VARIABLES, variable
    for variable in re.findall(r"\bHF_[A-Z_]*[A-Z]\b", text):
        assert variable in SHOWN, variable


def test_every_setting_is_explained_in_a_page() -> None:
    pages = "\n".join(path.read_text() for path in PAGES)
    for variable in VARIABLES | DETECTOR_VARIABLES:
        assert re.search(rf"\b{variable}\b", pages), variable


def test_short_names_lead_to_settings() -> None:
    of_the_job = {"IMAGES", "EVERY", "OUTPUT", "JOB", "FROM", "LIMIT", "SAMPLE", "SHARD", "TRUTH", "RUNNER"}
    assert set(SHORT_NAMES) == {*of_the_job, "DEVICE", "PRESET", "START", "OFFLINE", "WORKERS"}
    assert set(SHORT_NAMES.values()) <= VARIABLES


def test_env_example_shows_every_setting_with_its_default() -> None:
    # Of the hub's and vLLM's own variables, those that the operator's code looks at itself; all others are passed on.
    code = "\n".join(path.read_text() for path in (ROOT / "scripts").rglob("*.py"))
    passed_on = set(re.findall(r"""(?:environment|user_variables\("\w+"\))\.get\("((?:HF|VLLM)_\w+)\"""", code))
    assert {"HF_TOKEN", "HF_ENDPOINT", "VLLM_CACHE_ROOT"} <= passed_on
    assert set(SHOWN) == VARIABLES | DETECTOR_VARIABLES | passed_on
    models: tuple[tuple[str, type[BaseModel]], ...] = (
        (pipeline_settings.PREFIX, pipeline_settings.Settings),
        (stack_settings.PREFIX, stack_settings.StackSettings),
        (detector_settings.PREFIX, detector_settings.Settings),
    )
    for prefix, model in models:
        for name, field in model.model_fields.items():
            if prefix + name.upper() not in SHOWN:  # what the stack decides
                continue
            default = "" if field.default is None else str(field.default).rstrip("/")
            if isinstance(field.default, Path):
                default = str(Path(field.default).relative_to(ROOT)) if Path(field.default).is_absolute() else default
            if isinstance(field.default, float):
                default = f"{field.default:g}"
            if isinstance(field.default, ByteSize):
                default = field.default.human_readable().replace(".0", "")
            assert SHOWN[prefix + name.upper()].rstrip("/") == default, name


def test_no_variable_is_read_outside_the_settings() -> None:
    """Settings are read once, at the edge: nothing else in the pipeline looks at the environment."""
    reads = re.compile(r"os\.environ|os\.getenv|getenv\(")
    allowed = {"pipeline/settings.py", "pipeline/__main__.py", "pipeline/runners/ray/cluster.py"}  # Ray's variables
    found = {
        str(path.relative_to(ROOT)) for path in (ROOT / "pipeline").rglob("*.py") if reads.search(path.read_text())
    }
    assert found == allowed


# --- files, links, words --------------------------------------------------------------------------------------------


@each_document
def test_links_lead_somewhere(path: Path) -> None:
    text = prose(path.read_text())
    for target in re.findall(r"\]\(\s*([^)\s]+)\s*\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name) if name else path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), target


@each_document
def test_files_that_are_named_exist(path: Path) -> None:
    rooms = "pipeline|services|scripts|images|imaging|samples|tests|docs|examples"
    for named in quoted(path.read_text()):
        if re.fullmatch(rf"(?:{rooms})/[\w./-]*", named):
            assert (ROOT / named).exists(), named


def vocabulary() -> dict[str, tuple[set[str], set[str]]]:
    """By a table's first header: the words that its first column may have, and those that some page must have."""
    keys = {field.alias or name for name, field in job.Job.model_fields.items()} - {"crop"} | {"label"}
    keys |= {field.alias or name for name, field in Question.model_fields.items()}
    keys |= {f"crop.{name}" for name in job.Crop.model_fields}
    columns = {*tables.IMAGES.names, *tables.DETECTIONS.names}
    contents = {*run_folder.CONTENTS, run_folder.STALL, run_folder.ERROR}
    rooms = {
        f"{path.parent.relative_to(ROOT)}/"
        for folder in ("pipeline", "scripts")
        for path in (ROOT / folder).glob("*/__init__.py")
    }
    return {
        "column": (columns, columns),
        "key": (keys, keys),
        "preset": (PRESETS, PRESETS),
        "family": (set(FAMILIES), set(FAMILIES)),
        "description": (set(Description.model_fields), set(Description.model_fields)),
        "setting": (VARIABLES | DETECTOR_VARIABLES, set()),
        "room": ({f"{path.relative_to(ROOT)}/" for path in (*ROOT.glob("*"), *ROOT.glob("*/*"))}, rooms),
        "file": ({name.removesuffix("/") for name in contents}, contents),
    }


def test_tables_list_what_the_code_has() -> None:
    """Every column, job key, preset, file of a run and room is listed, and nothing else under such a header."""
    listed: dict[str, set[str]] = {header: set() for header in vocabulary()}
    for path in DOCUMENTS:
        for header, cells in table_rows(path.read_text()):
            if header in listed:
                listed[header] |= set(quoted(cells[0]))
    for header, (allowed, needed) in vocabulary().items():
        words = listed[header]
        if header == "file":  # of a run, or of the repository
            words = {word.removesuffix("/") for word in words if not (ROOT / word).exists()}
        assert words <= allowed, (header, words - allowed)
        assert needed <= words, (header, needed - words)


def test_outcomes_and_exit_codes_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    for outcome in (*tables.IMAGE_OUTCOMES, *tables.DETECTION_OUTCOMES):
        assert f"`{outcome}`" in page
    codes = {cells[0] for header, cells in table_rows(page) if header == "code"}
    main = (ROOT / "pipeline" / "__main__.py").read_text().split("def main")[1].split('"""')[1]
    assert codes == set(re.findall(r"(\d+):", main))


def test_every_figure_has_its_command() -> None:
    """The benchmarks' commands are checked like all others; here, that none is missing."""
    rows = [cells for header, cells in table_rows((ROOT / "docs" / "benchmarks.md").read_text()) if header == "figure"]
    assert len(rows) > 15
    for cells in rows:
        assert re.fullmatch(r"`(make|python -m|du) .+`", cells[2]), cells


def test_every_promise_of_security_has_its_tests() -> None:
    rows = [cells for header, cells in table_rows((ROOT / "SECURITY.md").read_text()) if header == "promise"]
    assert len(rows) > 15
    for promise, against, tests in rows:
        assert against, promise
        named = quoted(tests)
        assert named, promise
        for file, _, test in (each.partition("::") for each in named):
            assert re.search(rf"^def {test}\(", (ROOT / file).read_text(), re.MULTILINE), (promise, test)


# --- code -----------------------------------------------------------------------------------------------------------


@each_document
def test_yaml_is_a_job_or_a_preset(path: Path, tmp_path: Path) -> None:
    options = json.loads((vllm_tables.FOLDER / "options.json").read_text())["options"]
    for block in blocks(path.read_text(), "yaml"):
        content = yaml.safe_load(block.text)
        if "description" in content:
            file = tmp_path / "example.yaml"
            file.write_text(block.text)
            job.load(str(file))
        elif "family" in content:
            Description.model_validate(content)
        else:
            assert {name.replace("_", "-") for name in content} <= {name.lstrip("-") for name in options}


@each_document
def test_python_runs_on_a_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python blocks run as they stand, beside a run of the bundled job that has one empty row in each table."""
    found = blocks(path.read_text(), "python")
    if not found:
        return
    folder = tmp_path / "runs" / "latest"
    folder.mkdir(parents=True)
    schemas = {"images": tables.IMAGES, "detections": tables.detections_schema(job.load("dog_breeds").properties)}
    for name, schema in schemas.items():
        pq.write_table(pa.Table.from_pylist([{}], schema), folder / f"{name}.parquet")
    monkeypatch.chdir(tmp_path)
    for block in found:
        with redirect_stdout(io.StringIO()):
            exec(compile(ast.parse(block.text), str(path), "exec"), {"__name__": "example"})


# --- the README -----------------------------------------------------------------------------------------------------


def test_the_readme_is_short_and_names_the_two_commands() -> None:
    text = README.read_text()
    assert len(text.splitlines()) in README_LINES
    named = commands(text, "make")
    assert "make run" in named
    assert "make test" in named
    assert named.index("make run") < named.index("make test")


def test_the_readme_says_early_what_never_ran_on_a_gpu() -> None:
    assert "Not yet run on a GPU" in README.read_text().partition("\n## ")[0]


def test_the_readme_requires_what_the_doctor_requires() -> None:
    needs = README.read_text().partition("You need:")[2].partition("```")[0]
    least = minimum_versions
    assert f"driver {least.NVIDIA_DRIVER[0]} or newer" in needs
    assert f"{least.RAM_GIB['cuda']} GiB of free host memory" in needs
    for gib in (least.CACHES_GIB, least.ENVIRONMENTS_GIB, least.IMAGES_GIB):
        assert f"{gib['cuda']} GiB" in needs
    for name, version in (("Docker Engine", least.DOCKER_ENGINE), ("Compose", least.COMPOSE)):
        assert f"{name} {'.'.join(map(str, version))}" in needs
    assert f"Python {environments.PYTHON}" in needs


def test_pages_are_short_and_the_readme_links_each() -> None:
    linked = set(re.findall(r"\]\(([^)#]+)", README.read_text()))
    for path in PAGES:
        assert len(path.read_text().splitlines()) <= PAGE_LINES, path.name
        assert f"docs/{path.name}" in linked, path.name
