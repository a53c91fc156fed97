"""Runs on a Ray cluster of separate `ray start` processes: the native runner's rows, whatever dies.

One cluster serves all tests of this file, and grows in their order: a node costs 4 s of CPU to start, a worker 3 s.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT
from tests.doubles.faults import grid
from tests.doubles.simulated import Simulated, serve
from tests.pictures import encoded, gradient
from tests.ray_cluster import BLIND, POISON, Cluster, Node, cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

BOUNDS = {"detector": 8, "model": 16}
BOXES = 2
PICTURES = 100


@pytest.fixture(scope="module")
def servers() -> Iterator[Simulated]:
    with serve() as simulated:
        simulated.boxes = lambda image: grid(BOXES)
        simulated.keep_bodies = False
        yield simulated


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of different content, copies of three of them, and a file that is not a picture."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(PICTURES):
        (folder / f"{number:03}.jpg").write_bytes(encoded(gradient(96 + number, 80)))
    for number in range(3):
        shutil.copy(folder / f"{number:03}.jpg", folder / f"copy-{number}.jpg")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def reference(servers: Simulated, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, int]:
    """The native runner's run, and its requests at detector and model."""
    folder = tmp_path_factory.mktemp("native") / "run"
    native(servers, photos, folder)
    return folder, servers.detector.requests, servers.model.requests


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A node that wants a token."""
    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text("a" * 64)
    with cluster(1, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token)) as made:
        yield made


@pytest.fixture(autouse=True)
def at_rest(servers: Simulated, reference: tuple[Path, int, int]) -> None:
    """Counts begin at zero."""
    servers.latency_s = 0.02
    servers.hold = lambda traffic, number: False
    for traffic in (servers.detector, servers.model):
        traffic.requests = traffic.peak_in_flight = 0


def options(photos: Path, folder: Path) -> list[str]:
    bounds = [f"--{name}-concurrency={most}" for name, most in BOUNDS.items()]
    return [f"--images={photos}", f"--output={folder.parent}", f"--run-name={folder.name}", *bounds]


def native(servers: Simulated, photos: Path, folder: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pipeline", *options(photos, folder), "--annotated=none"],
        cwd=ROOT,
        env={**os.environ, **servers.settings},
        check=True,
        capture_output=True,
        timeout=600,
    )


def tables(folder: Path) -> dict[str, list[dict[str, object]]]:
    """The rows of both tables, without times."""
    found = {}
    for name in ("images", "detections"):
        table = pq.read_table(folder / f"{name}.parquet")
        found[name] = table.drop_columns([each for each in table.column_names if each.endswith("_s")]).to_pylist()
    return found


def crops(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "crops").iterdir()}


def wait_for(due: Callable[[], bool], run: subprocess.Popen[str], limit_s: float = 300) -> None:
    """Wait until something is so, while a run goes on."""
    deadline = time.monotonic() + limit_s
    while not due():
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def worker_of(node: Node, run: subprocess.Popen[str]) -> psutil.Process:
    wait_for(lambda: node.worker() is not None, run)
    worker = node.worker()
    assert worker is not None
    return worker


def ended(run: subprocess.Popen[str]) -> tuple[int, str]:
    printed = run.communicate(timeout=600)[0]
    return run.returncode, printed


def cpu_s(run: subprocess.Popen[str]) -> float:
    return sum(psutil.Process(run.pid).cpu_times()[:2])


def bounds_held(servers: Simulated) -> bool:
    return (
        0 < servers.detector.peak_in_flight <= BOUNDS["detector"]
        and 0 < servers.model.peak_in_flight <= BOUNDS["model"]
    )


def error_line(printed: str) -> str:
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    return line


def test_an_interrupted_run_and_a_killed_driver_go_on_anywhere(
    servers: Simulated, nodes: Cluster, photos: Path, reference: tuple[Path, int, int], tmp_path: Path
) -> None:
    servers.latency_s = 0.3
    folder = tmp_path / "ray"
    run = nodes.run(options(photos, folder), servers.settings)
    wait_for(lambda: servers.model.requests > 60, run)
    driver, used = psutil.Process(run.pid), [cpu_s(run)]
    run.send_signal(signal.SIGINT)
    while driver.status() != psutil.STATUS_ZOMBIE:
        used.append(cpu_s(run))
        time.sleep(0.05)
    code, printed = ended(run)
    assert code == 130, printed
    assert used[-1] - used[0] < 5, "seconds of its own; python -m tests.ray_faults has those on the clock"
    run = nodes.run(options(photos, folder), servers.settings)
    wait_for(lambda: servers.model.requests > 120, run)
    run.kill()
    run.wait()
    assert bounds_held(servers)
    servers.latency_s = 0.0
    native(servers, photos, folder)
    assert tables(folder) == tables(reference[0])
    assert crops(folder) == crops(reference[0])


def test_what_stops_a_worker_stops_the_run(simulated: Simulated, nodes: Cluster, photos: Path, tmp_path: Path) -> None:
    """On a cluster that the run starts itself. Both services go away, and no image fails for it."""
    simulated.restart = lambda number: 3600.0 if number == 60 else None
    folder = tmp_path / "ray"
    run = nodes.run([*options(photos, folder), "--outage-limit-s=2"], simulated.settings | {"RAY_ADDRESS": ""})
    code, printed = ended(run)
    assert code == 1, printed
    result = json.loads((folder / "run.json").read_text())
    assert "away for" in result["reason"]
    images, detections = result["counts"]["images"], result["counts"]["detections"]
    assert images["not_reached"] > 0
    assert (images["failed"], detections["failed"]) == (0, 0)


def test_a_wrong_token_is_one_line(servers: Simulated, nodes: Cluster, photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("b" * 64)
    variables = servers.settings | {"RAY_AUTH_TOKEN_PATH": str(other)}
    code, printed = ended(nodes.run(options(photos, tmp_path / "run"), variables))
    assert code == 2, printed
    assert "RAY_AUTH_TOKEN_PATH is the cluster's token" in error_line(printed)
    assert servers.model.requests <= 1, "the probe"


def test_tables_crops_and_requests_are_the_native_runner_s(
    servers: Simulated, nodes: Cluster, photos: Path, reference: tuple[Path, int, int], tmp_path: Path
) -> None:
    """A node joins, whose worker cannot write: its crops come through the driver."""
    folder = tmp_path / "ray"
    servers.hold = lambda traffic, number: traffic is servers.model and number > 40
    run = nodes.run(options(photos, folder), servers.settings)
    wait_for(lambda: servers.model.requests > 40, run)
    nodes.add(BLIND)
    wait_for(lambda: (folder / "run.log").read_text().count("is up") == 2, run)
    servers.hold = lambda traffic, number: False
    code, printed = ended(run)
    assert code == 0, printed
    assert tables(folder) == tables(reference[0])
    assert crops(folder) == crops(reference[0])
    assert (servers.detector.requests, servers.model.requests) == reference[1:]
    assert bounds_held(servers)
    profile = json.loads((folder / "profile" / "profile.json").read_text())
    images = [worker["images"] for worker in profile["workers"]]
    assert (len(images), sum(images)) == (2, PICTURES + 4)
    assert all(images), "each worker did a share"


def test_rows_are_the_native_runner_s_whatever_dies(
    servers: Simulated, nodes: Cluster, photos: Path, reference: tuple[Path, int, int], tmp_path: Path
) -> None:
    """A node dies, a worker is frozen, and one image kills each of its workers."""
    if len(nodes.nodes) < 2:
        nodes.add()
    poison = photos / "090.jpg"
    picture = poison.read_bytes()
    log = tmp_path / "ray" / "run.log"
    try:
        poison.write_bytes(picture + POISON)
        run = nodes.run(options(photos, tmp_path / "ray"), servers.settings, most=24)
        wait_for(lambda: servers.model.requests > 60, run)
        raylet = nodes.nodes[1].raylet
        assert raylet is not None
        raylet.kill()
        frozen = worker_of(nodes.nodes[0], run)
        frozen.suspend()
        wait_for(lambda: "did not answer for" in log.read_text(), run)
        frozen.resume()
        code, printed = ended(run)
    finally:
        poison.write_bytes(picture)
    assert code == 0, printed
    folder = tmp_path / "ray"
    before, after = tables(reference[0]), tables(folder)
    failed = [row for row in after["images"] if row["outcome"] == "failed"]
    assert [Path(str(row["path"])).name for row in failed] == ["090.jpg", "broken.jpg"]
    assert "3 workers died at this image" in str(failed[0]["reason"])

    def others(rows: list[dict[str, object]]) -> list[dict[str, object]]:
        return [row for row in rows if Path(str(row["path"])).name != "090.jpg"]

    assert others(after["images"]) == others(before["images"])
    assert others(after["detections"]) == others(before["detections"])
    assert {(name, crops(reference[0])[name]) for name in crops(folder)} == set(crops(folder).items())
    assert bounds_held(servers)
    deaths = log.read_text().count("worker gone")
    assert deaths >= 4
    again = servers.model.requests - reference[2] + BOXES
    assert again <= deaths * BOXES * 2 * 24, "what the dead workers had not ended"
