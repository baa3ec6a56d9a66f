"""Who measures: the classifiers and CLIP models a configuration can name, and what identifies each in a key."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from popalign_core.config import AttributesConfig
from popalign_core.portraits import weights_folder

if TYPE_CHECKING:
    from popalign_core.attributes.reader import AttributeReader


@dataclass(frozen=True)
class Classifier:
    """A classifier by its name in `AttributesConfig`.

    Attributes:
        identity: What stands for its weights in a key; cheap, imports no torch.
        load: From the configuration and a device's name.
    """

    identity: Callable[[], str]
    load: Callable[[AttributesConfig, str], "AttributeReader"]


def folder_digest(folder: Path) -> str:
    """sha256 over the names and bytes of a folder's files, wherever it lies."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def _load_portraits(config: AttributesConfig, device: str) -> "AttributeReader":
    from popalign_core.attributes.embedded import PortraitsReader

    return PortraitsReader(device)


def _load_deepface(config: AttributesConfig, device: str) -> "AttributeReader":
    from popalign_core.attributes.deepface import DeepFaceReader

    return DeepFaceReader(config)


CLASSIFIERS: dict[str, Classifier] = {
    "portraits": Classifier(lambda: folder_digest(weights_folder() / "classifier"), _load_portraits),
    # Its weights files are fixed by the package; hashing 1 GB for every plan would not pay.
    "deepface": Classifier(lambda: f"deepface-{metadata.version('deepface')}", _load_deepface),
}


def clip_folder() -> Path:
    """The CLIP model behind CLIP score and subject accuracy."""
    return weights_folder() / "clip"
