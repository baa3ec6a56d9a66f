"""Whether a config.json can be that of the weights beside it, before memory is taken for what it asks for.

The libraries make room for every tensor that is not in the file as the configuration wants it, and say so afterwards.
Nothing here reads a weight: the heads of the files tell their shapes.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

_COUNTS = re.compile(r"(^|_)layers(_per_block)?$|^depths$|^num_stages$|_repeats$|^num_\w+_blocks$")
_LARGE = 512
"""Smaller numbers ask for little, whatever they are."""
_MOST_TIMES = 2
"""How many times the weights of its file a network may have; what is amiss with fewer is named by tensor."""
_FAULTS = (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, ImportError, ArithmeticError)
_TOO_LARGE = "overflow"


def is_number(value: object) -> TypeGuard[float]:
    """Whether a setting is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def misfit(kind: Any, folder: Path, settings: Mapping[str, Any], files: Sequence[Path]) -> str | None:
    """What shows that a network of other weights is described.

    Args:
        kind: The network's class, of diffusers or transformers.
        folder: With its config.json.
        settings: What that holds.
        files: With the weights; what is no safetensors is passed over.

    Returns:
        None where nothing does.

    Raises:
        OSError: When a file cannot be read.
        SafetensorError: When one is not whole.
    """
    shapes = list(_shapes(files))
    n_weights, numbers = sum(map(math.prod, shapes)), list(_numbers(settings))
    for name, number in numbers:
        if _COUNTS.search(name) and number > len(shapes):
            return f"config.json has {name} {number}, but the weights are {len(shapes)} tensors"
    # a width is a side of some tensor: building outlines of all networks would take half a second each
    sides = {side for shape in shapes for side in shape}
    odd = [(number, name) for name, number in numbers if number > _LARGE and number not in sides]
    if not odd:
        return None
    n_described = _count_weights(kind, folder)
    if n_described <= _MOST_TIMES * n_weights:
        return None
    number, name = max(odd)
    described = "more weights than can be counted" if math.isinf(n_described) else f"{n_described:.0f} weights"
    return f"config.json, with {name} {number}, describes a network of {described}, but the file has {n_weights}"


def _shapes(files: Sequence[Path]) -> Iterator[list[int]]:
    from safetensors import safe_open

    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as weights:
                yield from (weights.get_slice(name).get_shape() for name in weights.keys())  # noqa: SIM118


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number that may be a size, by name: also in lists, and in the configurations of towers."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not key.endswith("_id") and (not isinstance(inner, Mapping) or key.endswith("_config")):
                yield from _numbers(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, name)
    elif is_number(value):
        yield name, value


def _count_weights(kind: Any, folder: Path) -> float:
    """How many weights a configuration asks for, by an outline that takes no memory; 0 where none can be made."""
    import torch

    try:
        with torch.device("meta"):
            weights = _outline(kind, folder).state_dict(keep_vars=True).values()
    except _FAULTS as error:  # loading says what is wrong
        return math.inf if _TOO_LARGE in str(error) else 0
    return float(sum({id(weight): weight.numel() for weight in weights}.values()))


def _outline(kind: Any, folder: Path) -> Any:
    if hasattr(kind, "load_config"):  # diffusers
        return kind.from_config(kind.load_config(str(folder), local_files_only=True))
    from transformers import AutoConfig

    if (own := getattr(kind, "config_class", None)) is None:
        return kind.from_config(AutoConfig.from_pretrained(str(folder), local_files_only=True))
    return kind(own.from_pretrained(str(folder), local_files_only=True))
