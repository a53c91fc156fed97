"""Run the job from bucket to bucket on s3rver, an S3 server of npm that shares no code with the one of the tests.

    python -m scripts.bench.s3_server

It lists keys of awkward names, reads them, publishes the run, and goes on from it as another host would, after a run
that was killed. npm has to be installed; it fetches s3rver. Detector and model are simulated.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console

from pipeline import settings as pipeline_settings
from pipeline.output.manifest import Result
from pipeline.run import run
from pipeline.sources.listing import list_images
from pipeline.sources.objects import Objects
from scripts.bench import command
from scripts.environments import ROOT
from tests.doubles.simulated import Simulated, serve

SERVER = "s3rver@3.7.1"
BUCKET = "s3://pictures"
# s3rver itself does not list a prefix that holds prefixes alone, such as `sub/` of `sub/deep/x.jpg`.
NAMES = ("a.jpg", "b c.jpg", "ü#?%25.jpg", "[1].jpg", "a+b&c=d.jpg", "100%.jpg", "😀.jpg", "sub/x.jpg")
KILLED_AFTER_S = 3.0


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Run s3rver with an empty bucket until the block ends; its address.

    Raises:
        BenchFailed: npm is not there, or the server does not start.
    """
    npx = shutil.which("npx")
    if npx is None:
        raise command.BenchFailed("npx is not there: install npm")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        "-d",
        str(folder),
        "-a",
        "127.0.0.1",
        "-p",
        str(port),
        "--configure-bucket",
        BUCKET.removeprefix("s3://"),
    ]
    with (folder.parent / "s3rver.log").open("w+") as log:
        child = subprocess.Popen([npx, "--yes", SERVER, *options], stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + 120
            while not answers(port):
                if child.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise command.BenchFailed(f"{SERVER} does not start: {log.read()[-500:]}")
                time.sleep(0.2)
            yield f"http://localhost:{port}"
        finally:
            os.killpg(child.pid, signal.SIGTERM)
            child.wait()


def answers(port: int) -> bool:
    """Whether something listens on a port of this host."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Bench:
    """The checks on one server; each notes what is wrong."""

    def __init__(self, scratch: Path, endpoint: str, simulated: Simulated) -> None:
        self.scratch = scratch
        self.objects = Objects(endpoint)
        self.simulated = simulated
        self.problems: list[str] = []

    def expect(self, what: str, found: object, expected: object) -> None:
        """Note a difference."""
        print(f"{'ok ' if found == expected else 'BAD'} {what}: {found}")
        if found != expected:
            self.problems.append(f"{what}: {found}, expected {expected}")

    def put(self, name: str, number: int) -> None:
        """Store a picture that differs from those of other numbers."""
        picture = self.scratch / "picture.jpg"
        Image.new("RGB", (100 + number, 80), (number * 20 % 256, 90, 90)).save(picture)
        self.objects.copy([(str(picture), f"{BUCKET}/photos/{name}")])

    def arguments(self, work: str) -> list[str]:
        """The options of a run from the bucket into it, which works in a folder of one host."""
        given = ["--images", f"{BUCKET}/photos", "--output", f"{BUCKET}/runs", "--run-name", "one"]
        return [*given, "--work", str(self.scratch / work)]

    def run(self, work: str) -> tuple[Result, int]:
        """Run the job on a host; the run, and the number of crops that the model was asked about."""
        before = self.simulated.model.requests
        done = run(pipeline_settings.load(self.arguments(work)), Console(file=io.StringIO()))
        return done, self.simulated.model.requests - before - 1  # one question comes before each run

    def check(self) -> None:
        """List, read, publish, and go on."""
        for number, name in enumerate(NAMES):
            self.put(name, number)
        listed = list_images(f"{BUCKET}/photos", None, self.objects).sources
        self.expect("listed", sorted(source.shown for source in listed), sorted(f"{BUCKET}/photos/{n}" for n in NAMES))
        self.expect("a glob", len(list_images(f"{BUCKET}/photos/*.jpg", None, self.objects).sources), len(NAMES) - 1)
        self.kill()
        done, _ = self.run("one")
        self.expect("answered", done.answered, len(NAMES))
        published = {
            address.removeprefix(f"{BUCKET}/runs/one/") for address, _ in self.objects.list(f"{BUCKET}/runs/one")
        }
        here = {str(path.relative_to(done.folder)) for path in done.folder.rglob("*") if path.is_file()}
        self.expect("files that were not published", sorted(here - published), [".lock", ".published"])
        self.put("new.jpg", len(NAMES))
        done, asked = self.run("another host")
        self.expect("asked by another host, after one more picture", (asked, done.answered), (1, len(NAMES) + 1))
        table = pq.read_table(pa.BufferReader(self.objects.read(f"{BUCKET}/runs/one/images.parquet")))
        self.expect("published rows", table.num_rows, len(NAMES) + 1)

    def kill(self) -> None:
        """Begin the run in a process, and kill it."""
        self.simulated.latency_s = KILLED_AFTER_S
        child = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *self.arguments("one")], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        while f"{BUCKET}/runs/one/run.json" not in dict(self.objects.glob(f"{BUCKET}/runs/one/*")):
            time.sleep(0.2)
        child.kill()
        child.wait()
        self.simulated.settle()
        self.simulated.latency_s = 0.0


def measure() -> list[str]:
    """Start the server, and check; a line for each thing that is wrong."""
    with tempfile.TemporaryDirectory() as scratch, serve() as simulated:
        data = Path(scratch, "data")
        data.mkdir()
        with server(data) as endpoint:
            os.environ.update(simulated.settings, AWS_ENDPOINT_URL=endpoint, AWS_DEFAULT_REGION="us-east-1")
            os.environ.update(AWS_ACCESS_KEY_ID="S3RVER", AWS_SECRET_ACCESS_KEY="S3RVER")
            bench = Bench(Path(scratch), endpoint, simulated)
            bench.check()
            return bench.problems


def main() -> int:
    """Run the bench."""
    command.Options(__doc__).parse_args()
    return command.run(measure)


if __name__ == "__main__":
    sys.exit(main())
