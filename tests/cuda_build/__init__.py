"""`make check-cuda`: the builds for GPUs, checked on a host without one."""
