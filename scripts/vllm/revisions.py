"""The commits of the presets' models: fill in those that a preset leaves open, from the hub.

scripts/lock.py runs this with Python alone.
"""

from __future__ import annotations

import json
import os
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path

from scripts.environments import ROOT

PRESETS = ROOT / "services" / "vllm" / "presets"
HUB = "https://huggingface.co"
TIMEOUT_S = 20.0

MODEL = re.compile(r"^model: ([\w.-]+/[\w.-]+)$", re.MULTILINE)
# What a preset has in the place of the revision that is not known yet.
OPEN = re.compile(r"^# No revision: .*\n", re.MULTILINE)


def commit_of(model: str) -> str:
    """The commit that a model's `main` is now.

    Raises:
        OSError: the hub does not answer, or does not know the model.
        ValueError: it answers without a commit.
    """
    token = os.environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = f"{os.environ.get('HF_ENDPOINT') or HUB}/api/models/{model}"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S) as answer:
        commit = json.load(answer).get("sha")
    if not re.fullmatch(r"[0-9a-f]{40}", str(commit)):
        raise ValueError(f"the hub names no commit: {commit!r}")
    return str(commit)


def fill_in(say: Callable[[str], None], presets: Path = PRESETS) -> None:
    """Pin the models that have no revision yet, and say so."""
    for preset in sorted(presets.glob("*.yaml")):
        text = preset.read_text()
        model = MODEL.search(text)
        if model is None or not OPEN.search(text):
            continue
        try:
            commit = commit_of(model[1])
        except (OSError, ValueError) as error:
            say(f"{preset.name}: {model[1]} stays without a revision: {error}")
            continue
        reason = "# One commit, by `make lock`: a re-upload cannot change answers."
        pinned = f"{reason}\nrevision: {commit}\n"
        preset.write_text(OPEN.sub(pinned, text))
        say(f"{preset.name}: {model[1]} is pinned to {commit}")
