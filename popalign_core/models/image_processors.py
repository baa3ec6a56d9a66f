"""Image preprocessing of models in transformers' format: what the model's own image processor does, by its file.

transformers' PIL classes do the work, so that no key of a file is read in another way than they read it; CLIP's four
steps, which score every sampled image, are also written out here, faster and equal.
"""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from popalign_core.models.weights_check import UNREADABLE, PartFolder

_OWN_FILE: Final = "preprocessor_config.json"
_SHARED_FILE: Final = "processor_config.json"
_DESCRIBING: Final = frozenset(("image_processor_type", "feature_extractor_type", "processor_class", "auto_map"))
"""Keys that say what reads the file; they change no pixel."""
_CLIPS: Final = frozenset(
    ("CLIPImageProcessor", "CLIPFeatureExtractor", "CLIPImageProcessorFast", "CLIPImageProcessorPil")
)
_CLIP_KEYS: Final = _DESCRIBING | {
    "do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "size", "crop_size", "resample",
    "rescale_factor", "image_mean", "image_std",
}  # fmt: skip
_TRIED_SIZES: Final = ((96, 64), (64, 80))
"""Height and width, px: an upright and a wide image."""


class Preprocessing(Protocol):
    """Makes images of any size what an image tower takes."""

    def apply_all(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """B of `[H, W, 3]` uint8 to `[B, 3, h, w]` float32."""
        ...


@dataclass(frozen=True)
class ImagePreprocessing:
    """CLIP's steps; one that is None is not done.

    Attributes:
        shortest_edge: Resize so that the shorter side has this, px.
        crop: Height and width of the centre crop, px.
        resample: PIL's number of the filter.
        scale: Factor from 0..255.
        mean: Per channel.
        std: Per channel.
    """

    shortest_edge: int | None
    crop: tuple[int, int] | None
    resample: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply_all(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """B of `[H, W, 3]` uint8 to `[B, 3, h, w]` float32; resized side by side, as PIL lets go of the interpreter."""
        n_threads = torch.get_num_threads()
        fit_all = map if n_threads == 1 else _resizing_threads(n_threads, os.getpid()).map
        fitted = torch.from_numpy(np.stack(list(fit_all(self._fit, images))))
        # channels first while they are bytes: a quarter of what would be moved as floats
        values = fitted.permute(0, 3, 1, 2).contiguous().float().mul_(self.scale)
        return values.sub_(torch.tensor(self.mean)[:, None, None]).div_(torch.tensor(self.std)[:, None, None])

    def _fit(self, pixels_u8: NDArray[np.uint8]) -> NDArray[np.uint8]:
        image = Image.fromarray(pixels_u8)
        if self.shortest_edge is not None:
            image = image.resize(_resized_sides(image.size, self.shortest_edge), Image.Resampling(self.resample))
        if self.crop is not None:
            height, width = self.crop
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        return np.asarray(image)


@dataclass(frozen=True)
class LibraryPreprocessing:
    """An image processor of transformers.

    Attributes:
        processor: One of its PIL classes.
    """

    processor: Any

    def apply_all(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """B of `[H, W, 3]` uint8 to `[B, 3, h, w]` float32."""
        made = self.processor(list(images), return_tensors="pt", input_data_format="channels_last")
        values: Tensor = made["pixel_values"]
        return values


def preprocessing_file(folder: Path) -> Path:
    """Where transformers 5 saves tokenizer and image processor at once, there is one file for both."""
    own, shared = folder / _OWN_FILE, folder / _SHARED_FILE
    return shared if shared.is_file() and not own.is_file() else own


def load_preprocessing(part: PartFolder) -> Preprocessing:
    """The image processor of a folder, from its preprocessor_config.json or processor_config.json.

    Args:
        part: The folder; where the file does not name its class, config.json does by its model_type.

    Raises:
        DamagedWeightsError: When the file is missing or broken, has a setting that its class does not read, or when
            its class is unknown or makes images of several sizes.
    """
    document = _read_document(part)
    return _clip_steps(part, document) or _library_steps(part, document)


def load_library_preprocessing(part: PartFolder) -> LibraryPreprocessing:
    """As `load_preprocessing`, by transformers in every case."""
    return _library_steps(part, _read_document(part))


def _read_document(part: PartFolder) -> dict[str, Any]:
    file = preprocessing_file(part.path)
    document = part.read_settings(file.name)
    if file.name == _SHARED_FILE:
        shared = document.get("image_processor")
        if not isinstance(shared, dict):
            raise part.refusal(f"{file.name} has no image_processor")
        document = shared
    settings = {key: value for key, value in document.items() if value is not None and not key.startswith("_")}
    if (wrong := _wrong_type(settings)) is not None:
        name, expected = wrong
        raise part.refusal(f"{file.name} has {name} {settings[name]!r}, not {expected}")
    return settings


def _clip_steps(part: PartFolder, document: dict[str, Any]) -> ImagePreprocessing | None:
    """CLIP's steps; None where the file asks for anything else, or is wrong: transformers then says what is."""
    name = document.get("image_processor_type", document.get("feature_extractor_type"))
    if name is None and (part.path / "config.json").is_file():
        name = "CLIPImageProcessor" if part.read_settings().get("model_type") == "clip" else None
    if not isinstance(name, str) or name not in _CLIPS or not document.keys() <= _CLIP_KEYS:
        return None
    if not all(document.get(step, True) is True for step in ("do_resize", "do_center_crop", "do_rescale")):
        return None
    edge, crop = _edge(document.get("size")), _sides(document.get("crop_size"))
    mean, std = _three(document.get("image_mean")), _three(document.get("image_std"))
    if document.get("do_normalize") is False:
        mean, std = (0.0,) * 3, (1.0,) * 3
    scale, resample = document.get("rescale_factor", 1 / 255), document.get("resample", int(Image.Resampling.BICUBIC))
    if edge is None or crop is None or max(crop) > edge or mean is None or std is None or not all(std):
        return None
    if not isinstance(scale, float) or not 0 < scale < math.inf or resample not in list(Image.Resampling):
        return None
    return ImagePreprocessing(edge, crop, int(resample), scale, mean, std)


def _library_steps(part: PartFolder, document: dict[str, Any]) -> LibraryPreprocessing:
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(
            str(part.path), backend="pil", local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # also their errors for packages that are not installed
        raise part.refusal(f"its image processor: {error}") from error
    name = type(processor).__name__
    read = _DESCRIBING | set(getattr(type(processor).valid_kwargs, "__annotations__", ()))
    if unread := sorted(document.keys() - read):
        raise part.refusal(
            f"{preprocessing_file(part.path).name} has {unread[0]!r}, which transformers' {name} does not read; "
            "take the setting out if it may be ignored"
        )
    preprocessing = LibraryPreprocessing(processor)
    _try(part, name, preprocessing)
    return preprocessing


def _wrong_type(document: dict[str, Any]) -> tuple[str, str] | None:
    """A setting that transformers would read as another without a word, and what it should be: any text for true, and
    any filter that is no number for the bilinear one.
    """
    for name, value in document.items():
        if name.startswith("do_") and not isinstance(value, bool):
            return name, "true or false"
        if name == "resample" and (isinstance(value, bool) or not isinstance(value, int)):
            return name, "the number of one of PIL's filters"
    return None


def _try(part: PartFolder, name: str, preprocessing: LibraryPreprocessing) -> None:
    """Run it once: most of its settings are only read then."""
    images = [np.full((*sides, 3), 99, np.uint8) for sides in _TRIED_SIZES]
    try:
        made = [preprocessing.apply_all([image]) for image in images]
    except Exception as error:  # whatever numpy and PIL say of a setting
        raise part.refusal(f"its image processor {name} does not run: {error}") from error
    shapes = [list(values.shape) for values in made]
    if shapes[0] != shapes[1] or len(shapes[0]) != 4 or shapes[0][1] != 3:
        raise part.refusal(
            f"its image processor {name} makes {shapes} of two images; one [1, 3, height, width] is read"
        )
    if not all(values.isfinite().all() for values in made):
        raise part.refusal(f"its image processor {name} makes values that are not finite")


@torch.inference_mode()
def check_fit(part: PartFolder, preprocessing: Preprocessing, network: Callable[[Tensor], object]) -> None:
    """Run a network once on what its image processor makes: sizes are only compared then.

    Args:
        part: The folder of both.
        preprocessing: Of the folder.
        network: On the CPU; takes `[B, 3, h, w]` float32.

    Raises:
        DamagedWeightsError: When it does not take them.
    """
    values = preprocessing.apply_all([np.full((*_TRIED_SIZES[0], 3), 99, np.uint8)])
    try:
        network(values)
    except UNREADABLE as error:
        raise part.refusal(f"it does not take the {list(values.shape)} of its image processor: {error}") from error


@lru_cache(maxsize=1)
def _resizing_threads(n: int, process: int) -> ThreadPoolExecutor:
    """Kept, since new threads share a core at first; a fork has none of the threads of the process it came from."""
    return ThreadPoolExecutor(n)


def _resized_sides(size: tuple[int, int], shortest_edge: int) -> tuple[int, int]:
    # The longer side is cut to whole pixels, not rounded, as transformers does.
    width, height = size
    if width <= height:
        return shortest_edge, int(shortest_edge * height / width)
    return int(shortest_edge * width / height), shortest_edge


def _edge(size: Any) -> int | None:
    value = size.get("shortest_edge") if isinstance(size, dict) and set(size) == {"shortest_edge"} else size
    return value if isinstance(value, int) and value > 0 else None


def _sides(size: Any) -> tuple[int, int] | None:
    height, width = (size.get("height"), size.get("width")) if isinstance(size, dict) else (size, size)
    if not isinstance(height, int) or not isinstance(width, int) or min(height, width) < 1:
        return None
    return height, width


def _three(values: Any) -> tuple[float, ...] | None:
    if not isinstance(values, list) or len(values) != 3:
        return None
    return tuple(values) if all(isinstance(x, int | float) and math.isfinite(x) for x in values) else None
