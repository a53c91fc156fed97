"""A guard for what belongs to one process."""

from __future__ import annotations

from typing import NoReturn


class InProcess:
    """Base of what a run's stages share: locks, connections, counts, the cancellation token.

    Daft pickles a stage to learn whether it can. A copy in another process would have a budget and a token of its own,
    and no bound would hold any more; so an instance can be pickled, but loading the copy is an error.
    """

    def __reduce__(self) -> tuple[object, tuple[str]]:
        """What loading a copy does: it fails."""
        return refuse_copy, (type(self).__name__,)


def refuse_copy(name: str) -> NoReturn:
    """Fail where a copy of shared state would be loaded.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(f"{name} belongs to the process that made it: run this stage with use_process=False")
