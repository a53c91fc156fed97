"""The least that the stack works with, in one place, each with its reason."""

from __future__ import annotations

# The oldest engine that the compose files were run on.
DOCKER_ENGINE = (20, 10)
# Compose files without `version:`, `service_healthy` and `include`: the Go rewrite, at the release that reads them all.
COMPOSE = (2, 20)

# CUDA 13, which torch in the vllm-cuda lock and vLLM's image bring, needs a driver of this branch.
NVIDIA_DRIVER = (580,)
# bfloat16 in hardware: Ampere.
COMPUTE_CAPABILITY = (8, 0)

GIB = 2**30

# Available host memory. CPU: 3.0 GiB in vLLM's three processes and 0.6 in the detector's six were measured, the job
# takes 0.5 and more. GPU: the weights pass through the page cache, the processes hold torch's CUDA libraries.
RAM_GIB = {"cpu": 6, "cuda": 12}

# Free disk for what the process engine installs: measured for the CPU (2.4 GB vLLM, 1 GB detector, uv's copies);
# about twice the wheels' size for CUDA, whose torch alone is 5 GB.
ENVIRONMENTS_GIB = {"cpu": 6, "cuda": 24}
# Free disk for images in the engine's root, by the same sizes, with a builder's layers.
IMAGES_GIB = {"cpu": 10, "cuda": 40}
# Free disk for caches: vLLM's compiled kernels, and on a GPU 15 GiB of weights with a detector's.
CACHES_GIB = {"cpu": 1, "cuda": 24}

# A clock that is further off makes TLS and the hub's signed addresses fail.
CLOCK_S = 300.0
