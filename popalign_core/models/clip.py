"""CLIP: loading any `CLIPModel` folder in transformers' format, and embedding images and texts with it.

transformers 5's own CLIP image processor needs torchvision; the four steps it does are done here with PIL.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from popalign_core.errors import InputError, MissingWeightsError
from popalign_core.models.weights_check import PartFolder, load_module, load_tokenizer

_TEXT_BATCH = 256
_PROCESSOR_FILE = "processor_config.json"


@dataclass(frozen=True)
class ImagePreprocessing:
    """What `preprocessor_config.json` says; a step that is None is not done.

    Attributes:
        shortest_edge: Bicubic (unless `resample` says otherwise) resize so that the shorter side has this, px.
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

    def apply(self, pixels_u8: NDArray[np.uint8]) -> Tensor:
        """`[H, W, 3]` uint8 to `[3, h, w]` float32."""
        return self.apply_all([pixels_u8])[0]

    def apply_all(self, pictures: Sequence[NDArray[np.uint8]]) -> Tensor:
        """B of `[H, W, 3]` uint8 to `[B, 3, h, w]` float32; resized side by side, as PIL lets go of the interpreter."""
        n_threads = torch.get_num_threads()
        fit_all = map if n_threads == 1 else _resizing_threads(n_threads, os.getpid()).map
        fitted = torch.from_numpy(np.stack(list(fit_all(self._fit, pictures))))
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


@lru_cache(maxsize=1)
def _resizing_threads(n: int, process: int) -> ThreadPoolExecutor:
    """Kept, since new threads share a core at first; a fork has none of the threads of the process it came from."""
    return ThreadPoolExecutor(n)


class Preprocessing(Protocol):
    """Makes pictures of any size what an image tower takes."""

    def apply_all(self, pictures: Sequence[NDArray[np.uint8]]) -> Tensor:
        """B of `[H, W, 3]` uint8 to `[B, 3, h, w]` float32."""
        ...


@dataclass(frozen=True)
class ClipScorer:
    """A CLIP model ready to score.

    Attributes:
        model: In evaluation mode, on its device.
        tokenizer: Of its text tower.
        preprocessing: Of its image tower.
        version: Hash of weights and preprocessing; goes into the scores table.
    """

    model: CLIPModel
    tokenizer: Any
    preprocessing: Preprocessing
    version: str


def load_clip(folder: Path, device: torch.device | str = "cpu", processor: Path | None = None) -> ClipScorer:
    """Load a CLIP from a folder; nothing is downloaded.

    Args:
        folder: Holds config.json, model.safetensors, the tokenizer's files and preprocessor_config.json.
        device: Where the model goes.
        processor: Holds tokenizer and preprocessor_config.json instead.

    Raises:
        MissingWeightsError: When the folder, one of the files, one of the tensors or the vocabulary is missing, cut off
            or of another model.
        InputError: When the preprocessing is not CLIP's.
    """
    words = processor or folder
    files = [folder / "config.json", folder / "model.safetensors", _preprocessing_file(words)]
    for file in files:
        if not file.is_file():
            raise MissingWeightsError(
                f"the CLIP folder {file.parent} has no {file.name}; give a folder saved by CLIPModel.save_pretrained, "
                "with its tokenizer and preprocessor_config.json"
            )
    what, fix = "the CLIP", "get its files again"
    model = load_module(CLIPModel, PartFolder(what, folder, fix), torch.float32)
    model = model.train(False).requires_grad_(False).to(torch.device(device))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    place = PartFolder(f"the tokenizer of {what}", words, fix)
    tokenizer = load_tokenizer(AutoTokenizer, place, model.text_model.config.vocab_size)
    return ClipScorer(model, tokenizer, read_preprocessing(words), digest.hexdigest()[:12])


@torch.inference_mode()
def embed_images(scorer: ClipScorer, batches: Iterable[NDArray[np.uint8] | Sequence[NDArray[np.uint8]]]) -> Tensor:
    """Image embeddings.

    Args:
        scorer: The CLIP.
        batches: Each `[B, H, W, 3]` uint8, or B of `[H, W, 3]` of any size.

    Returns:
        `[N, D]` float32 on the CPU, length 1.
    """
    parts = [torch.empty(0, scorer.model.text_projection.out_features)]
    for pixels_u8 in batches:
        values = scorer.preprocessing.apply_all(list(pixels_u8))
        features = scorer.model.get_image_features(pixel_values=values.to(scorer.model.device, scorer.model.dtype))
        parts.append(_unit(features.pooler_output))
    return torch.cat(parts)


@torch.inference_mode()
def embed_texts(scorer: ClipScorer, texts: Sequence[str]) -> Tensor:
    """Text embeddings, each distinct text computed once.

    Args:
        scorer: The CLIP.
        texts: Cut to the text tower's length.

    Returns:
        `[N, D]` float32 on the CPU, length 1.
    """
    distinct = list(dict.fromkeys(texts))
    parts = [torch.empty(0, scorer.model.text_projection.out_features)]
    for batch in _batched(distinct, _TEXT_BATCH):
        tokens = scorer.tokenizer(
            batch,
            padding="max_length",
            truncation=True,
            max_length=scorer.model.text_model.config.max_position_embeddings,
            return_tensors="pt",
        ).to(scorer.model.device)
        features = scorer.model.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"])
        parts.append(_unit(features.pooler_output))
    place = {text: number for number, text in enumerate(distinct)}
    return torch.cat(parts)[[place[text] for text in texts]]


def _unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.float(), dim=1).cpu()


def _batched(texts: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(texts), size):
        yield texts[start : start + size]


def _resized_sides(size: tuple[int, int], shortest_edge: int) -> tuple[int, int]:
    # The longer side is cut to whole pixels, not rounded, as transformers does.
    width, height = size
    if width <= height:
        return shortest_edge, int(shortest_edge * height / width)
    return int(shortest_edge * width / height), shortest_edge


def read_preprocessing(folder: Path) -> ImagePreprocessing:
    """The image processor of a folder, from its `preprocessor_config.json` or `processor_config.json`.

    Raises:
        InputError: When it is not one of CLIP's kind.
    """
    path = _preprocessing_file(folder)
    try:
        document = json.loads(path.read_text())
        if path.name == _PROCESSOR_FILE:
            document = document["image_processor"]
        edge, crop = document.get("size"), document.get("crop_size")
        return ImagePreprocessing(
            shortest_edge=_edge(edge) if document.get("do_resize", True) else None,
            crop=_sides(crop) if document.get("do_center_crop", True) else None,
            resample=document.get("resample", int(Image.Resampling.BICUBIC)),
            scale=document.get("rescale_factor", 1 / 255) if document.get("do_rescale", True) else 1.0,
            mean=tuple(document["image_mean"]) if document.get("do_normalize", True) else (0.0, 0.0, 0.0),
            std=tuple(document["image_std"]) if document.get("do_normalize", True) else (1.0, 1.0, 1.0),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not a CLIP preprocessing ({type(error).__name__}: {error}); it needs size.shortest_edge, "
            "crop_size, image_mean and image_std"
        ) from error


def _preprocessing_file(folder: Path) -> Path:
    """Where transformers 5 saves tokenizer and image processor at once, there is one file for both."""
    path, shared = folder / "preprocessor_config.json", folder / _PROCESSOR_FILE
    return shared if shared.is_file() and not path.is_file() else path


def _edge(size: Any) -> int:
    return int(size["shortest_edge"] if isinstance(size, dict) else size)


def _sides(size: Any) -> tuple[int, int]:
    return (int(size["height"]), int(size["width"])) if isinstance(size, dict) else (int(size), int(size))
