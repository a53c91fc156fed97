"""The command line of all rungs: a folder of images and the servers in, a row for each dog out."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import daft

from examples.ladder.servers import Servers


@dataclass
class Found:
    """A rung's rows, each with `path`, `box` (xyxy, whole pixels) and `breed`, and their cost."""

    rows: list[dict[str, Any]]
    seconds: float
    """From the first file read to the last row, without imports and other preparations."""
    operators: dict[str, float] = field(default_factory=dict)
    """Seconds in each of Daft's operators, as Daft measures them; the README says what they leave out."""
    cpu_s: float = 0.0
    """CPU time of the rung's process over `find`."""


Find = Callable[[Path, Servers], Found]


def paths(folder: Path) -> daft.DataFrame:
    """`path`: all files of a folder, which must be images."""
    return daft.from_pydict({"path": [str(file) for file in sorted(folder.iterdir()) if file.is_file()]})


def collect(dogs: daft.DataFrame) -> Found:
    """Execute a rung's flow."""
    started = time.perf_counter()
    done = dogs.select("path", "box", "breed").collect()
    seconds = time.perf_counter() - started
    operators: dict[str, float] = {}
    if done.metrics is not None:
        for operator in done.metrics.to_pylist():
            name = operator["name"].removeprefix("UDF ")
            operators[name] = operators.get(name, 0.0) + operator["duration"].total_seconds()
    return Found(done.to_pylist(), seconds, operators)


def main(find: Find) -> None:
    """Run a rung and print its rows."""
    os.environ["DO_NOT_TRACK"], os.environ["DAFT_PROGRESS_BAR"] = "true", "0"
    parser = argparse.ArgumentParser(
        description=sys.modules[find.__module__].__doc__,
        epilog="SPOTTER_API_KEY holds the model server's key, if it needs one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="?", type=Path, default=Path("samples/images"), help="default: %(default)s")
    parser.add_argument("--detector-url", default="http://127.0.0.1:8001", help="default: %(default)s")
    parser.add_argument("--model-url", default="http://127.0.0.1:8000/v1", help="default: %(default)s")
    parser.add_argument("--model", default="tiny-vlm", help="its name at that server (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and times there, print nothing")
    arguments = parser.parse_args()
    key = os.environ.get("SPOTTER_API_KEY", "none")
    servers = Servers(arguments.detector_url, arguments.model_url, arguments.model, key)
    before = time.process_time()
    found = find(arguments.images, servers)
    found.cpu_s = time.process_time() - before
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(found)))
    else:
        for row in found.rows:
            print(f"{Path(row['path']).name:20} {row['breed']:22} {row['box']}")
        print(f"{len(found.rows)} dogs in {found.seconds:.1f} s")
    sys.stdout.flush()
    # Daft never closes the connections of its clients.
    os._exit(0)
