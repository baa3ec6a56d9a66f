"""LAION's aesthetic predictor (Schuhmann et al. 2022): five linear layers on the embedding of a CLIP ViT-L/14.

Without activations between them, as it was trained; the embedding has length 1. From about 1 to 10.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from popalign_core.errors import InputError
from popalign_core.evaluation.quality.scorer import Embedder, Images, checked
from popalign_core.evaluation.quality.scorer_files import read_checkpoint, wrong_keys

_LAYERS = (0, 2, 4, 6, 7)  # between them lay dropouts, which have no weights
_WIDTHS = (1024, 128, 64, 16, 1)


class AestheticScorer:
    """Looks at the image alone; attributes as those of `Scorer`."""

    unit = "1 to 10"

    def __init__(self, name: str, version: str, embedder: Embedder, head: nn.Sequential) -> None:
        self.name, self.version = name, version
        self._embedder, self._head = embedder, head

    @torch.inference_mode()
    def score(self, images: Images, texts: Sequence[str]) -> NDArray[np.float64]:
        """One value an image; the texts do not matter."""
        embeds = self._embedder.embed_images(images)
        if embeds.shape[1] != self._head[0].in_features:
            raise InputError(
                f"the CLIP of scorer {self.name!r} embeds in {embeds.shape[1]} dimensions, its network takes "
                f"{self._head[0].in_features}; give the CLIP it was trained on, ViT-L/14"
            )
        return checked(self.name, self._head(embeds)[:, 0])


def load_head(path: Path) -> nn.Sequential:
    """The network of a file, from its own embedding size down to 1.

    Raises:
        MissingWeightsError: When there is no file.
        InputError: When it holds another network.
    """
    return head_of(read_checkpoint(path), path, "LAION's aesthetic predictor")


def head_of(state: Mapping[str, Tensor], path: Path, what: str) -> nn.Sequential:
    """Linear layers `[D]` to 1 from a state dict.

    Raises:
        InputError: When it is of something else.
    """
    numbers = {
        f"layers.{old}.{kind}": f"{new}.{kind}" for new, old in enumerate(_LAYERS) for kind in ("weight", "bias")
    }
    if set(state) != set(numbers):
        raise wrong_keys(path, what, sorted(set(numbers) - set(state)), sorted(set(state) - set(numbers)))
    widths = (state["layers.0.weight"].shape[-1], *_WIDTHS)
    layers = nn.Sequential(*(nn.Linear(*pair) for pair in pairwise(widths)))
    try:
        layers.load_state_dict({new: state[old].float() for old, new in numbers.items()})
    except RuntimeError as error:
        raise InputError(f"{path} is not {what}: {error}") from error
    return layers.eval().requires_grad_(False)
