"""A comparison as a page: the detections that changed, with their crops side by side."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from pipeline.files import write_atomically
from pipeline.output.pages import template
from pipeline.results.comparison import Comparison, Row
from pipeline.results.finished_run import FinishedRun

# A browser shows so many pictures at once with ease.
SHOWN_PAIRS = 200
SHOWN_CHANGES = 20


def side(row: Row | None, run: FinishedRun, page: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """A detection as one half of a card: its crop's address, relative to the page, and what was answered."""
    if row is None:
        return {"crop": None, "answer": [], "failed": None}
    crop = None
    if row["crop"] and (file := run.folder / row["crop"]).is_file():
        crop = quote(os.path.relpath(file, page.parent.resolve()))
    answer = [{"name": name, "value": row[name]} for name in names]
    return {"crop": crop, "answer": answer, "failed": row["reason"]}


def cards(compared: Comparison, page: Path) -> list[dict[str, Any]]:
    """The first detections that changed, are new or are gone."""
    names = ("label", *compared.properties)
    rows: list[tuple[Row | None, Row | None, tuple[str, ...]]] = [
        *((pair.before, pair.after, pair.changed) for pair in compared.pairs[:SHOWN_PAIRS]),
        *((None, row, ()) for row in compared.new[:SHOWN_PAIRS]),
        *((row, None, ()) for row in compared.gone[:SHOWN_PAIRS]),
    ]
    return [
        {
            "path": (after or before or {})["path"],
            "before": side(before, compared.before, page, names),
            "after": side(after, compared.after, page, names),
            "changed": changed,
        }
        for before, after, changed in rows[:SHOWN_PAIRS]
    ]


def write_page(compared: Comparison, page: Path) -> None:
    """Write the page; its pictures stay in the runs' folders.

    Raises:
        OSError: it cannot be written.
    """
    style = (Path(__file__).parent / "templates" / "comparison.css").read_text()
    shown = cards(compared, page)
    text = template("pipeline.results", "comparison.html.j2").render(
        compared=compared,
        cards=shown,
        left=len(compared.pairs) + len(compared.new) + len(compared.gone) - len(shown),
        changes=compared.changes.most_common(SHOWN_CHANGES),
        style=Markup(style),
        # A browser applies no other style, runs no script and loads nothing but pictures.
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )
    write_atomically(page, text.encode(errors="backslashreplace"))
