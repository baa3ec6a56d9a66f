"""A folder that nobody can write to, not even root."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Mounted onto itself, read-only; for others than root, who may not mount, without permission to write."""
    if os.geteuid():
        places = [path for path in (folder, *folder.rglob("*")) if path.is_dir()]
        before = [path.stat().st_mode for path in places]
        for path in places:
            path.chmod(0o555)
        try:
            yield
        finally:
            for path, mode in zip(places, before, strict=True):
                path.chmod(mode)
        return
    if subprocess.run(["mount", "--bind", folder, folder], capture_output=True).returncode:
        pytest.skip("root may not mount here, and can write everywhere")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)
