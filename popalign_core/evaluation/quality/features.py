"""What of images is kept to compare sets of them: embeddings of a CLIP, and the pool features of Inception."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from popalign_core.errors import InputError
from popalign_core.evaluation.quality.scorer import Images
from popalign_core.evaluation.quality.scorer_files import require

CLIP, INCEPTION = "clip", "inception"


@dataclass(frozen=True)
class Features:
    """One sort of features of a set of images.

    Attributes:
        version: Of the network they are from.
        image_ids: N.
        values: `[N, D]` float32, in the same order.
    """

    version: str
    image_ids: Sequence[str]
    values: Tensor


@dataclass(frozen=True)
class Extractor:
    """A sort of features.

    Attributes:
        name: `CLIP` or `INCEPTION`.
        version: Of the network, by its content.
        extract: Images to `[B, D]` float32 on the CPU.
    """

    name: str
    version: str
    extract: Callable[[Images], Tensor]


def load_inception(path: Path, device: torch.device | str = "cpu") -> Callable[[Images], Tensor]:
    """The Inception network of FID (Heusel et al. 2017) with its 2048 features, from NVIDIA's TorchScript file.

    The file holds the network of 2015 and its own resizing, as the FID code of StyleGAN and EDM use it; so there is
    no second implementation here to be a little different, and no need of torchvision.

    Args:
        path: Such as inception-2015-12-05.pt.
        device: Where the network goes.

    Raises:
        MissingWeightsError: When there is no file.
        InputError: When it is no TorchScript, or its output is no features.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the file's format is what it is
            network = torch.jit.load(str(require(path)), map_location=torch.device(device)).eval()
    except (RuntimeError, ValueError, EOFError) as error:
        raise InputError(
            f"{path} is not TorchScript, or is truncated ({str(error).splitlines()[0]}); get it again"
        ) from error

    @torch.inference_mode()
    def extract(images: Images) -> Tensor:
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        try:
            features = network(pixels.to(device), return_features=True)
        except RuntimeError as error:
            raise InputError(f"{path} does not take images ({str(error).splitlines()[-1]}); get it again") from error
        if features.ndim != 2 or not features.isfinite().all():
            raise InputError(f"{path} gave no finite features `[B, D]` but {tuple(features.shape)}; get it again")
        kept: Tensor = features.float().cpu()
        return kept

    return extract
