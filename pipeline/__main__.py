"""`python -m pipeline`: arguments -> settings -> run, and nothing more."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

from pipeline.errors import RunStopped, UsageError

# Daft reports its use to its makers unless told otherwise, and shows a progress bar of its own.
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("DAFT_PROGRESS_BAR", "0")


def main(arguments: list[str]) -> int:
    """0: every row is accounted for. 1: stopped, or every row failed. 2: a usage error. 130: interrupted."""
    from pipeline.runtime.terminal import make_console, open_standard_streams
    from pipeline.settings import load

    open_standard_streams()

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # how containers and schedulers say Ctrl-C

    console = make_console()
    try:
        settings = load(arguments)
        if settings.try_one:
            from pipeline.try_one import try_one

            return try_one(settings, console)
        from pipeline.output.estimate import lines
        from pipeline.output.manifest import STOPPED
        from pipeline.run import run
        from pipeline.runtime.display import show_next, show_summary  # after the settings: a wrong one ends at once
        from pipeline.runtime.garbage import collect_rarely
        from pipeline.runtime.interrupts import INTERRUPTED
        from pipeline.runtime.terminal import escaped

        collect_rarely()
        done = run(settings, console)
        show_summary(console, done.manifest)
        for line in lines(done.manifest["estimate"]) if "estimate" in done.manifest else ():
            console.print(escaped(line), markup=False, highlight=False, soft_wrap=True)
        show_next(console, done.folder, done.manifest)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunStopped as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if done.status == INTERRUPTED:
        return 130
    return 1 if done.status == STOPPED or (done.failures and not done.succeeded) else 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    # All that is to be kept has been written. What a run that was cut short left at work must not hold up its end.
    os._exit(code)
