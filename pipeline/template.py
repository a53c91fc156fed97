"""The text of a question with values of the input table in it."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping
from typing import Any

PARTS = re.compile(r"(\{\{|\}\}|\{[^{}]*\}|[{}])")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
LETTERS = string.ascii_uppercase


class Template:
    """A question's text: `{name}` stands for an input, `{{` and `}}` for braces."""

    def __init__(self, text: str) -> None:
        """Read the text.

        Raises:
            ValueError: a brace stands alone, or holds no name.
        """
        self.parts: list[tuple[str, bool]] = []
        """Texts, and names of inputs (True)."""
        for part in filter(None, PARTS.split(text)):
            if part in ("{{", "}}"):
                self.parts.append((part[0], False))
            elif part in ("{", "}"):
                raise ValueError(f"a single {part} in the question: write {part * 2} for the character itself")
            elif part.startswith("{"):
                if not NAME.fullmatch(part[1:-1]):
                    raise ValueError(f"{part} is no name of an input: write {{{part}}} for the text itself")
                self.parts.append((part[1:-1], True))
            else:
                self.parts.append((part, False))

    @property
    def names(self) -> list[str]:
        """The inputs that the text takes."""
        return [text for text, is_name in self.parts if is_name]

    def fill(self, values: Mapping[str, Any]) -> str:
        """The text with these values, which are those of JSON."""
        return "".join(shown(values[text]) if is_name else text for text, is_name in self.parts).strip()


def shown(value: Any) -> str:
    """A value as a question has it: text as it is, a list as lines `A. ...`, the rest as JSON has it."""
    if isinstance(value, list):
        return "\n".join(f"{letter(number)}. {shown(one)}" for number, one in enumerate(value))
    return value if isinstance(value, str) else json.dumps(value)


def letter(number: int) -> str:
    """A, B, ... Z, AA, AB, ... for 0, 1, ..."""
    before = number // len(LETTERS)
    return (letter(before - 1) if before else "") + LETTERS[number % len(LETTERS)]
