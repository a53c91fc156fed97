"""Errors that end a run and belong to no row: a full disk, a bug."""

from __future__ import annotations

import contextlib
import errno
import traceback
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import RunStopped, UsageError
from pipeline.files import write_atomically
from pipeline.output.run_folder import ERROR
from pipeline.runtime.stream import FlowFailed

# The errors of a folder that cannot be written, and the remedy of each.
MAKE_ROOM = "make room, then run again"
SEE = "see that it can be written, then run again"
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), MAKE_ROOM),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE), SEE),
}
# For unexpected errors.
AGAIN = "run again to do the rest; if it comes again, it is a bug worth reporting"


def explain(error: BaseException, folder: Path) -> str:
    """The error as one line; the stacks of an unexpected one are written into the run's folder."""
    if isinstance(error, OSError) and error.errno in REMEDIES:
        return f"cannot write {folder}: {error.strerror or error}: {REMEDIES[error.errno]}"
    error = error.__cause__ or error if isinstance(error, FlowFailed) else error
    with contextlib.suppress(OSError):
        write_atomically(folder / ERROR, "".join(traceback.format_exception(error)).encode())
    said = " ".join(str(error).split())[:300]
    return f"unexpected {type(error).__name__}: {said} (more in {folder / ERROR}): {AGAIN}"


@contextlib.contextmanager
def one_line(folder: Path) -> Iterator[None]:
    """Turn an unexpected error of the block into one line.

    Raises:
        RunStopped: the block raised an error.
    """
    try:
        yield
    except (RunStopped, UsageError):
        raise
    except Exception as error:
        raise RunStopped(f"{explain(error, folder)}; what was committed until then is safe") from error
