"""The operator's commands begin quickly: none loads what another one needs."""

import subprocess
import sys
from pathlib import Path

from scripts.environments import ROOT

# They take as long to load as the rest of a command, and a stack is asked for its state often.
OF_THE_JOB = {"daft", "aiohttp", "pillow_heif"}


def test_a_command_loads_nothing_of_the_job() -> None:
    program = "import sys, scripts.__main__; print(*{name.partition('.')[0] for name in sys.modules})"
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    loaded = set(told.split())
    assert "scripts" in loaded
    assert not loaded & OF_THE_JOB


def test_the_makefile_takes_names_as_they_are(tmp_path: Path) -> None:
    given = {"IMAGES": "a $cash $(shell x) 'b'", "OUTPUT": "$(HOME)", "JOB": "a$b.yaml", "PRESET": "$1.yaml"}
    shown = tmp_path / "shown.mk"
    names = ("SPOTTER_IMAGES", "SPOTTER_OUTPUT", "SPOTTER_JOB", "STACK_PRESET")
    shown.write_text(f"shown:\n\t@printenv {' '.join(names)}\n")
    command = ["make", "--silent", "-f", "Makefile", "-f", str(shown), "shown", *map("=".join, given.items())]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == list(given.values())
