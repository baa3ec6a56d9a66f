"""Which weights train: an adapter, all of the model's own, or those that read the caption."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from popalign_core.config import TrainingConfig
from popalign_core.errors import ConfigError, InputError
from popalign_core.models.denoisers import family_of
from popalign_core.training.processes import shard_like

ADAPTER_NAME = "popalign"


def choose_weights(model: Any, config: TrainingConfig) -> None:
    """Let just the chosen weights take gradients, in float32; the others stay in the dtype they have.

    Raises:
        InputError: When the model carries an adapter already.
        ConfigError: When LoRA targets match no module, or `trained_weights` no parameter.
    """
    if getattr(model, "peft_config", None):
        raise InputError("the model already carries an adapter; load the base model again")
    # eval: a dropout would draw from the global generator, which a resume does not restore
    model.eval().requires_grad_(False)
    if config.lora_rank > 0:
        _add_adapter(model, config)
        return
    family = family_of(model)
    if model.dtype != torch.float32:
        model.to(torch.float32)
    chosen = [
        weight
        for name, weight in model.named_parameters()
        if config.trained_weights == "all" or any(part in name for part in family.caption_parts)
    ]
    if not chosen:
        raise ConfigError(f"trained_weights {config.trained_weights!r} matches no weight of this {family.name} model")
    for weight in chosen:
        weight.requires_grad_(True)


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that train, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _add_adapter(model: Any, config: TrainingConfig) -> None:
    from peft import LoraConfig

    targets = config.lora_targets or family_of(model).lora_targets
    modules = [name for name, _ in model.named_modules()]
    absent = [end for end in targets if not any(name == end or name.endswith(f".{end}") for name in modules)]
    if (config.lora_targets and absent) or len(absent) == len(targets):
        ends = sorted({name.split(".")[-1] for name in modules if name})
        raise ConfigError(f"training.lora_targets: no module's name ends in {absent}; this model has {ends}")
    # gaussian: A is noise and B zero, so that the policy starts as the reference
    lora = LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_rank, init_lora_weights="gaussian", target_modules=list(targets)
    )
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model.add_adapter(lora, adapter_name=ADAPTER_NAME)
    for weight in trained_weights(model).values():
        weight.data = weight.data.float()


class MovingWeights:
    """The weights that train and, where it is asked for, their moving mean, which is then what training leaves.

    Attributes:
        current: Name -> parameter, changed in place by the optimiser.
        mean: Name -> moving mean; empty without one.
    """

    def __init__(self, current: dict[str, Any], decay: float) -> None:
        """Begin with the weights as they are; a decay of 0 is no mean."""
        self.current, self._decay = current, decay
        self.mean: dict[str, Tensor] = self.copy() if decay > 0 else {}

    def copy(self) -> dict[str, Tensor]:
        """The weights of now."""
        return {name: weight.detach().clone() for name, weight in self.current.items()}

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Replace weights by others of the same names; whole tensors may go into shards."""
        with torch.no_grad():
            for name, weight in weights.items():
                self.current[name].copy_(shard_like(weight, self.current[name]))

    @contextmanager
    def replaced(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Within the block the model has these weights; afterwards, whatever happens, its own again."""
        kept = self.copy() if weights else {}
        self.put(weights)
        try:
            yield
        finally:
            self.put(kept)

    def average(self, step: int) -> None:
        """Move the mean after a step, its decay growing from 0.1 so that the first weights are soon forgotten."""
        decay = min(self._decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, mean in self.mean.items():
                mean.lerp_(self.current[name], 1 - decay)

    def restore_mean(self, mean: Mapping[str, Tensor]) -> None:
        """The mean of a checkpoint, whole tensors on any device."""
        for name, one in mean.items():
            weight = self.current[name]
            self.mean[name] = shard_like(one, weight).to(weight.device).clone()

    def final(self) -> dict[str, Tensor]:
        """What training leaves: the mean, or else the weights."""
        return self.mean or {name: weight.detach() for name, weight in self.current.items()}
