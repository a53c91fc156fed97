"""Runners: where the rows of a run are made, in this process or by workers on several nodes.

To add one: a module here with a function `start` like those of the others, and its line in RUNNERS.
"""

from __future__ import annotations

import importlib

from pipeline.flow import Work
from pipeline.output.resume import ResumePlan
from pipeline.runners.runner import Runner
from pipeline.runtime.runtime import Runtime
from pipeline.sources.reader import Reader

# Modules, because a runner may need packages that others do without.
RUNNERS = {
    "native": "pipeline.runners.native",
}


def start(name: str, work: Work, plan: ResumePlan, reader: Reader, runtime: Runtime) -> Runner:
    """A runner that is ready to make the plan's rows.

    Raises:
        UsageError: it cannot begin; nothing was asked of any image.
    """
    runner: Runner = importlib.import_module(RUNNERS[name]).start(work, plan, reader, runtime)
    return runner
