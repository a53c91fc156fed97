"""Standard output: nothing that is printed is markup, and nothing that cannot be printed ends a run."""

from __future__ import annotations

import io
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, TextIO, cast

from rich.console import Console


class Output(io.TextIOBase):
    """A text file that drops what it cannot take: its reader is gone, its disk is full."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the file."""
        return self.file.encoding

    def isatty(self) -> bool:
        """Whether the file is a terminal."""
        return self.file.isatty()

    def fileno(self) -> int:
        """The descriptor of the file."""
        return self.file.fileno()

    def write(self, text: str) -> int:
        """Write what the file takes."""
        with suppress(OSError):
            self.file.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what the file takes."""
        with suppress(OSError):
            self.file.flush()


def open_standard_streams() -> None:
    """Replace a closed standard output or error, and let both print any character.

    A descriptor that stays closed would go to the next file that is opened, and what is printed into that file.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 open until the process ends
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def make_console(*, highlight: bool = True) -> Console:
    """A console on standard output; `highlight`: numbers and paths get colours."""
    return Console(file=cast(IO[str], Output(sys.stdout)), markup=False, emoji=False, highlight=highlight)


def escaped(text: str) -> str:
    """Text with escapes in the place of control characters: some of them move a terminal's cursor."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)


def say(console: Console, text: str) -> None:
    """Print a line as it is."""
    console.print(escaped(text), highlight=False, markup=False, soft_wrap=True)
