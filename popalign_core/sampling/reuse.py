"""Deep features kept over some steps (DeepCache, Ma, Fang & Wang 2023, arXiv:2312.00858).

From one step to the next what the deep blocks of a UNet say changes little: they run at every n-th step only. In
between the outermost blocks alone run, and the kept features take the place of everything below them.
"""

import copy
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from popalign_core.errors import ConfigError


class FeatureReuse:
    """Says, forward by forward, with which UNet one batch is denoised.

    The UNets it gives are copies that share the original's blocks and weights and differ in which blocks there are: the
    original stays as it is, so that threads may sample with it at the same time.
    """

    def __init__(self, unet: Any, interval: int) -> None:
        """Start a batch.

        Args:
            unet: Stays untouched.
            interval: The whole UNet runs at each step whose number it divides.

        Raises:
            ConfigError: When the denoiser is no UNet: a transformer has no way around its deep blocks.
        """
        if not isinstance(unet, UNet2DConditionModel):
            raise ConfigError(
                f"sampling.reuse_interval is {interval}, but {type(unet).__name__} has no outer blocks that could run "
                "alone; set it to 1, or take a model with a UNet (SDXL, Stable Diffusion 1/2)"
            )
        if hook := getattr(unet, "_hf_hook", None):
            hook.pre_forward(unet)  # offloading wraps the original's forward alone, which is not called
        self._unet, self._interval = unet, interval
        self._shallow: dict[tuple[str, ...], tuple[int, Any]] = {}

    def denoiser(self, step: int, parts: tuple[str, ...]) -> Any:
        """The UNet for one forward.

        Args:
            step: Number of the step in the batch, from 0.
            parts: What the forward's batch is put together of; features of other parts are not used.

        Returns:
            A UNet without deep blocks where features of the same parts were kept since the last whole step; else a
            whole one, which keeps them.
        """
        turn = step // self._interval
        kept_in, shallow = self._shallow.pop(parts, (None, None))
        if kept_in != turn:
            return self._whole(turn, parts)
        self._shallow[parts] = turn, shallow
        return shallow

    def _whole(self, turn: int, parts: tuple[str, ...]) -> Any:
        *deeper, last = self._unet.up_blocks

        def keep_and_run(hidden_states: Tensor, **inputs: Any) -> Tensor:
            self._shallow[parts] = turn, self._without_depth(hidden_states)
            features: Tensor = last(hidden_states=hidden_states, **inputs)
            return features

        listening = _copy_with(last)
        listening.forward = keep_and_run
        return _copy_with(self._unet, up_blocks=nn.ModuleList([*deeper, listening]))

    def _without_depth(self, features: Tensor) -> Any:
        first = _copy_with(self._unet.down_blocks[0], downsamplers=None)
        return _copy_with(
            self._unet,
            down_blocks=nn.ModuleList([first]),
            mid_block=_Kept(features),
            up_blocks=nn.ModuleList([self._unet.up_blocks[-1]]),
        )


class _Kept(nn.Module):
    """Stands for all that lies below the last up block."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self._features = features

    def forward(self, *_: Any) -> Tensor:
        return self._features


def _copy_with(module: nn.Module, **parts: nn.Module | None) -> Any:
    """A module that shares everything with another but the parts given."""
    copied: Any = copy.copy(module)
    copied.__dict__.pop("forward", None)
    copied._modules = dict(module._modules)
    for name, part in parts.items():
        setattr(copied, name, part)
    return copied
