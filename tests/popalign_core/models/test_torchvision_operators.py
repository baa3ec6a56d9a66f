"""A torchvision of a CUDA build beside a CPU build of torch: known by its version, and imported all the same."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from popalign_core.models.torchvision_operators import is_other_build, torchvision_build

REPOSITORY = Path(__file__).resolve().parents[3]
INSIDE = """
import torch

for name in ("nms", "qnms"):
    torch.library.register_fake(f"torchvision::{name}")(lambda *given: None)
print("imported")
"""
"""What the real one does, where its compiled part could not be loaded."""


def put(folder: Path, build: str) -> None:
    (folder / "torchvision").mkdir(exist_ok=True)
    (folder / "torchvision" / "__init__.py").write_text(INSIDE, encoding="utf-8")
    (folder / "torchvision" / "version.py").write_text(f"__version__ = '{build}'\n", encoding="utf-8")


@pytest.mark.parametrize(("build", "differs"), [("0.28.0+cu130", True), ("0.28.0+cpu", False), ("0.28.0", False)])
def test_a_build_is_known_without_importing_it(
    build: str, differs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, build)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", None)
    assert (torchvision_build(), is_other_build()) == (build, differs)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert is_other_build() is False


@pytest.mark.skipif(torch.version.cuda is not None, reason="a CUDA build of torch has the operators")
def test_only_a_build_that_does_not_fit_gets_the_operators(tmp_path: Path) -> None:
    said = {}
    for build in ("0.28.0+cu130", "0.28.0+cpu"):
        put(tmp_path, build)
        code = f"import sys; sys.path.insert(1, {str(tmp_path)!r}); import popalign_core, torchvision"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120
        )
        said[build] = (done.returncode, done.stdout, "operator torchvision::nms does not exist" in done.stderr)
    assert said == {"0.28.0+cu130": (0, "imported\n", False), "0.28.0+cpu": (1, "", True)}
