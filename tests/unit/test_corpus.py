"""150 valid and hostile pictures: every one accounted for, with the outcome that its kind should have."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline import settings as pipeline_settings
from pipeline.run import run
from scripts.bench.simulated import Simulated
from tests import corpus


def test_every_picture_is_accounted_for(simulated: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = corpus.write(tmp_path / "corpus")
    assert len(names) >= 150
    for name, value in simulated.settings.items():
        monkeypatch.setenv(name, value)
    arguments = ["--images", str(tmp_path / "corpus"), "--output", str(tmp_path / "runs")]
    done = run(pipeline_settings.load(arguments), Console(file=io.StringIO()))
    rows = {Path(row["path"]).name: row for row in pq.read_table(done.folder / "images.parquet").to_pylist()}
    assert set(rows) == set(names)
    wrong = {
        name: row["reason"] for name, row in rows.items() if (row["outcome"] == "failed") != name.startswith("bad-")
    }
    assert wrong == {}
    assert all(row["reason"] and row["stage"] == "read" for name, row in rows.items() if name.startswith("bad-"))
    counts = done.manifest["counts"]["images"]
    assert counts["detected"] + counts["failed"] == counts["total"] == len(names)
