#!/usr/bin/env python3
"""Look at vLLM's CUDA build from inside, without a GPU, and print what was found as one line of JSON.

Needs the libraries of an NVIDIA driver; those without a GPU will do (tests/doubles/nvidia_driver.py). Runs in vLLM's
environment or image, which has none of the operator's packages, so it imports nothing of Spotter.
"""

from __future__ import annotations

import argparse
import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

# Compute capabilities of an A100, an L4 and an H100.
CAPABILITIES = (80, 89, 90)
# Packages whose distribution has another name.
DISTRIBUTIONS = {"flashinfer": "flashinfer-python"}


def kernels() -> dict[str, Any]:
    """Triton's launcher, compiled by the host's compiler as at each first start, and a kernel for each capability."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia import driver
    from triton.compiler import ASTSource
    from triton.runtime.build import compile_module_from_src

    def add_one(source, target, size, block: tl.constexpr) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        place = tl.program_id(0) * block + tl.arange(0, block)
        tl.store(target + place, tl.load(source + place, mask=place < size) + 1.0, mask=place < size)

    launcher = Path(driver.dirname, "driver.c").read_text()
    try:
        compile_module_from_src(launcher, "cuda_utils", driver.library_dirs(), driver.include_dirs, driver.libraries)
    except ImportError as error:  # it is compiled; a driver without a GPU lacks functions that only loading needs
        if "undefined symbol: cu" not in str(error):
            raise
    signature = {"source": "*fp32", "target": "*fp32", "size": "i32", "block": "constexpr"}
    made, kernel = {}, triton.jit(add_one)
    for capability in CAPABILITIES:
        source = ASTSource(fn=kernel, signature=signature, constexprs={"block": 128})
        made[str(capability)] = len(triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"])
    return made


def configuration(preset: str) -> dict[str, Any]:
    """What vLLM makes of a preset on this driver's card: its whole configuration, and the attention backend."""
    import torch
    from vllm import AsyncEngineArgs
    from vllm.config import set_current_vllm_config
    from vllm.entrypoints.cli import serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.attention.selector import get_attn_backend

    parser = FlexibleArgumentParser(prog="vllm")
    (command,) = serve.cmd_init()
    command.subparser_init(parser.add_subparsers(required=False, dest="subparser"))
    arguments = parser.parse_args(["serve", "--config", preset, "--load-format", "dummy"])
    command.validate(arguments)
    config = AsyncEngineArgs.from_cli_args(arguments).create_engine_config()
    model = config.model_config
    with set_current_vllm_config(config):
        backend = get_attn_backend(model.get_head_size(), torch.bfloat16, config.cache_config.cache_dtype)
    return {
        "architecture": model.architectures[0],
        "attention": backend.get_name(),
        "graphs": config.compilation_config.cudagraph_mode.name,
        "step_tokens": config.scheduler_config.max_num_batched_tokens,
    }


def main() -> int:
    """Import what gemma-3n needs, compile, read the presets; a failure ends with its traceback."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("presets", nargs="*", help="files for `vllm serve --config`")
    arguments = parser.parse_args()
    import flashinfer
    import timm
    import torch
    import torchvision
    import vllm
    import xgrammar
    from transformers import Gemma3nForConditionalGeneration
    from vllm.platforms import current_platform

    assert torch.version.cuda, f"torch {torch.__version__} is not built for CUDA"
    assert current_platform.is_cuda(), f"vLLM takes this for {current_platform.device_name}"
    modules = (vllm, torch, torchvision, timm, flashinfer, xgrammar)
    versions = {each.__name__: metadata.version(DISTRIBUTIONS.get(each.__name__, each.__name__)) for each in modules}
    print(
        json.dumps(
            {
                "versions": versions,
                "model": Gemma3nForConditionalGeneration.__name__,
                "card": f"{current_platform.get_device_name()} {current_platform.get_device_capability()}",
                "kernels": kernels(),
                "presets": {Path(preset).stem: configuration(preset) for preset in arguments.presets},
            }
        ),
        flush=True,
    )
    os._exit(0)  # vLLM's threads would delay the interpreter's end for seconds


if __name__ == "__main__":
    main()
