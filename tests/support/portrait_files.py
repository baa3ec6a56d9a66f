"""The CC0 portraits that lie beside a checkout, where they do."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PORTRAITS = Path(__file__).parents[2].parent / "shared" / "data" / "portraits_256.zip"
needs_portraits = pytest.mark.skipif(not PORTRAITS.exists(), reason=f"needs the CC0 portraits at {PORTRAITS}")


def portrait(name: str) -> np.ndarray:
    """One of them, such as female/256/0.jpg: `[256, 256, 3]` RGB."""
    with zipfile.ZipFile(PORTRAITS) as archive:
        return np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
