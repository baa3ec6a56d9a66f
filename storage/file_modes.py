"""Who may read what is written: libraries that write through temporary files leave files for the owner alone."""

import uuid
from pathlib import Path

_OWNERS = 0o600
"""What temporary files are made with."""


def take_umask(folder: Path) -> None:
    """Give the files below a folder that only their owner may read the mode that new files get here.

    Links are left alone: what they lead to is another's.
    """
    closed = [
        path
        for path in folder.rglob("*")
        if not path.is_symlink() and path.is_file() and path.stat().st_mode & 0o777 == _OWNERS
    ]
    if not closed:
        return
    # the umask itself can only be read by changing it, for all threads
    probe = folder / f".mode-{uuid.uuid4().hex}"
    try:
        probe.touch(0o666)
        mode = probe.stat().st_mode & 0o777
    finally:
        probe.unlink(missing_ok=True)
    for path in closed:
        path.chmod(mode)
