"""The operator's commands begin quickly: none loads what another one needs."""

import subprocess
import sys

from scripts.environments import ROOT

# They take as long to load as the rest of a command, and a stack is asked for its state often.
OF_THE_JOB = {"daft", "aiohttp", "pillow_heif"}


def test_a_command_loads_nothing_of_the_job() -> None:
    program = "import sys, scripts.__main__; print(*{name.partition('.')[0] for name in sys.modules})"
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    loaded = set(told.split())
    assert "scripts" in loaded
    assert not loaded & OF_THE_JOB
