"""What photographs show, by the names of their files and folders or by a table: for `scripts.bench.real_photos`."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from scripts.bench.command import BenchFailed

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


def letters(name: str) -> str:
    """A name as it is compared."""
    return re.sub(r"[^a-z]", "", name.lower())


def classes_of(name: str, breeds: list[list[str]]) -> set[str]:
    """The classes that a name means, by their usual names: those that bear it, or else those that end with it."""
    wanted = letters(name)
    exact = {names[0] for names in breeds if wanted in map(letters, names)}
    ending = {names[0] for names in breeds if len(wanted) > 3 and any(letters(each).endswith(wanted) for each in names)}
    return exact or ending


def read_truth(folder: Path, file: Path | None, breeds: list[list[str]]) -> dict[str, set[str]]:
    """For each photograph, by its path in the folder, the classes that are right; none for a picture without a dog.

    Raises:
        BenchFailed: there are no photographs, or the file names a breed that the classifier does not know.
    """
    photographs = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    if not photographs:
        raise BenchFailed(f"{folder} holds no photographs")
    said: dict[str, str] = {}
    if file is not None:
        said = {row["file"]: row["breed"] for row in csv.DictReader(file.read_text().splitlines())}
        if unknown := sorted({breed for breed in said.values() if breed and not classes_of(breed, breeds)}):
            raise BenchFailed(f"{file}: the classifier does not know {', '.join(unknown)}")
    truth = {}
    for path in photographs:
        name = str(path.relative_to(folder))
        stem = re.sub(r"[\W_]*\d+$", "", path.stem)
        words = [said[name]] if name in said else [stem, re.sub(r"^n\d+-", "", path.parent.name)]
        truth[name] = next((found for word in words if word and (found := classes_of(word, breeds))), set())
    return truth
