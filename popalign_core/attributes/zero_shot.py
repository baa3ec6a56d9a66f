"""CLIP as a classifier: an image belongs to the class whose words are nearest to it (Radford et al. 2021, 3.1)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from popalign_core.attributes.classifier_interface import Probabilities
from popalign_core.config import ZeroShotConfig
from popalign_core.errors import ConfigError, InputError, MissingWeightsError

if TYPE_CHECKING:
    from popalign_core.models.clip import ClipScorer

_BATCH = 32


@dataclass(frozen=True)
class SharedSpace:
    """A CLIP of any file format.

    Attributes:
        embed_images: Images `[H, W, 3]` RGB uint8 of any size to `[N, D]` of length 1.
        embed_texts: Texts to `[N, D]` of length 1.
        scale: What the model multiplies cosines with before the softmax.
    """

    embed_images: Callable[[Sequence[NDArray[np.uint8]]], Tensor]
    embed_texts: Callable[[Sequence[str]], Tensor]
    scale: float


class ZeroShotClassifier:
    """Tells the classes of any axis apart by their words; attributes as those of `FaceClassifier`."""

    def __init__(self, name: str, version: str, settings: ZeroShotConfig, space: SharedSpace) -> None:
        """Embed the words of each class in all templates; their mean stands for the class."""
        self.name, self.version = name, version
        self.axes = settings.classes
        self._space = space
        self._classes = {
            axis: torch.stack([self._embed_class(word, settings.templates) for word in words.values()])
            for axis, words in settings.axes.items()
        }

    def classify(self, images: Sequence[NDArray[np.uint8]]) -> list[Probabilities]:
        """Softmax over the classes of each axis."""
        found: list[Probabilities] = []
        for start in range(0, len(images), _BATCH):
            embeds = self._space.embed_images(images[start : start + _BATCH])
            if not embeds.isfinite().all():
                raise InputError(f"classifier {self.name}: its embeddings are not finite; its weights are broken")
            shares = {
                axis: (self._space.scale * embeds @ classes.T).double().softmax(1).tolist()
                for axis, classes in self._classes.items()
            }
            found += [
                {axis: dict(zip(self.axes[axis], rows[i], strict=True)) for axis, rows in shares.items()}
                for i in range(len(embeds))
            ]
        return found

    def _embed_class(self, word: str, templates: Sequence[str]) -> Tensor:
        texts = self._space.embed_texts([template.format(word) for template in templates])
        return functional.normalize(texts.mean(dim=0), dim=0)


def load_space(settings: ZeroShotConfig, device: str) -> SharedSpace:
    """The CLIP of a configuration; nothing is downloaded.

    Raises:
        MissingWeightsError: When its files are absent.
        ConfigError: When open_clip is not installed or does not know the architecture.
        InputError: When a file is not what it should be.
    """
    if settings.architecture is not None:
        return load_open_clip(settings.path, settings.architecture, device)
    from popalign_core.models.clip import load_clip

    return space_of(load_clip(Path(settings.path), device))


def space_of(clip: "ClipScorer") -> SharedSpace:
    """A CLIP of transformers as a shared space."""
    from popalign_core.models.clip import embed_images, embed_texts

    return SharedSpace(
        lambda images: embed_images(clip, [images]),
        lambda texts: embed_texts(clip, texts),
        float(clip.model.logit_scale.exp()),
    )


def load_open_clip(path: str, architecture: str, device: str) -> SharedSpace:
    """A checkpoint of open_clip; raises as `load_space` does."""
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:  # torchvision beside another torch raises the latter
        raise ConfigError(
            f"kind 'open-clip' needs open_clip, which does not load ({error}); pip install 'popalign[clip]'"
        ) from error
    from PIL import Image

    if architecture not in open_clip.list_models():
        raise ConfigError(f"open_clip has no architecture {architecture!r}; see open_clip.list_models()")
    if not Path(path).is_file():
        raise MissingWeightsError(f"there is no open_clip checkpoint at {path}; put the file there")
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(architecture, pretrained=path, device=device)
    except (RuntimeError, KeyError, ValueError, AssertionError, UnpicklingError) as error:
        raise InputError(
            f"{path} is no checkpoint of {architecture} ({(str(error) or 'empty').splitlines()[0]}); "
            "give the architecture it was trained with"
        ) from error
    model.eval().requires_grad_(False)
    tokenize = open_clip.get_tokenizer(architecture)

    def embed_images(images: Sequence[NDArray[np.uint8]]) -> Tensor:
        values = torch.stack([preprocess(Image.fromarray(pixels)) for pixels in images]).to(device)
        embeds: Tensor = model.encode_image(values, normalize=True).float().cpu()
        return embeds

    def embed_texts(texts: Sequence[str]) -> Tensor:
        embeds: Tensor = model.encode_text(tokenize(list(texts)).to(device), normalize=True).float().cpu()
        return embeds

    return SharedSpace(embed_images, embed_texts, float(model.logit_scale.exp()))
