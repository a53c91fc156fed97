"""Files that appear whole, with the mode that they are to have whatever the umask says; for several writers at once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write(file: Path, content: bytes, mode: int) -> None:
    """Write a file that others may read meanwhile; one that is there with this content and mode is left alone.

    Raises:
        OSError: it cannot be written.
    """
    try:
        if file.stat().st_mode & 0o777 == mode and file.read_bytes() == content:
            return
    except FileNotFoundError:
        file.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own for each writer, and at first with mode 600.
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=".partial")
    try:
        with os.fdopen(descriptor, "wb") as handle:
            os.fchmod(handle.fileno(), mode)
            handle.write(content)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
