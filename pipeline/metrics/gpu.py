"""The GPUs' utilisation and memory over a run, from `nvidia-smi`; on a host without one, nothing."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading

INTERVAL_MS = 500


class Gpus:
    """One `nvidia-smi` that reports until `close`: starting it anew for each reading takes longer than the reading."""

    def __init__(self, program: str = "nvidia-smi") -> None:
        self.names: list[str] = []
        self._latest: dict[int, tuple[float, float]] = {}
        self._process: subprocess.Popen[str] | None = None
        found = shutil.which(program)
        if found is None:
            return
        query = "--query-gpu=index,utilization.gpu,memory.used,name"
        command = [found, query, "--format=csv,noheader,nounits", f"--loop-ms={INTERVAL_MS}"]
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True
            )
            threading.Thread(target=self._follow, name="gpus", daemon=True).start()

    def _follow(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        names: dict[int, str] = {}
        for line in self._process.stdout:
            try:
                index, utilisation, memory_mib, name = (part.strip() for part in line.split(",", 3))
                self._latest[int(index)] = (float(utilisation) / 100, float(memory_mib) * 2**20)
            except ValueError:  # "[N/A]" where a card does not tell, or an error in words
                continue
            names[int(index)] = name
            self.names = [names[number] for number in sorted(names)]

    def now(self) -> tuple[float, float] | None:
        """Mean utilisation (0 to 1) and bytes in use in sum, over all GPUs; None where nothing is known."""
        latest = list(self._latest.values())
        if not latest:
            return None
        return sum(used for used, _ in latest) / len(latest), sum(memory for _, memory in latest)

    def close(self) -> None:
        """End the program."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
