"""What belongs to a Compose project at Docker, and to which checkout of this repository."""

from __future__ import annotations

import hashlib
from pathlib import Path

from scripts.docker import images
from scripts.environments import ROOT, STATE

# What Compose writes on a container: the project it belongs to, and the folder that this was started from.
PROJECT_LABEL = "com.docker.compose.project"
CHECKOUT_LABEL = "com.docker.compose.project.working_dir"


def project_name(state: Path) -> str:
    """The Compose project of a stack: `spotter`, or for another state folder one of its own."""
    if state.resolve() == STATE.resolve():
        return "spotter"
    return f"spotter-{hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:8]}"


def checkouts(project: str) -> dict[str, str]:
    """The containers of a Compose project by id, whatever overlays and settings made them; and each one's checkout."""
    label, shown = f"label={PROJECT_LABEL}={project}", f'{{{{.ID}}}} {{{{.Label "{CHECKOUT_LABEL}"}}}}'
    found = images.docker("ps", "--all", "--filter", label, "--format", shown) or ""
    return {identifier: folder for identifier, _, folder in (line.partition(" ") for line in found.splitlines())}


def is_elsewhere(checkout: str) -> bool:
    """Whether a container's checkout is another one than this. One that is gone has left its containers to us."""
    if not checkout or Path(checkout) == ROOT:
        return False
    try:
        return not Path(checkout).samefile(ROOT)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # another user's, which this one may not look at
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
    label = f"label={PROJECT_LABEL}={project}"
    return own, (images.docker("network", "ls", "--quiet", "--filter", label) or "").split()


def volumes(project: str) -> list[str]:
    """The volumes of a Compose project, by name."""
    label = f"label={PROJECT_LABEL}={project}"
    return (images.docker("volume", "ls", "--quiet", "--filter", label) or "").split()
