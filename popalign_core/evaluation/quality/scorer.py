"""What every scorer has in common, and the two sorts that rest on a shared space of pictures and texts."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from popalign_core.attributes.zero_shot import SharedSpace
from popalign_core.errors import InputError

Pictures = Sequence[NDArray[np.uint8]]
"""Each `[H, W, 3]` RGB."""


class Scorer(Protocol):
    """Says how good pictures are. Loaded once, it scores any number of batches.

    Attributes:
        name: The metric's.
        version: Of its weights, by their content.
        unit: What one point is.
    """

    name: str
    version: str
    unit: str

    def score(self, pictures: Pictures, texts: Sequence[str]) -> NDArray[np.float64]:
        """One value a picture `[B]`; no value depends on the rest of the batch."""
        ...


class Embedder:
    """A shared space that does nothing twice: a text is embedded once, and so is a batch, however many scorers ask."""

    def __init__(self, space: SharedSpace) -> None:
        self._space = space
        self.scale = space.scale
        self._texts: dict[str, Tensor] = {}
        self._last: tuple[Pictures, Tensor] | None = None

    @torch.inference_mode()
    def embed_pictures(self, pictures: Pictures) -> Tensor:
        """`[B, D]` of length 1, on the CPU."""
        if self._last is None or self._last[0] is not pictures:
            self._last = pictures, self._space.embed_pictures(pictures)
        return self._last[1]

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """`[B, D]` of length 1, on the CPU; one by one, so that none differs in its last bits with those beside it."""
        for text in texts:
            if text not in self._texts:
                self._texts[text] = self._space.embed_texts([text])[0]
        return torch.stack([self._texts[text] for text in texts])


class CosineScorer:
    """A factor times the cosine of picture and text: CLIP score, HPS v2, PickScore; attributes as those of `Scorer`."""

    def __init__(self, name: str, version: str, unit: str, embedder: Embedder, factor: float) -> None:
        self.name, self.version, self.unit = name, version, unit
        self._embedder, self._factor = embedder, factor

    def score(self, pictures: Pictures, texts: Sequence[str]) -> NDArray[np.float64]:
        """One value a picture."""
        if len(pictures) != len(texts):
            raise InputError(f"{len(pictures)} pictures but {len(texts)} texts; give one text a picture")
        cosines = (self._embedder.embed_pictures(pictures) * self._embedder.embed_texts(texts)).sum(dim=1)
        return checked(self.name, self._factor * cosines)


def checked(name: str, values: Tensor) -> NDArray[np.float64]:
    """Scores as numbers.

    Raises:
        InputError: When one is not finite: averages over the rest would hide it.
    """
    scores: NDArray[np.float64] = values.double().cpu().numpy()
    if not np.isfinite(scores).all():
        raise InputError(
            f"scorer {name!r} gave {(~np.isfinite(scores)).sum()} of {len(scores)} pictures no finite score; "
            "its weights are damaged or overflow: get them again"
        )
    return scores
