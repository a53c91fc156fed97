"""What is drawn in the bundled pictures, as a labels file."""

from __future__ import annotations

import json
from typing import Any

from tests.conftest import ROOT

DRAWN: dict[str, Any] = json.loads((ROOT / "samples/truth.json").read_text())["images"]
FIELDS = ("breed", "coat_color", "facing")


def as_coco() -> str:
    """samples/truth.json as COCO JSON, the answers in `attributes`."""
    labels = {"dog": 1, "cat": 2, "sports ball": 3}
    images, annotations = [], list[dict[str, Any]]()
    for number, (name, picture) in enumerate(DRAWN.items(), 1):
        images.append({"id": number, "file_name": name, "width": picture["width"], "height": picture["height"]})
        for each in picture["objects"]:
            x1, y1, x2, y2 = each["box"]
            place = {"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": labels[each["label"]]}
            attributes = {name: each[name] for name in FIELDS}
            annotations.append({"id": len(annotations) + 1, "image_id": number, **place, "attributes": attributes})
    categories = [{"id": number, "name": label} for label, number in labels.items()]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})
