"""What C libraries write to stderr by themselves, such as libtiff about each odd tag: into the log, line by line."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

log = logging.getLogger(__name__)

# A folder of a million odd TIFFs must not fill the disk with what is the same each time.
MOST_LINES = 1000


@contextmanager
def logged() -> Iterator[None]:
    """Log what is written to file descriptor 2 until the block ends. Python's own stderr still reaches the terminal.

    A writer never waits: the pipe takes no more while it is full. A library may write while it holds the interpreter's
    lock, which the thread that reads needs.
    """
    try:
        before = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    stderr = sys.stderr
    with suppress(OSError, ValueError, AttributeError):  # a replaced one may have no descriptor
        if stderr.fileno() == 2:
            sys.stderr = os.fdopen(os.dup(before), "w", buffering=1, encoding=stderr.encoding, errors=stderr.errors)
    os.dup2(writing, 2)
    os.close(writing)
    thread = threading.Thread(target=copy, args=(os.fdopen(reading, "rb"),), name="library messages", daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        if sys.stderr is not stderr:
            sys.stderr.close()
            sys.stderr = stderr
        thread.join(1)  # a child process may hold the pipe open


def copy(lines: IO[bytes]) -> None:
    """Log the lines until there are no more."""
    with lines:
        for number, line in enumerate(lines):
            if number < MOST_LINES:
                log.info("a library says: %s", line.decode(errors="backslashreplace").strip())
            elif number == MOST_LINES:
                log.info("more than %d lines of libraries: the others are left out", MOST_LINES)
