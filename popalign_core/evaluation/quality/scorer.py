"""What every scorer has in common, and the two sorts that rest on a shared space of images and texts."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from popalign_core.attributes.zero_shot import SharedSpace
from popalign_core.errors import InputError

Images = Sequence[NDArray[np.uint8]]
"""Each `[H, W, 3]` RGB."""


class Scorer(Protocol):
    """Says how good images are. Loaded once, it scores any number of batches.

    Attributes:
        name: The metric's.
        version: Of its weights, by their content.
        unit: What one point is.
    """

    name: str
    version: str
    unit: str

    def score(self, images: Images, texts: Sequence[str]) -> NDArray[np.float64]:
        """One value an image `[B]`; no value depends on the rest of the batch."""
        ...


class Embedder:
    """A shared space that does nothing twice: a text is embedded once, and so is a batch, however many scorers ask."""

    def __init__(self, space: SharedSpace) -> None:
        self._space = space
        self.scale = space.scale
        self._texts: dict[str, Tensor] = {}
        self._last: tuple[Images, Tensor] | None = None

    @torch.inference_mode()
    def embed_images(self, images: Images) -> Tensor:
        """`[B, D]` of length 1, on the CPU."""
        if self._last is None or self._last[0] is not images:
            self._last = images, self._space.embed_images(images)
        return self._last[1]

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """`[B, D]` of length 1, on the CPU; one by one, so that none differs in its last bits with those beside it."""
        for text in texts:
            if text not in self._texts:
                self._texts[text] = self._space.embed_texts([text])[0]
        return torch.stack([self._texts[text] for text in texts])


class CosineScorer:
    """A factor times the cosine of image and text: CLIP score, HPS v2, PickScore; attributes as those of `Scorer`."""

    def __init__(self, name: str, version: str, unit: str, embedder: Embedder, factor: float) -> None:
        self.name, self.version, self.unit = name, version, unit
        self._embedder, self._factor = embedder, factor

    def score(self, images: Images, texts: Sequence[str]) -> NDArray[np.float64]:
        """One value an image."""
        if len(images) != len(texts):
            raise InputError(f"{len(images)} images but {len(texts)} texts; give one text per image")
        cosines = (self._embedder.embed_images(images) * self._embedder.embed_texts(texts)).sum(dim=1)
        return checked(self.name, self._factor * cosines)


def checked(name: str, values: Tensor) -> NDArray[np.float64]:
    """Scores as numbers.

    Raises:
        InputError: When one is not finite: averages over the rest would hide it.
    """
    scores: NDArray[np.float64] = values.double().cpu().numpy()
    if not np.isfinite(scores).all():
        raise InputError(
            f"scorer {name!r} gave {(~np.isfinite(scores)).sum()} of {len(scores)} images no finite score; "
            "its weights are damaged or overflow: get them again"
        )
    return scores
