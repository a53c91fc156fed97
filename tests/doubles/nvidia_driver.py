#!/usr/bin/env python3
"""Make the two libraries of an NVIDIA driver without a GPU, for checks of vLLM's CUDA build on any machine.

`libnvidia-ml.so.1` shows one card, as nvidia-smi would. `libcuda.so.1` has the functions that vLLM's libraries link to;
each says that there is no device, so nothing can run on it. Needs gcc and nm.

    python3 tests/doubles/nvidia_driver.py FOLDER SITE_PACKAGES --name 'NVIDIA L4' --mib 23034 --capability 8.9
"""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path

# CUDA_ERROR_NO_DEVICE.
NO_DEVICE = 100

# NVML's functions that vLLM 0.32 and torch 2.13 call for a name, a size and a capability; 0: success.
NVML = """
#include <string.h>
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory2;
int nvmlInit_v2(void) { return 0; }
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return "a driver without a GPU"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)1; return 0; }
int nvmlDeviceGetIndex(void *device, unsigned *index) { *index = 0; return 0; }
int nvmlDeviceGetName(void *device, char *name, unsigned size) { strncpy(name, CARD, size); return 0; }
int nvmlDeviceGetUUID(void *device, char *id, unsigned size) {
  strncpy(id, "GPU-00000000-0000-0000-0000-000000000000", size);
  return 0;
}
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
  *major = MAJOR;
  *minor = MINOR;
  return 0;
}
int nvmlDeviceGetMemoryInfo(void *device, Memory *memory) {
  memory->total = memory->free = MIB * 1048576ULL;
  memory->used = 0;
  return 0;
}
int nvmlDeviceGetMemoryInfo_v2(void *device, Memory2 *memory) {
  memory->total = memory->free = MIB * 1048576ULL;
  memory->reserved = memory->used = 0;
  return 0;
}
"""


def missing(site: Path) -> list[str]:
    """The functions of the driver that vLLM's and torch's libraries leave open."""
    found: set[str] = set()
    for library in [*site.glob("vllm/**/*.so"), *site.glob("torch/lib/*.so")]:
        listed = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True).stdout
        found |= set(re.findall(r"\bcu[A-Z]\w+", listed))
    return sorted(found)


def build(source: str, library: Path, *options: str) -> None:
    """Compile a library from C."""
    command = ["gcc", "-w", "-shared", "-fPIC", *options, "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=source, text=True, check=True)


def main() -> int:
    """Write both libraries; a failing compiler's message goes to stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("site_packages", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--mib", type=int, required=True)
    parser.add_argument("--capability", required=True, help="as 8.9")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    open_ones = missing(arguments.site_packages)
    driver = "\n".join(f"int {name}(void) {{ return {NO_DEVICE}; }}" for name in open_ones)
    build(driver, arguments.folder / "libcuda.so.1", "-Wl,-soname,libcuda.so.1")
    major, minor = arguments.capability.split(".")
    card = (f'-DCARD="{arguments.name}"', f"-DMIB={arguments.mib}", f"-DMAJOR={major}", f"-DMINOR={minor}")
    build(NVML, arguments.folder / "libnvidia-ml.so.1", *card, "-Wl,-soname,libnvidia-ml.so.1")
    print(f"{arguments.folder}: {arguments.name}; {len(open_ones)} functions of the driver")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
