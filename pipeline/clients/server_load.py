"""Polls the servers' Prometheus metrics while a run goes on: the model server's queue steers the limiter.

vLLM names its metrics `vllm:...`; the detector's come from Mosec and begin with `detector_`. A server without metrics
(another kind, an address behind a gateway) is asked a few times and then left alone.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from pipeline.clients.network import opener

# A busy server answers within this time, or the next reading will do.
TIMEOUT_S = 2.0
# Failures in a row after which a server counts as one without metrics.
GIVE_UP_AFTER = 3
# How often the servers are read, which costs them a few milliseconds.
POLL_S = 1.0
# How long a run waits for the first and the last reading: two servers that answer just in time.
WAIT_S = 2 * TIMEOUT_S

PREFIXES = ("vllm:", "detector_")
RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
# The name of a share, from 0 to 1; and of what only grows, also with a label.
SHARE = "_perc"
COUNTS = re.compile(r"_(?:total|sum|count)(?:\{.*)?$")

Reading = Mapping[str, float]
"""A metric's value by its name, summed over its labels; the detector's stages and vLLM's reasons to finish stand in the
name: `...{Detect}`. Empty where the server could not be read."""


def parse(text: str) -> Reading:
    """The services' values on a page in Prometheus' text format; of histograms the sums and counts.

    Raises:
        ValueError: the page holds none of them.
    """
    reading: dict[str, float] = {}
    # Most of vLLM's page is buckets and Python's own counters: parsing all of it each second takes 20 ms of CPU.
    wanted = "\n".join(line for line in text.splitlines() if line.startswith(PREFIXES) and "_bucket{" not in line)
    for family in text_string_to_metric_families(wanted):
        for sample in family.samples:
            if sample.name.endswith(("_created", "_info")):
                continue
            stage = sample.labels.get("stage", "").partition("_")[0]
            reason = sample.labels.get("finished_reason", "")
            labels = [label for label in (stage, reason) if label]
            for name in (sample.name, *(f"{sample.name}{{{label}}}" for label in labels)):
                reading[name] = reading.get(name, 0.0) + sample.value
    if not reading:
        raise ValueError(f"no metric that begins with {' or '.join(PREFIXES)}")
    return reading


def fetch(url: str, ca_file: Path | None = None) -> Reading:
    """Read a server's metrics, on the same way as requests go to it.

    Raises:
        OSError: nobody answers, or not with 200.
        ValueError: the page holds none of the services' metrics.
    """
    with opener(url, ca_file).open(url, timeout=TIMEOUT_S) as response:
        text: str = response.read().decode()
    return parse(text)


def metrics_url(base_url: str) -> str:
    """Where a service has its metrics: beside its API's version."""
    return base_url.rstrip("/").removesuffix("/v1") + "/metrics"


class Page:
    """The metrics of one address."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.now: Reading = {}
        """The last reading; empty where it failed."""
        self.known: Reading = {}
        """The last one that did not."""
        self.listeners: list[Callable[[Reading], None]] = []
        """Called with each reading of this address, in the thread that polls."""
        self.failures = 0
        self.cpu_s = 0.0

    @property
    def missing(self) -> bool:
        """Whether the address has no metrics."""
        return self.failures >= GIVE_UP_AFTER and not self.known

    def read(self, read: Callable[[str], Reading]) -> None:
        """Read once, unless there are none."""
        if self.missing:
            return
        began = time.thread_time()
        try:
            self.now = self.known = read(metrics_url(self.base_url))
        except Exception:  # a page may be anything (cut short, not text), and no run ends for it
            self.failures += 1
            self.now = {}
        self.cpu_s += time.thread_time() - began


class Server:
    """One service's metrics, of all its addresses, and who listens to them."""

    def __init__(
        self,
        base_urls: Sequence[str],
        read: Callable[[str], Reading] = fetch,
        steer: Callable[[str, Reading], None] | None = None,
    ) -> None:
        """`steer` hears of each address by itself."""
        self.pages = [Page(url) for url in base_urls]
        self.read = read
        self.steer = steer
        self.listeners: list[Callable[[Reading], None]] = []
        """Called with the reading of all addresses together, in the thread that polls."""

    def poll(self) -> None:
        """Read each address once and pass the readings on, unless nobody listens or none has metrics."""
        if (self.steer is None and not self.listeners) or all(page.missing for page in self.pages):
            return
        if len(self.pages) == 1:
            self.pages[0].read(self.read)
        else:  # side by side, since one that hangs must not hold up the others
            with ThreadPoolExecutor(len(self.pages)) as threads:
                list(threads.map(lambda page: page.read(self.read), self.pages))
        if self.steer is not None:
            for page in self.pages:
                self.steer(page.base_url, page.now)
        for page in self.pages:
            for listen in page.listeners:
                listen(page.now)
        reading = together(self.pages)
        for listen in self.listeners:
            listen(reading)


def together(pages: Sequence[Page]) -> Reading:
    """The sum of the addresses' metrics, of shares the largest; empty where no address could be read.

    Counters of an address that cannot be read now stay as they were.
    """
    if len(pages) == 1 or not any(page.now for page in pages):
        return pages[0].now
    total: dict[str, float] = {}
    for page in pages:
        for name, value in page.known.items():
            if name.endswith(SHARE):
                total[name] = max(total.get(name, 0.0), value)
            elif page.now or COUNTS.search(name):
                total[name] = total.get(name, 0.0) + value
    return total


class LoadPoller:
    """Polls servers from a thread of its own, from `start` to `stop`."""

    def __init__(self, servers: Mapping[str, Server]) -> None:
        self.servers = servers
        self._stop, self._first = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="server load", daemon=True)

    @property
    def cpu_s(self) -> float:
        """CPU time that polling took."""
        return sum(page.cpu_s for server in self.servers.values() for page in server.pages)

    def start(self) -> None:
        """Begin to poll, and wait for the first reading, but not for a server that hangs."""
        self._thread.start()
        self._first.wait(WAIT_S)

    def stop(self) -> None:
        """Poll a last time; `finish` waits for it."""
        self._stop.set()

    def finish(self) -> None:
        """Wait until the last reading is there, after `stop`."""
        if self._thread.is_alive():
            self._thread.join(WAIT_S)

    def _run(self) -> None:
        self._poll()
        self._first.set()
        while not self._stop.wait(POLL_S):
            self._poll()
        self._poll()

    def _poll(self) -> None:
        for server in self.servers.values():
            server.poll()
