"""Wrong settings: one clear line that names the remedy, exit code 2, within 5 seconds."""

import re
import resource
from pathlib import Path

import pytest

from pipeline.clients.probe_model import SCHEMA_FORMS
from tests.conftest import ROOT, Cli
from tests.doubles.simulated import Simulated
from tests.pictures import encoded, gradient

pytestmark = pytest.mark.slow

NO_SCHEMA = """
description: d
label: dog
question: q
schema: {type: objekt}
max_tokens: 9
"""

# Notes each wait that sat its time out: a pause before another try, a limit on who does not answer. Unlike the time
# that passes, their sum does not depend on what else the host does.
NOTE_WAITS = """
import os, selectors, threading, time

def note(owner, name, position):
    wait = getattr(owner, name)

    def noted(*given):
        result = wait(*given)
        if not result and (given[position:] or [None])[0]:
            with open(os.environ["NOTED_WAITS"], "a") as file:
                file.write(f"{given[position]}\\n")
        return result

    setattr(owner, name, noted)

note(time, "sleep", 0)
note(selectors.DefaultSelector, "select", 1)
note(threading.Condition, "wait", 1)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with one picture, an empty folder, a file where a folder is wanted, and a job without a schema."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(encoded(gradient()))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "no-schema.yaml").write_text(NO_SCHEMA)
    (tmp_path / "cats.yaml").write_text(
        (ROOT / "pipeline/jobs/dog_breeds.yaml").read_text().replace("label: dog", "label: owl")
    )
    return tmp_path


def children_cpu_s() -> float:
    """CPU seconds of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--model-url", "http://127.0.0.1:9/v1"], ":9/v1.*make up", id="nobody at the URL"),
        pytest.param(["--model-url", "not a url"], "--model-url: 'not a url'", id="no URL"),
        pytest.param(
            ["--detector-url", "http://127.0.0.1:9"], "detector http://127.0.0.1:9 .*make up", id="no detector"
        ),
        pytest.param(["--model-url", "{url}"], "HTTP 404.*/v1", id="URL without /v1"),
        pytest.param(["--model", "gpt-9"], "'gpt-9'.*simulated.*SPOTTER_MODEL", id="model not served"),
        pytest.param(["--job", "dog_breads"], "'dog_breads': .* dog_breeds", id="unknown job"),
        pytest.param(["--job", "{place}/no-schema.yaml"], "no-schema.yaml, line 5: schema.type: ", id="no JSON Schema"),
        pytest.param(["--job", "{place}/cats.yaml"], "'owl'.* cat, dog", id="unknown label"),
        pytest.param(["--images", "{place}/empty"], "{place}/empty", id="empty folder"),
        pytest.param(["--output", "{place}/file/runs"], "{place}/file/runs.*OUTPUT=", id="output cannot be written"),
        pytest.param(["--attempts", "0"], "--attempts: '0'", id="value out of range"),
    ],
)
def test_one_line_and_exit_code_2(
    cli: Cli, simulated: Simulated, place: Path, arguments: list[str], message: str
) -> None:
    filled = [argument.format(place=place, url=simulated.url) for argument in arguments]
    defaults = ["--images", str(place / "photos"), "--output", str(place / "runs")]
    (place / "sitecustomize.py").write_text(NOTE_WAITS)  # Python imports it first
    waits = place / "waits.txt"
    waits.touch()
    noting = {"PYTHONPATH": str(place), "NOTED_WAITS": str(waits)}
    before = children_cpu_s()
    done = cli(*defaults, *filled, env={**simulated.settings, **noting})
    cpu_s, waited_s = children_cpu_s() - before, sum(map(float, waits.read_text().split()))
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert re.search(message.format(place=place), line), line
    assert cpu_s + waited_s < 5


def test_a_server_that_ignores_the_schema_is_found_before_the_first_image(
    cli: Cli, simulated: Simulated, place: Path
) -> None:
    simulated.answer = lambda crop, request: "This is a lovely poodle."
    done = cli("--images", str(place / "photos"), "--output", str(place / "runs"), env=simulated.settings)
    assert done.returncode == 2
    assert "job dog_breeds" in done.stderr
    assert simulated.model.requests == len(SCHEMA_FORMS)  # none of them holds this server to it
    assert not (place / "runs").exists()


def test_a_missing_key_is_named(cli: Cli, simulated: Simulated, place: Path) -> None:
    simulated.api_key = "s3cret"
    done = cli("--images", str(place / "photos"), "--output", str(place / "runs"), env=simulated.settings)
    assert (done.returncode, "set SPOTTER_API_KEY" in done.stderr) == (2, True)


def test_help_tells_every_setting(cli: Cli) -> None:
    done = cli("--help")
    assert done.returncode == 0
    for option in ("--images", "--output", "--job", "--model-url", "--model-concurrency", "--attempts"):
        assert option in done.stdout
