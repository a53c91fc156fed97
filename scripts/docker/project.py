"""The containers, networks and volumes of a Compose project, and the checkout of this repository that started them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from scripts.docker.client import ask, client
from scripts.environments import ROOT, STATE

# Compose's labels on a container: its project, and the folder of the compose files that made it.
PROJECT_LABEL = "com.docker.compose.project"
CHECKOUT_LABEL = "com.docker.compose.project.working_dir"


def project_name(state: Path) -> str:
    """The Compose project of a stack: `spotter`, or for another state folder one of its own."""
    if state.resolve() == STATE.resolve():
        return "spotter"
    return f"spotter-{hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:8]}"


def checkouts(project: str) -> dict[str, str]:
    """The containers of a Compose project by id, with the folder of the checkout that started each."""
    shown = f'{{{{.ID}}}} {{{{.Label "{CHECKOUT_LABEL}"}}}}'
    found, _ = ask("ps", "--all", "--filter", f"label={PROJECT_LABEL}={project}", "--format", shown)
    return {
        identifier: folder for identifier, _, folder in (line.partition(" ") for line in (found or "").splitlines())
    }


def is_elsewhere(checkout: str) -> bool:
    """Whether a container belongs to another checkout than this one. Those of a deleted checkout belong to this one."""
    if not checkout or Path(checkout) == ROOT:
        return False
    try:
        return not Path(checkout).samefile(ROOT)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # the folder of another user, closed to this one
        return True


def other_checkout(project: str) -> str | None:
    """Another checkout of this repository that has containers in a Compose project; None where there is none."""
    return next((folder for folder in checkouts(project).values() if is_elsewhere(folder)), None)


def left_over(project: str) -> tuple[list[str], list[str]]:
    """This checkout's containers in a Compose project, and its networks where no other checkout has containers."""
    found = checkouts(project)
    own = [identifier for identifier, folder in found.items() if not is_elsewhere(folder)]
    if len(own) < len(found):
        return own, []
    return own, [each.id for each in client().network.list(filters=[("label", f"{PROJECT_LABEL}={project}")])]


def volumes(project: str) -> list[str]:
    """The volumes of a Compose project, by name."""
    return [each.name for each in client().volume.list(filters=[("label", f"{PROJECT_LABEL}={project}")])]
