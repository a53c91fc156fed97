"""The one way to Docker: the client of python-on-whales, and that client's own command for what it cannot do."""

from __future__ import annotations

from python_on_whales import DockerClient, DockerException
from python_on_whales.client_config import ClientNotFoundError

from scripts import programs

# What a program in a container is told of the proxies on the way out.
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")


def client() -> DockerClient:
    """Docker with this user's configuration. `ComposeFiles.client` has Compose with a stack's files as well."""
    return DockerClient()


def command(*arguments: str) -> list[str]:
    """A docker command, to be run as a process: it needs a terminal, a log file or a time limit."""
    return [*map(str, client().docker_cmd), *arguments]


def ask(*arguments: str, timeout_s: float | None = None) -> tuple[str | None, str]:
    """What a docker command prints, and the last line of its complaints; None and the reason where it fails.

    python-on-whales has no time limits, lists no labels, drops the seconds of `stop`, and mixes up the order of a log's
    two streams.
    """
    try:
        return programs.ask(*command(*arguments), timeout_s=timeout_s)
    except ClientNotFoundError:
        return None, "docker is not installed"


def explain(error: DockerException) -> str:
    """Why Docker did not do something, in one line."""
    lines = (error.stderr or "").rstrip().splitlines()
    return f"docker: {lines[-1] if lines else f'ended with exit code {error.return_code}'}"
