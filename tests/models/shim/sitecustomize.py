"""Let torchvision's CUDA build import beside a CPU build of torch; Python runs this file when it starts.

The package index has no CPU build of torchvision. The CUDA build's own operators do not load here, and its import then
stops at the first of them that it refines (`operator torchvision::nms does not exist`). Declaring those two is enough
for what the tests need of it: resizing pictures. Not for users: these operators have no implementation.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
DECLARED: list[object] = []  # the declarations last as long as this refers to them


class DeclareOperators(importlib.abc.MetaPathFinder):
    """Declares the operators just before torchvision is imported, in the processes that do import it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Never finds anything itself: leaves the import to the finders after it."""
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            library.define(f"nms{NMS}")
            library.define(f"qnms{NMS}")
            DECLARED.append(library)
        return None


sys.meta_path.insert(0, DeclareOperators())
