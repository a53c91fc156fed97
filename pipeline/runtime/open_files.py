"""The limit of open files: each request in flight is a connection, and so a file of this process."""

from __future__ import annotations

import resource

from pipeline.errors import InvalidSetting

# What a run opens besides: libraries' pipes, logs, images and tables that are read. About 40 were counted at once.
OTHER_FILES = 100


def allow_open_files(connections: int) -> None:
    """Raise this process's limit as far as so many connections need.

    Raises:
        InvalidSetting: the system allows fewer.
    """
    needed = connections + OTHER_FILES
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= needed:
        return
    if most != resource.RLIM_INFINITY and most < needed:
        raise InvalidSetting(
            f"SPOTTER_DETECTOR_CONCURRENCY and SPOTTER_MODEL_CONCURRENCY are {connections} together, which takes "
            f"{needed} open files, but this process may open {most}: lower them, or raise the limit: "
            f"ulimit -n {needed} (in a container: --ulimit nofile={needed})"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, most))
