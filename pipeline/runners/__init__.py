"""Runners: where the rows of a run are made, in this process or by workers on several nodes.

To add one: a module here with a function `start` like those of the others, and its line in RUNNERS.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

from pipeline.errors import InvalidSetting

if TYPE_CHECKING:  # a worker imports this package before it knows that all packages are there
    from pipeline.flow import Work
    from pipeline.output.resume import ResumePlan
    from pipeline.runners.runner import Runner
    from pipeline.runtime.runtime import Runtime
    from pipeline.sources.reader import Reader

# By the values of SPOTTER_RUNNER. Modules, because a runner may need packages that others do without.
RUNNERS = {
    "native": "pipeline.runners.native",
    "ray": "pipeline.runners.ray.driver",
}


def start(name: str, work: Work, plan: ResumePlan, reader: Reader, runtime: Runtime) -> Runner:
    """A runner that is ready to make the plan's rows.

    Raises:
        UsageError: it cannot begin; nothing was asked of any image.
    """
    try:
        module = importlib.import_module(RUNNERS[name])
    except ModuleNotFoundError as error:
        raise InvalidSetting(
            f"SPOTTER_RUNNER={name}: the package {error.name} is not installed for {sys.executable}: use 'make run', "
            f"which prepares the environment {name}, or the {name} image"
        ) from error
    runner: Runner = module.start(work, plan, reader, runtime)
    return runner
