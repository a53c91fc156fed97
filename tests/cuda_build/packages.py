"""The environments for GPUs: made from their locks, imported, and asked about tables and presets."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline import job as jobs
from scripts.checks.preflight import command, full, static
from scripts.environments import LOCKS, ROOT
from scripts.findings import errors
from scripts.settings import read_variables
from scripts.stack.devices import PRESETS, Gpu
from scripts.stack.vllm_server import PRESETS as FOLDER_OF_PRESETS
from scripts.stack.vllm_server import STARTS, preset_file
from scripts.vllm import tables
from scripts.vllm.checker import in_environment
from tests.cuda_build.report import StepFailed
from tests.services import preset_server

IN_BUILD = Path(__file__).with_name("in_build.py")
SIZES = Path(__file__).with_name("sizes.py")
PARSE = ROOT / "tests" / "contract" / "parse_preset.py"
# A driver's libraries without a GPU: only processes of this check see them, no environment and no image holds them.
DRIVER = ROOT / "tests" / "doubles" / "nvidia_driver.py"
CARD = ("--name", "NVIDIA L4", "--mib", "23034", "--capability", "8.9")
JOB = "dog_breeds"
# Top-level files that packages leave behind by mistake; nothing imports them.
STRAY = re.compile(r"[^/]+\.py")


def run(command: Sequence[str | Path], env: Mapping[str, str] | None = None, timeout_s: float = 1800.0) -> str:
    """What a program prints.

    Raises:
        StepFailed: it fails; the message has its last lines.
    """
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired as late:
        raise StepFailed(f"{Path(command[0]).name} took longer than {timeout_s:.0f} s") from late
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise StepFailed(f"{Path(command[0]).name} ends with {done.returncode}: {' | '.join(said[-3:])[-600:]}")
    return done.stdout


def size(folder: Path) -> str:
    """The size of a folder, for people."""
    return f"{sum(path.lstat().st_size for path in folder.rglob('*')) / 1e9:.1f} GB"


@dataclass(frozen=True)
class Site:
    """A folder with environments of its own, made as images/Dockerfile makes them."""

    folder: Path

    def home(self, name: str) -> Path:
        """The folder of an environment."""
        return self.folder / ".spotter" / "envs" / name

    def python(self, name: str) -> Path:
        """The interpreter of an environment."""
        return self.home(name) / "bin" / "python"

    def packages(self, name: str) -> Path:
        """The folder of an environment's packages."""
        return next(self.home(name).glob("lib/python3.*/site-packages"))

    @property
    def driver(self) -> Path:
        """The folder of the driver without a GPU."""
        return self.folder / "driver"

    @property
    def variables(self) -> dict[str, str]:
        """Of processes that see the driver, and no cache but this folder's."""
        own = {"LD_LIBRARY_PATH": str(self.driver), "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
        return {**os.environ, **own, "VLLM_CACHE_ROOT": str(self.folder / "vllm-cache")}

    def make(self, name: str) -> str:
        """Make an environment beside a folder of wheels that holds a CPU build of torch, which must not be taken."""
        for part in ("scripts/environments.py", f"images/locks/{name}.lock", "images/locks/uv.lock"):
            (self.folder / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / part, self.folder / part)
        version = tables.locked_version(LOCKS / f"{name}.lock", "torch")
        wheels = self.folder / "wheels"
        wheels.mkdir(exist_ok=True)
        (wheels / f"torch-{version}+cpu-cp311-cp311-manylinux_2_28_x86_64.whl").touch()  # empty: uv cannot read it
        links = f"{wheels} {os.environ.get('PIP_FIND_LINKS', '')}".strip()
        own = {"PIP_FIND_LINKS": links, "UV_CACHE_DIR": str(self.folder / "uv-cache"), "UV_COMPILE_BYTECODE": "0"}
        run([sys.executable, self.folder / "scripts" / "environments.py", name], {**os.environ, **own})
        return f"{size(self.home(name))}, {len(list(self.packages(name).glob('*.dist-info')))} packages"

    def overwritten(self, name: str) -> str:
        """Whether two packages brought one file with different contents: the later one breaks the other."""
        owners: dict[str, dict[str, str]] = defaultdict(dict)
        for record in self.packages(name).glob("*.dist-info/RECORD"):
            with record.open(newline="") as lines:
                for path, digest, *_ in csv.reader(lines):
                    if digest and not STRAY.fullmatch(path):
                        owners[path][record.parent.name.removesuffix(".dist-info")] = digest
        shared = {path: packages for path, packages in owners.items() if len(set(packages.values())) > 1}
        if shared:
            path, packages = next(iter(shared.items()))
            raise StepFailed(f"{len(shared)} files belong to two packages, such as {path}: {', '.join(packages)}")
        return f"{len(owners)} files, each of one package"

    def make_driver(self) -> str:
        """Make the driver without a GPU."""
        return run([sys.executable, DRIVER, self.driver, self.packages("vllm-cuda"), *CARD]).strip()

    def inside(self, presets: list[Path]) -> str:
        """Imports, Triton's compiler and the presets' whole configuration in vLLM's environment."""
        said = run([self.python("vllm-cuda"), "-P", IN_BUILD, *presets], self.variables)
        return told(said)

    def detector(self) -> str:
        """The imports of the detector, in its environment."""
        program = (
            "import json, torch, transformers, services.detector.service as s\n"
            "from transformers import DFineForObjectDetection\n"
            "assert torch.version.cuda, torch.__version__\n"
            "print(torch.__version__, 'transformers', transformers.__version__)"
        )
        return (
            "torch "
            + run([self.python("detector-cuda"), "-c", program], {**os.environ, "PYTHONPATH": str(ROOT)}).strip()
        )

    def check_tables(self, write: bool) -> str:
        """vLLM's tables as this build gives them, against those of the repository."""
        output = self.folder / "tables"
        output.mkdir(exist_ok=True)
        run([self.python("vllm-cuda"), ROOT / tables.DUMP, output], self.variables)
        options = json.loads((output / "options.json").read_text())
        of_cpu = tables.read("options")["options"]
        differing = {name: entry for name, entry in options["options"].items() if of_cpu.get(name) != entry}
        if write:
            table = {"version": options["version"], "options": differing}
            (tables.FOLDER / "options_cuda.json").write_text(json.dumps(table, indent=1) + "\n")
            tables.read.cache_clear()
        found, kept = options["options"], tables.options("cuda")
        if wrong := [name for name in found | kept if found.get(name) != kept.get(name)]:
            raise StepFailed(f"options_cuda.json is wrong about {', '.join(wrong)}: add OPTIONS=--write-tables")
        infos = [f"modelinfos/{each.name}" for each in tables.MODEL_INFOS.iterdir()]
        same = ["architectures.json", "request.json", *infos]
        if other := [name for name in same if (output / name).read_text() != (tables.FOLDER / name).read_text()]:
            raise StepFailed(f"{', '.join(other)} differ between the builds for CPU and GPU")
        return f"{len(found)} options, of which {', '.join(differing) or 'none'} differ from the CPU build"

    def parse(self) -> str:
        """vLLM's own parser on each preset, alone and with the options of each start."""
        files = [FOLDER_OF_PRESETS / f"{name}.yaml" for name in gpu_presets()]
        starts = [
            " ".join(f"--{name}" for name, value in yaml.safe_load(start.read_text()).items() if value is True)
            for start in sorted(STARTS.glob("*.yaml"))
        ]
        words = [f"{file} {start}".strip() for file in files for start in ("", *starts)]
        said = json.loads(run([self.python("vllm-cuda"), PARSE, *words], self.variables).splitlines()[-1])["presets"]
        if wrong := {each: parsed["error"] for each, parsed in said.items() if parsed["error"]}:
            raise StepFailed(f"refused: {wrong}")
        return f"{len(words)} accepted: {', '.join(gpu_presets())}, each also with its fast start"

    def sizes(self) -> str:
        """The weights of the presets' models, counted, against known_models.json, from which the preflight reckons."""
        output = self.folder / "sizes"
        output.mkdir(exist_ok=True)
        counted = json.loads(run([self.python("vllm-cuda"), "-P", SIZES, output], self.variables).splitlines()[-1])
        known = static.known_models()
        for model, parts in counted.items():
            for part, gib in parts.items():
                if abs(known[model][part] - gib) > 0.01:
                    raise StepFailed(f"known_models.json: {model}: {part} is {known[model][part]}, counted {gib:.2f}")
        return ", ".join(
            f"{model.rpartition('/')[2]} {parts['weights_gib']:.2f} GiB" for model, parts in counted.items()
        )

    def small_models(self, stand_in: Path) -> dict[str, Path]:
        """For each preset that no card gets by itself its model's sizes, with the files of a tiny model; by preset."""
        made = {}
        for preset in BY_NAME:
            made[preset] = folder = self.folder / "models" / preset
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(exist_ok=True)
            if preset in preset_server.NEWER:
                env = {**os.environ, "PYTHONPATH": str(ROOT)}
                builder = (preset_server.NEWER_BUILDER, preset, folder, preset_server.CORPUS)
                run([self.python("vllm-cuda"), *builder], env)
                (folder / "model.safetensors").unlink()
            else:
                shutil.copytree(stand_in, folder)
            model = yaml.safe_load(preset_file(preset).read_text())["model"].rpartition("/")[2]
            full = json.loads((self.folder / "sizes" / model / "config.json").read_text())
            small = json.loads((folder / "config.json").read_text())
            ids = {name: value for name, value in small.items() if "_token_i" in name}  # those of the tokenizer
            (folder / "config.json").write_text(json.dumps({**full, **ids}, indent=2))
        return made

    def check_presets(self, presets: Mapping[str, Path]) -> str:
        """The full preflight of each preset with its stand-in: options, files, renderer, grammar."""
        asked, found = command.asked_of(jobs.load(JOB), {}), []
        for name, file in presets.items():
            server = command.server_of(file, "cuda", [], environment=self.variables)
            findings = full.check(server, asked, ROOT, in_environment(self.python("vllm-cuda")))
            if wrong := [each for each in findings if each.severity != "ok"]:
                raise StepFailed(f"{name}: {'; '.join(map(str, wrong))}")
            found.append(f"{name}: {findings[0].found}")
        return "\n".join(found)


def no_false_alarms() -> str:
    """The static preflight of each preset on its card finds nothing but the model that is still to fetch."""
    asked = command.asked_of(jobs.load(JOB), {})
    cards = dict(PRESETS)
    for name in gpu_presets():
        memory_mib = cards.get(name, cards["l4"])
        server = command.server_of(preset_file(name), "cuda", [Gpu(name, memory_mib)])
        checked = static.check(server, asked, ROOT)
        if wrong := [each for each in checked.findings if each.check != "model" or errors([each])]:
            raise StepFailed(f"{name}: {'; '.join(map(str, wrong))}")
    return f"none for {', '.join(gpu_presets())}"


def gpu_presets() -> list[str]:
    """The names of the presets for GPUs."""
    return sorted(file.stem for file in FOLDER_OF_PRESETS.glob("*.yaml") if file.stem != "cpu")


# Presets that no card gets by itself.
BY_NAME = sorted(set(gpu_presets()) - {name for name, _ in PRESETS})


def told(said: str) -> str:
    """The line of JSON that in_build.py printed, for people."""
    seen: dict[str, Any] = json.loads(said.splitlines()[-1])
    lines = [", ".join(f"{name} {version}" for name, version in seen["versions"].items())]
    lines.append(f"Triton's launcher compiled; kernels for {', '.join(seen['kernels'])}")
    lines += [f"{name}: " + ", ".join(map(str, facts.values())) for name, facts in seen["presets"].items()]
    return "\n".join(lines)


def with_stand_in(models: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Copies of presets that name a stand-in in place of the model of the hub."""
    copies = {}
    for name, stand_in in models.items():
        file = preset_file(name)
        content = {**yaml.safe_load(file.read_text()), "model": str(stand_in)}
        content.pop("revision", None)
        copies[name] = folder / f"{name}.yaml"
        copies[name].write_text(yaml.safe_dump(content))
        variables = read_variables(file.with_suffix(".env"))
        copies[name].with_suffix(".env").write_text("".join(f"{key}={value}\n" for key, value in variables.items()))
    return copies
