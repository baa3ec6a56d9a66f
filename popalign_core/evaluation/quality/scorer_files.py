"""Scorers' public weights: how to get them, and reading a checkpoint. Imports torch only to read; downloads nothing."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popalign_core.config import ScorerConfig
from popalign_core.errors import InputError, MissingWeightsError
from popalign_core.sources import Group, HubFiles, Kind, Source, WebFile, how_to_get

if TYPE_CHECKING:
    from torch import Tensor

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of RGB in [0, 1], as OpenAI's CLIP takes images; many others do."""
_HPS, _AESTHETICS = "xswu/HPSv2", "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main"
_NVIDIA = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics"
PUBLIC_WEIGHTS: dict[str, tuple[str, Kind | None]] = {
    "clip-vit-large-patch14": ("openai/clip-vit-large-patch14", "network"),
    "HPS_v2_compressed.pt": (_HPS, "file"),
    "HPS_v2.1_compressed.pt": (_HPS, "file"),
    "PickScore_v1": ("yuvalkirstain/PickScore_v1", "network"),
    "sac+logos+ava1-l14-linearMSE.pth": (f"{_AESTHETICS}/sac%2Blogos%2Bava1-l14-linearMSE.pth", None),
    "ImageReward.pt": ("THUDM/ImageReward", "file"),
    "bert-base-uncased": ("google-bert/bert-base-uncased", "tokenizer"),  # nobody reads its weights
    "inception-2015-12-05.pt": (f"{_NVIDIA}/inception-2015-12-05.pt", None),
}
"""Usual name of a file or folder -> where it comes from, and which of a repository's files; None is an address."""


# What torch raises for bytes that it did not write, such as the page of a failed download.
_UNREADABLE = (RuntimeError, EOFError, ValueError, OSError, LookupError, TypeError, AttributeError, AssertionError)


def weights_of(settings: ScorerConfig) -> Iterator[Path]:
    """The files and folders that a scorer needs; none for the CLIP that ships."""
    for field in ("path", "clip", "tokenizer", "processor"):
        value = getattr(settings, field, None)
        if value is not None:
            yield Path(value)


def public_source(path: Path, group: Group) -> Source | None:
    """Where a file or folder comes from, by its usual name; None for others.

    Args:
        path: Where it belongs.
        group: Who needs it.
    """
    if path.name not in PUBLIC_WEIGHTS:
        return None
    home, kind = PUBLIC_WEIGHTS[path.name]
    if kind is None:
        return WebFile(home, path, group)
    return HubFiles(home, kind, group, inside=path.name if kind == "file" else "", place=path)


def require(path: Path) -> Path:
    """A file or folder that must be there.

    Raises:
        MissingWeightsError: Naming it, and how to get it.
    """
    if path.exists():
        return path
    source = public_source(path, "scorers")
    how = how_to_get(source) if source else "put the weights there"
    raise MissingWeightsError(f"there is nothing at {path.absolute()}; {how}. Nothing is downloaded without asking")


def read_checkpoint(path: Path) -> Mapping[str, "Tensor"]:
    """The tensors of a file that `torch.save` wrote: a state dict, or a training's checkpoint with one in it.

    Raises:
        MissingWeightsError: When there is no file.
        InputError: When it is cut off, or holds something else.
    """
    from pickle import UnpicklingError

    import torch

    try:
        content: Any = torch.load(require(path), map_location="cpu", weights_only=True)
    except (UnpicklingError, *_UNREADABLE) as error:
        raise InputError(
            f"{path} is not a torch checkpoint, or is truncated ({(str(error) or 'empty').splitlines()[0]}); "
            "get it again"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path} holds no state dict but {type(state).__name__}; give the scorer's own checkpoint")
    return state


def wrong_keys(path: Path, what: str, missing: list[str], unknown: list[str]) -> InputError:
    """The error for a state dict of another network."""
    return InputError(
        f"{path} is not {what}: it lacks {len(missing)} tensors {missing[:3]} and has {len(unknown)} others "
        f"{unknown[:3]}; give the scorer's own checkpoint"
    )
