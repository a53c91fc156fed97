"""Check the builds for GPUs on a host without a GPU: `make check-cuda`.

It makes the environments vllm-cuda and detector-cuda from their locks in a folder of its own, runs vLLM's CUDA build
there with a driver that has no GPU, then builds both images and runs them. Needs a package index, gcc and 12 GB of
disk; for the images Docker and 32 GB more. What it makes, it removes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from rich.console import Console

from scripts.checks.gpu.model import STAND_IN, stand_in
from scripts.docker import images
from scripts.docker.host import find_engine
from scripts.stack.devices import PRESETS
from tests.cuda_build import containers, packages, served
from tests.cuda_build.containers import DEFAULT_FOLDER
from tests.cuda_build.packages import Site
from tests.cuda_build.report import NotPossible, Report

# Only a GPU can show these.
NOT_CHECKED = (
    "kernels on a GPU: attention, CUDA graphs, torch.compile",
    "memory: whether each preset's arithmetic holds",
    "speed and answers",
)


def check_environments(report: Report, site: Site, write: bool) -> dict[str, Path]:
    """The part without Docker; the presets with their stand-in, none where vLLM's environment failed."""
    ready = report.step("environment vllm-cuda", site.make, "vllm-cuda")
    if report.step("environment detector-cuda", site.make, "detector-cuda"):
        report.step("detector: imports", site.detector)
        report.step("detector: files", site.overwritten, "detector-cuda")
    report.step("preflight: no false alarm", packages.no_false_alarms)
    for preset in packages.BY_NAME:
        report.step(f"{preset}: served on the CPU", served.answer, preset, site.folder / "served")
    if not ready:
        return {}
    report.step("vLLM: files", site.overwritten, "vllm-cuda")
    presets: dict[str, Path] = {}

    def make_stand_ins() -> str:
        made = stand_in(site.folder / "models", site.python("vllm-cuda"))
        models = {name: made for name, _ in PRESETS} | site.small_models(made)
        presets.update(packages.with_stand_in(models, site.folder))
        return f"of {len(set(models.values()))} models: the sizes, without weights"

    if not report.step("driver without a GPU", site.make_driver):
        return {}
    report.step("vLLM: parser", site.parse)
    if not (report.step("vLLM: weights", site.sizes) and report.step("stand-ins", make_stand_ins)):
        return {}
    report.step("vLLM: imports, Triton, presets", site.inside, list(presets.values()))
    report.step("vLLM: tables", site.check_tables, write)
    report.step("vLLM: full preflight", site.check_presets, presets)
    return presets


def check_images(report: Report, site: Site, presets: dict[str, Path], keep: bool) -> None:
    """The part with Docker, an image after the other."""
    there = {name for name in ("vllm-cuda", "detector-cuda") if images.has(images.IMAGES[name].tag)}
    for name in ("vllm-cuda", "detector-cuda"):
        if not report.step(f"image {name}", containers.build, name, site, report.console):
            continue
        report.step(f"image {name}: content", containers.look, name)
        if name == "detector-cuda":
            report.step("image detector-cuda: service", containers.serve_detector)
        elif presets:
            report.step("image vllm-cuda: imports, Triton, presets", containers.inside, site, list(presets.values()))
            report.step("image vllm-cuda: server", containers.serve_vllm, site, site.folder / "models" / STAND_IN)
        if not keep and name not in there:
            containers.remove([name])


def main() -> int:
    """0: nothing is wrong. 1: a step failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="where to work (default: %(default)s)")
    parser.add_argument("--without-images", action="store_true", help="leave out the part with Docker")
    parser.add_argument("--keep", action="store_true", help="remove nothing at the end")
    parser.add_argument("--write-tables", action="store_true", help="write options_cuda.json as this build has it")
    arguments = parser.parse_args()
    site, report = Site(arguments.folder.resolve()), Report(Console(width=None if sys.stdout.isatty() else 140))
    site.folder.mkdir(parents=True, exist_ok=True)
    presets = check_environments(report, site, arguments.write_tables)
    if not arguments.keep:  # the images need the room
        for each in (".spotter", "uv-cache"):
            shutil.rmtree(site.folder / each, ignore_errors=True)
    engine, why = find_engine()
    if arguments.without_images or engine is None:

        def left_out() -> str:
            raise NotPossible("left out, as asked" if arguments.without_images else why)

        report.step("images", left_out)
    else:
        check_images(report, site, presets, arguments.keep)
    if not arguments.keep:
        shutil.rmtree(site.folder, ignore_errors=True)
    report.show()
    report.console.print("Not checked, for that takes a GPU: " + "; ".join(NOT_CHECKED), highlight=False)
    return 1 if report.failed() else 0


if __name__ == "__main__":
    raise SystemExit(main())
