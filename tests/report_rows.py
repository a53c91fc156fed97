"""The rows of a report, read back from the files that its page loads."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any


def loaded(script: Path, function: str) -> Any:
    """What a script hands to a function of the page; the script does nothing else.

    Raises:
        AssertionError: it does something else.
    """
    text = script.read_text()
    call = re.fullmatch(rf"{function}\(('(?:[^'\\\n<]|\\.)*'), '[0-9a-f]{{16}}'\);\n", text)
    assert call, f"{script} is not one call of {function}"
    return json.loads(ast.literal_eval(call[1]))


def report_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's report: path, index, and each column's value as text or number."""
    about = loaded(folder / "report" / "about.js", "begin")
    rows = []
    for number in range(about["chunks"]):
        chunk = loaded(folder / "report" / f"rows-{number}.js", "take")
        paths = [path for path, count in zip(chunk["paths"], chunk["counts"], strict=True) for _ in range(count)]
        for place, path in enumerate(paths):
            row = {"path": path, "index": at(chunk["index"], place)}
            for column, content in zip(about["columns"], chunk["columns"], strict=True):
                value = at(content, place)
                if column["kind"] == "choice":
                    value = None if value == -1 else column["values"][value]
                row[column["name"]] = value
            rows.append(row)
    assert len(rows) == about["rows"]
    return rows


def at(values: list[Any] | dict[str, Any], place: int) -> Any:
    """A value of a list, or of a dictionary of what a list holds."""
    return values[place] if isinstance(values, list) else values.get(str(place))
