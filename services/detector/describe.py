"""`python -m services.detector.describe`: what the model of the `DETECTOR_*` variables is, as one line of JSON.

For a check before a start: it reads the model's small files only, and needs neither torch nor onnxruntime. The keys are
`backend`, a name in BACKENDS, `labels`, null for a model that takes free text, and `threshold`; or `error` alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from services.detector.backends import BACKENDS, backend
from services.detector.checkpoint import CheckpointError
from services.detector.settings import SettingsError, read_settings


def describe(environ: Mapping[str, str]) -> dict[str, Any]:
    """The model that these variables name, or why it cannot be served."""
    try:
        settings = read_settings(environ)
        chosen = backend(settings)
        checkpoint = chosen.read(settings.model, settings.revision)
    except (SettingsError, CheckpointError) as error:
        return {"error": " ".join(str(error).split())}
    module = str(vars(chosen)["__name__"]).rpartition(".")[2]
    name = next(name for name, each in BACKENDS.items() if each == module)
    labels = None if checkpoint.labels is None else sorted(checkpoint.labels)
    return {"backend": name, "labels": labels, "threshold": settings.threshold}


if __name__ == "__main__":
    json.dump(describe(os.environ), sys.stdout)
