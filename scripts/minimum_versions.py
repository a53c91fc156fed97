"""The minimum versions and sizes that the stack needs, each with its reason."""

from __future__ import annotations

# The oldest engine that the compose files were run on.
DOCKER_ENGINE = (20, 10)
# The first Compose that reads `include`, `service_healthy` and files without `version:`.
COMPOSE = (2, 20)

# For CUDA 13, of torch in the vllm-cuda lock and of vLLM's image.
NVIDIA_DRIVER = (580,)
# bfloat16 in hardware: Ampere.
COMPUTE_CAPABILITY = (8, 0)

GIB = 2**30

# Available host memory. CPU: measured 3.0 GiB in vLLM's three processes and 0.3 in the detector's six; the job takes
# 0.5 and more. GPU: the weights pass through the page cache, the processes hold torch's CUDA libraries.
RAM_GIB = {"cpu": 6, "cuda": 12}
# Each further model server. GPU: an estimate; the weights are in the page cache already.
FURTHER_SERVER_GIB = {"cpu": 3, "cuda": 6}

# Free disk for the process engine's environments: measured for the CPU (2.4 GB vLLM, 0.2 GB detector, with torch
# 1.1 GB, and uv's copies); about twice the size of the wheels for CUDA, whose torch alone has 5 GB.
ENVIRONMENTS_GIB = {"cpu": 5, "cuda": 24}
# Free disk for images in the engine's root: for the CPU 3.6 GB, with torch in the detector's 4.5 GB, and as much for a
# builder's layers.
IMAGES_GIB = {"cpu": 9, "cuda": 40}
# Free disk for caches: vLLM's compiled kernels, and on a GPU 15 GiB of weights with a detector's.
CACHES_GIB = {"cpu": 1, "cuda": 24}

# With a larger error of the clock, TLS and the hub's signed addresses fail.
CLOCK_S = 300.0
