"""`python -m pipeline`: arguments -> settings -> run, and nothing more."""

from __future__ import annotations

import os
import sys

from rich.console import Console

from pipeline.errors import UsageError

# Daft reports its use to its makers unless told otherwise, and shows a progress bar of its own.
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("DAFT_PROGRESS_BAR", "0")


def main(arguments: list[str]) -> int:
    """0: every row is accounted for. 1: nothing could be answered. 2: a usage error. 130: interrupted."""
    from pipeline.settings import load

    console = Console(stderr=False)
    try:
        settings = load(arguments)
        from pipeline.display import show_next, show_summary  # after the settings: a wrong one is told at once
        from pipeline.run import INTERRUPTED, run

        done = run(settings, console)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    show_summary(console, done.manifest)
    show_next(console, done.folder)
    if done.status == INTERRUPTED:
        return 130
    return 1 if done.failures and not done.answered else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
