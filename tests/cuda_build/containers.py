"""The images for GPUs: built, and run without a GPU as the compose files run them."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from scripts.docker import images
from scripts.docker.client import ask, command
from scripts.environments import ROOT, STATE
from tests.cuda_build.packages import IN_BUILD, Site, run, told
from tests.cuda_build.report import NotPossible, StepFailed

# Docker's classic builder keeps a stage and the image that copies from it: the environment twice.
NEEDED_GB = {"vllm-cuda": 20, "detector-cuda": 12}
# What stays free on the disk.
RESERVE_GB = 10
# As in compose.yaml.
HARDENED = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--init")
OFFLINE = ("--env=HF_HUB_OFFLINE=1", "--network=none", "--pull=never")
# As Compose's volume, which has the owner of the image's folder.
CACHE = "--tmpfs=/cache/vllm:exec,uid=10001,gid=10001"
# Prints the user, whether the image's own files can be changed, its compilers, and any driver's library.
LOOK = r"""
id -un
touch /spotter/x 2>/dev/null && echo writable
for tool in cc gcc g++ c++ clang nvcc make uv; do command -v $tool >/dev/null && echo "tool $tool"; done
find / -xdev \( -name 'libcuda.so.1' -o -name 'libnvidia-ml.so.1' \) -printf 'driver %p\n' 2>/dev/null
true
"""
TOOLS = {"vllm-cuda": {"gcc", "g++", "cc", "c++"}, "detector-cuda": set[str]()}
KEY = "a-key-of-this-check"
# Whether a process of the container has the key, as with_key.sh hands it on.
HAS_KEY = f"""
from pathlib import Path
own = [each.read_bytes() for each in Path('/proc').glob('[0-9]*/environ') if each.stat().st_uid == 10001]
print(any(b'VLLM_API_KEY={KEY}' in each for each in own))
"""
READY_S = 900.0


def build(name: str, site: Site, console: Console) -> str:
    """Build an image; the stages that the builder leaves behind are removed."""
    root = Path(ask("info", "--format", "{{.DockerRootDir}}")[0] or "/")
    free = shutil.disk_usage(root if root.exists() else "/").free / 1e9
    image = images.IMAGES[name]
    if not images.is_current(image) and free < NEEDED_GB[name] + RESERVE_GB:
        raise NotPossible(f"{free:.0f} GB are free at {root}; {NEEDED_GB[name]} are needed, beside {RESERVE_GB} left")
    if why := images.why_not_buildable((image,)):
        raise NotPossible(why)
    before = set(images.left_over())
    images.ensure([image], site.folder / "logs", console)
    for left in set(images.left_over()) - before:
        ask("image", "rm", left)
    base = images.bases_for(image).get(image.base, images.base_image(image.base))
    return f"{images.size(image)}, on {base}"


def look(name: str) -> str:
    """User, read-only file system, compilers, and that no driver is inside."""
    tag = images.IMAGES[name].tag
    said = run(command("run", "--rm", *HARDENED, *OFFLINE, "--entrypoint=/bin/sh", tag, "-c", LOOK)).splitlines()
    tools = {line.removeprefix("tool ") for line in said if line.startswith("tool ")}
    rest = [line for line in said[1:] if not line.startswith("tool ")]
    if said[0] != "spotter" or rest or tools != TOOLS[name]:
        raise StepFailed(
            f"user {said[0]}, tools {', '.join(sorted(tools)) or 'none'}, {', '.join(rest) or 'no driver'}"
        )
    return (
        f"user spotter, files read-only, {'tools ' + ', '.join(sorted(tools)) if tools else 'no compiler'}, no driver"
    )


def inside(site: Site, presets: list[Path]) -> str:
    """Imports, Triton's compiler and the presets in the image of vLLM, with the driver mounted for this run only."""
    mounts = [*mounted(site), f"--volume={IN_BUILD}:/check.py:ro"]
    mounts += [f"--volume={preset}:/presets/{preset.name}:ro" for preset in presets]
    tag = images.IMAGES["vllm-cuda"].tag
    program = ("--entrypoint=python", tag, "-P", "/check.py", *(f"/presets/{preset.name}" for preset in presets))
    return told(run(command("run", "--rm", *HARDENED, *OFFLINE, CACHE, *mounts, *program)))


