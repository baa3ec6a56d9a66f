"""The identity of a model's weights: equal for one checkpoint as folder, in shards, in the hub's cache or from a single
file. Imports no torch.

Only what decides images counts: of each network its tensors by name, whatever files hold them, and of configurations
what is no note about who wrote them.
"""

import hashlib
import json
import mmap
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from popalign_core.documents import read_json
from popalign_core.models.file_hashes import hash_file, hash_folder, kept_hash
from popalign_core.models.weights_check import NEEDLESS, weight_files

_NOTES = ("transformers_version", "torch_dtype", "dtype", "is_local", "local_files_only", "name_or_path")
"""In configurations: about the file, not the network. So is what begins with an underscore, but for the class."""
_CLASS = "_class_name"
_IDLE_PARTS = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts of a pipeline that sampling and training here do not use; a single file has none of them."""
_IDLE_SETTINGS = ("requires_safety_checker",)
NETWORKS = ("text_encoder", "unet", "transformer", "vae")
"""How the names of a pipeline's networks begin."""
DENOISERS = ("unet", "transformer")
"""What the network that draws is called there."""
_WORDS = (".txt", ".model")
_STEMS = ("diffusion_pytorch_model", "model")


def pipeline_digest(folder: Path, without: Collection[str] = ()) -> str:
    """sha256 over the parts of a pipeline's folder; what is damaged counts by its bytes, and is refused when loaded.

    Args:
        folder: With model_index.json.
        without: Parts whose weights come from elsewhere: of these only the settings count.
    """
    index = _read(folder / "model_index.json")
    if not isinstance(index, dict):
        return hash_folder(folder)
    kept = {name: entry for name, entry in index.items() if name not in (*_IDLE_PARTS, *_IDLE_SETTINGS)}
    parts = [name for name, entry in kept.items() if isinstance(entry, list) and entry[:1] != [None]]
    named = {name: entry for name, entry in kept.items() if not isinstance(entry, list) or name in parts}
    lines = [f"index\0{_canonical(named)}"]
    lines += [f"{name}\0{network_digest(folder / name, with_weights=name not in without)}" for name in sorted(parts)]
    return _sha256("\n".join(lines))


def network_digest(folder: Path, *, with_weights: bool = True) -> str:
    """sha256 over one part of a pipeline: its settings, its words, and its tensors by name."""
    lines = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix == ".json" and ".index." not in path.name:
            content = _read(path)
            lines.append(f"{path.name}\0{hash_file(path) if content is None else _canonical(content)}")
        elif path.suffix in _WORDS:
            lines.append(f"{path.name}\0{hash_file(path)}")
    stem = next((stem for stem in _STEMS if weight_files(folder, stem)), None)
    files = [path for path in weight_files(folder, stem) if path.suffix != ".json"] if stem and with_weights else []
    if files:
        lines.append(f"tensors\0{kept_hash('tensors', files, lambda: _hash_tensors(files))}")
    return _sha256("\n".join(lines))


def has_weights(folder: Path, without: Collection[str] = ()) -> bool:
    """Whether each network of a pipeline's folder has files of weights; a look at the names, no more."""
    index = _read(folder / "model_index.json")
    parts = [name for name, entry in index.items() if isinstance(entry, list) and entry[:1] != [None]] if index else []
    networks = [name for name in parts if name.startswith(NETWORKS) and name not in without]
    return bool(networks) and all(any(weight_files(folder / name, stem) for stem in _STEMS) for name in networks)


def _read(path: Path) -> Any:
    """JSON; None where there is none that can be read."""
    try:
        return read_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def _hash_tensors(files: list[Path]) -> str:
    """Sorted by name: in which file and in which order they lie is all one."""
    try:
        found = sorted(line for path in files for line in _tensors(path))
    except (ValueError, LookupError, TypeError, AttributeError, struct.error):
        found = [hash_file(path) for path in files]
    return _sha256("\n".join(found))


def _tensors(path: Path) -> Iterator[str]:
    """Name, type, shape and hash of each tensor of a file, which is a length, a header and bytes."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        view = memoryview(content)
        try:
            for name, entry in header.items():
                if name == "__metadata__" or NEEDLESS.search(name):
                    continue
                begin, end = (8 + length + offset for offset in entry["data_offsets"])
                if end > len(view):
                    raise ValueError(f"{path.name} ends before its tensor {name}")
                digest = hashlib.sha256(view[begin:end]).hexdigest()
                yield f"{name}\0{entry['dtype']}\0{entry['shape']}\0{digest}"
        finally:
            view.release()


def _canonical(content: Any) -> str:
    """JSON whose notes are left out, with sorted names."""
    if isinstance(content, dict):
        content = {
            name: value
            for name, value in content.items()
            if name == _CLASS or not (name.startswith("_") or name in _NOTES)
        }
    return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
