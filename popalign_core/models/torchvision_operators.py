"""A torchvision of a CUDA build, as PyPI has it for Linux, fails when it is imported beside a CPU build of torch.

With it fail open_clip, timm, and parts of transformers and diffusers. All it lacks is the names of two operators.

They are declared here, without a body, just before torchvision is first imported: nothing of this project and nothing
that it loads calls them. A torchvision that fits its torch is left alone. Imports no torch.
"""

import re
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

OPERATORS = ("nms", "qnms")
"""What `torchvision._meta_registrations` and `torchvision.ops` want to see declared."""

_kept: list[Any] = []
"""A library of operators goes when nothing holds it."""


class _Watch(MetaPathFinder):
    """Finds nothing; sees that torchvision is about to be imported."""

    is_done = False  # it stays where it is: who goes while finders are asked makes the next one be passed over

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision" and not self.is_done:
            self.is_done = True
            if is_other_build():
                _declare()
        return None


def watch_torchvision() -> None:
    """Declare the operators as soon as torchvision is imported, where it is of another build than torch."""
    if "torchvision" not in sys.modules and not any(isinstance(each, _Watch) for each in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


def torchvision_build() -> str | None:
    """Version and build of the installed torchvision, such as `0.28.0+cu130`; None without one. Does not import it."""
    spec = PathFinder.find_spec("torchvision")
    file = Path(spec.origin).with_name("version.py") if spec is not None and spec.origin else None
    if file is None or not file.is_file():
        return None
    found = re.search(r"__version__ = '([^']+)'", file.read_text(encoding="utf-8"))
    return found[1] if found else None


def is_other_build() -> bool:
    """Whether torchvision was built for CUDA and torch was not."""
    build = torchvision_build()
    if build is None or "+cu" not in build:
        return False
    import torch

    return torch.version.cuda is None


def _declare() -> None:
    import torch

    library: Any = torch.library.Library("torchvision", "DEF")
    for name in OPERATORS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)
