"""A denoiser whose weights take a byte each: kept as float8, cast layer by layer when their turn comes."""

from typing import Any

import torch


def store_as_float8(denoiser: Any) -> None:
    """Keep the weights of convolutions and linear layers as float8_e4m3fn.

    Norms, and what else diffusers holds to be delicate in a model, stay as they are; it computes in the dtype it had.
    Every forward changes the weights for a while: one thread at a time.

    Args:
        denoiser: Of diffusers; changed in place, and not to be trained any more.
    """
    denoiser.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=denoiser.dtype)


def is_float8(denoiser: Any) -> bool:
    """Whether `store_as_float8` was here."""
    return any(weight.dtype == torch.float8_e4m3fn for weight in denoiser.parameters())
