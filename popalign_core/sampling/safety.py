"""A checker that flags unsafe images."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popalign_core.errors import MissingWeightsError
from popalign_core.models.file_hashes import hash_folder
from popalign_core.sources import HubFiles, how_to_get

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from popalign_core.models.image_processors import LibraryPreprocessing

UNSAFE = "unsafe"
"""Why an image is withheld: the safety checker flagged it."""

CHECKER_ID = "CompVis/stable-diffusion-safety-checker"
CHECKER_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")
_CHECKED_AT_ONCE = 32


@dataclass(frozen=True)
class SafetyChecker:
    """A safety checker ready to look.

    Attributes:
        model: diffusers' `StableDiffusionSafetyChecker`, on its device.
        preprocessing: From pixels to what the model reads.
    """

    model: Any
    preprocessing: "LibraryPreprocessing"


def load_safety_checker(folder: str, device: "torch.device | str" = "cpu") -> SafetyChecker:
    """Load a checker in the format of `CompVis/stable-diffusion-safety-checker`; nothing is downloaded.

    Raises:
        MissingWeightsError: When the folder or one of its files is missing or damaged.
    """
    import numpy as np
    import torch
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from diffusers.utils import logging

    from popalign_core.models.image_processors import check_fit, load_library_preprocessing
    from popalign_core.models.weights_check import PartFolder, load_module

    find_safety_checker(folder)
    part = PartFolder("the safety checker", Path(folder), _fix(folder))
    model = load_module(StableDiffusionSafetyChecker, part, torch.float32)
    preprocessing = load_library_preprocessing(part)
    # it says that it returns black images, which is not so here
    logging.get_logger(StableDiffusionSafetyChecker.__module__).setLevel(logging.ERROR)
    check_fit(part, preprocessing, lambda values: model(values, np.zeros((1, 1))))
    return SafetyChecker(model.eval().requires_grad_(False).to(torch.device(device)), preprocessing)


def safety_hash(folder: str) -> str:
    """What identifies a checker's weights in artifact keys, wherever they lie.

    Raises:
        MissingWeightsError: When the folder or one of its files is missing.
    """
    find_safety_checker(folder)
    return hash_folder(Path(folder))


def unsafe_images(checker: SafetyChecker, pixels_u8: "NDArray[np.uint8]") -> "NDArray[np.bool_]":
    """Which images the checker would black out; they are left as they are.

    Args:
        checker: From `load_safety_checker`.
        pixels_u8: [N, H, W, 3] uint8.

    Returns:
        [N] bool.
    """
    import numpy as np

    verdicts: list[bool] = []
    for start in range(0, len(pixels_u8), _CHECKED_AT_ONCE):
        batch = pixels_u8[start : start + _CHECKED_AT_ONCE]
        values = checker.preprocessing.apply_all(list(batch))
        # it blacks out what it gets: one pixel each, which nobody wants back
        _, flagged = checker.model(values.to(checker.model.device), np.zeros((len(batch), 1)))
        verdicts += flagged
    return np.array(verdicts, dtype=np.bool_)


def find_safety_checker(folder: str) -> Path:
    """The folder of a checker, with all its files.

    Raises:
        MissingWeightsError: When one is missing.
    """
    lacking = [name for name in CHECKER_FILES if not (Path(folder) / name).is_file()]
    if lacking:
        raise MissingWeightsError(f"the safety checker {folder} has no {', '.join(lacking)}; {_fix(folder)}")
    return Path(folder)


def checker_source(folder: str | Path) -> HubFiles:
    """Where the public checker comes from."""
    return HubFiles(CHECKER_ID, "network", "safety-checker", place=Path(folder))


def _fix(folder: str) -> str:
    return how_to_get(checker_source(folder))