def mounted(site: Site) -> list[str]:
    """The driver, and the stand-ins at their own paths."""
    return [
        f"--volume={site.driver}:/driver:ro",
        "--env=LD_LIBRARY_PATH=/driver",
        "--env=TRITON_CACHE_DIR=/cache/vllm/triton",
        f"--volume={site.folder / 'models'}:{site.folder / 'models'}:ro",
    ]


@contextmanager
def container(*arguments: str) -> Iterator[str]:
    """A container in the background, by its name; removed at the end."""
    name = f"spotter-check-{uuid.uuid4().hex[:8]}"
    run(command("run", "--detach", "--name", name, *HARDENED, *OFFLINE, *arguments))
    try:
        yield name
    finally:
        ask("rm", "--force", "--volumes", name)


def healthy(name: str, url: str) -> float:
    """Wait until the image's own health check passes in a container; the seconds that it took."""
    begin = time.monotonic()
    while time.monotonic() - begin < READY_S:
        if ask("exec", name, "python3", "/spotter/health.py", url)[0] is not None:
            return time.monotonic() - begin
        state, _ = ask("inspect", "--format", "{{.State.Running}}", name)
        if state != "true":
            log, _ = ask("logs", "--tail", "5", name)
            raise StepFailed(f"the container has ended: {' | '.join((log or '').splitlines())[-500:]}")
        time.sleep(2)
    raise StepFailed(f"the health check does not pass within {READY_S:.0f} s")


def serve_vllm(site: Site, stand_in: Path) -> str:
    """vLLM's own server without weights through serve_vllm.sh: key, health check, facts about the models.

    It renders requests, for which the CPU is enough.
    """
    tag = images.IMAGES["vllm-cuda"].tag
    secrets = site.folder / "secrets"
    secrets.mkdir(exist_ok=True)
    (secrets / "api_key").write_text("")
    (secrets / "api_key").chmod(0o444)
    secret = f"--volume={secrets}:/run/secrets:ro"
    refused = ask("run", "--rm", *HARDENED, *OFFLINE, CACHE, secret, tag, "--version")
    if refused[0] is not None or "would answer anyone" not in refused[1]:
        raise StepFailed(f"with an empty key the container does not end with its message: {refused}")
    (secrets / "api_key").chmod(0o644)
    (secrets / "api_key").write_text(KEY)
    server = ("launch", "render", str(stand_in), "--host=127.0.0.1", "--port=8000")
    with container(CACHE, secret, *mounted(site), tag, *server) as name:
        seconds = healthy(name, "http://127.0.0.1:8000/health")
        facts, _ = ask("exec", name, "ls", "/cache/vllm/modelinfos")
        kept = {each.name for each in (ROOT / "services" / "vllm" / "tables" / "modelinfos").iterdir()}
        if not kept <= set((facts or "").split()):
            raise StepFailed(f"serve_vllm.sh has not put {', '.join(kept)} into the cache: {facts}")
        shown, _ = ask("inspect", "--format", "{{json .Config.Env}}", name)
        received, _ = ask("exec", name, "python3", "-c", HAS_KEY)
        if KEY in (shown or "") or received != "True":
            raise StepFailed("the key is in the container's own variables, or has not reached vLLM")
    return f"an empty key is refused; the server without weights is healthy after {seconds:.0f} s"


def serve_detector() -> str:
    """The detector of the image, on its CPU: the small checkpoint, with the torch that is built for CUDA."""
    model = "/spotter/samples/models/tiny-detector"
    variables = {"DEVICE": "cpu", "BACKEND": "transformers", "MODEL": model, "PORT": "8001"}
    given = [f"--env=DETECTOR_{name}={value}" for name, value in variables.items()]
    with container(*given, images.IMAGES["detector-cuda"].tag) as name:
        seconds = healthy(name, "http://127.0.0.1:8001/")
        said, _ = ask("exec", name, "python", "-c", "import torch; print(torch.__version__)")
    return f"healthy after {seconds:.0f} s on the CPU with torch {json.dumps(said).strip(chr(34))}"


def remove(names: list[str]) -> None:
    """Remove images that the check has built."""
    for name in names:
        ask("image", "rm", images.IMAGES[name].tag)


DEFAULT_FOLDER = STATE / "check-cuda"
