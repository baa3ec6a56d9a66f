"""Human Preference Score v2 (Wu et al. 2023, arXiv:2306.09341), read once, in batches, without its package.

The public call reads the checkpoint again for every call and goes image by image. The score is 100 x cosine,
without the model's logit scale.
"""

from dataclasses import dataclass, replace
from html import unescape
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer

from popalign_core.attributes.zero_shot import SharedSpace, space_of
from popalign_core.errors import InputError
from popalign_core.evaluation.quality.open_clip_files import load_open_clip_vit
from popalign_core.evaluation.quality.scorer import Images
from popalign_core.evaluation.quality.scorer_files import CLIP_MEAN, CLIP_STD, read_checkpoint, require
from popalign_core.models.clip import ClipScorer
from popalign_core.models.weights_check import PartFolder, load_tokenizer

N_HEADS = 16
"""Of ViT-H-14, in both towers."""


@dataclass(frozen=True)
class PaddedPreprocessing:
    """What hpsv2 does with an image: the longest side scaled to `side`, black beside it, nothing cut off.

    It scales numbers, not bytes, so PIL would give other values; image by image, which fits the processor's cache.

    Attributes:
        side: px.
    """

    side: int

    def apply_all(self, images: Images) -> Tensor:
        """B of `[H, W, 3]` uint8 to `[B, 3, side, side]` float32."""
        values = torch.stack([self._fit(torch.from_numpy(np.array(pixels)).permute(2, 0, 1)) for pixels in images])
        return (values - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]

    def _fit(self, image: Tensor) -> Tensor:
        values = image.float().div(255)
        scale = self.side / max(values.shape[1:])
        height, width = (max(1, round(side * scale)) for side in values.shape[1:])
        if scale != 1:
            values = functional.interpolate(values[None], (height, width), mode="bicubic", antialias=True)[0]
        above, left = (self.side - height) // 2, (self.side - width) // 2
        return functional.pad(values, (left, self.side - width - left, above, self.side - height - above))


def load_hps(path: Path, tokenizer: Path, device: torch.device | str = "cpu") -> SharedSpace:
    """The checkpoint of HPS v2.0 or v2.1 with its own preprocessing.

    Args:
        path: Such as HPS_v2.1_compressed.pt.
        tokenizer: A folder with CLIP's tokenizer.
        device: Where the model goes.

    Raises:
        MissingWeightsError: When one of the two is not there.
        InputError: When one of the two is something else.
    """
    model = load_open_clip_vit(read_checkpoint(path), path, n_heads=N_HEADS, activation="gelu")
    model.train(False).requires_grad_(False).to(torch.device(device))
    part = PartFolder("the tokenizer", require(tokenizer), "give a folder with that of CLIP")
    words = load_tokenizer(AutoTokenizer, part)
    if len(words) != model.text_model.config.vocab_size:
        raise InputError(
            f"the tokenizer in {tokenizer} knows {len(words)} tokens, {path} {model.text_model.config.vocab_size}; "
            "give that of CLIP"
        )
    space = space_of(ClipScorer(model, words, PaddedPreprocessing(model.vision_model.config.image_size), ""))
    # open_clip's tokenizer takes texts for HTML, that of transformers does not.
    return replace(space, embed_texts=lambda texts: space.embed_texts([unescape(unescape(text)) for text in texts]))
