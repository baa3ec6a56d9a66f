"""CLIP: loading any `CLIPModel` folder in transformers' format, and embedding images and texts with it."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from popalign_core.errors import MissingWeightsError
from popalign_core.models.image_processors import Preprocessing, check_fit, load_preprocessing, preprocessing_file
from popalign_core.models.weights_check import PartFolder, check_end, load_module, load_tokenizer, weight_files

_TEXT_BATCH = 256
_CHUNK_BYTES = 1 << 24


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
        folder: Holds config.json, model.safetensors (or shards, or a half-precision variant), the tokenizer's files
            and preprocessor_config.json.
        device: Where the model goes.
        processor: Holds tokenizer and preprocessor_config.json instead.

    Raises:
        MissingWeightsError: When the folder or one of its files is missing.
        DamagedWeightsError: When one of the tensors or the vocabulary is missing, cut off or of another model, or the
            preprocessing is not understood.
    """
    words, what, fix = processor or folder, "the CLIP", "get its files again"
    needed = (folder / "config.json", preprocessing_file(words))
    weights = weight_files(folder)
    if lacking := [file for file in needed if not file.is_file()] or (
        [] if weights else [folder / "model.safetensors"]
    ):
        raise MissingWeightsError(
            f"the CLIP folder {lacking[0].parent} has no {lacking[0].name}; give a folder saved by "
            "CLIPModel.save_pretrained, with its tokenizer and preprocessor_config.json"
        )
    model = load_module(CLIPModel, PartFolder(what, folder, fix), torch.float32)
    model = model.train(False).requires_grad_(False)
    digest = hashlib.sha256()
    for path in (needed[0], *weights, needed[1]):
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    tokenizer = load_tokenizer(
        AutoTokenizer, PartFolder(f"the tokenizer of {what}", words, fix), model.text_model.config.vocab_size
    )
    check_end(model.text_model, tokenizer, PartFolder(what, folder, fix))
    preprocessing = load_preprocessing(PartFolder(f"the image processor of {what}", words, fix))
    check_fit(
        PartFolder(what, folder, fix), preprocessing, lambda values: model.get_image_features(pixel_values=values)
    )
    return ClipScorer(model.to(torch.device(device)), tokenizer, preprocessing, digest.hexdigest()[:12])


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
