"""The gradient of the global batch's loss, whatever the number of processes and micro-batches it is taken in."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from popalign_core.config import TrainingConfig
from popalign_core.models.denoisers import Family
from popalign_core.training.batch import Batch
from popalign_core.training.objective import (
    Errors,
    Running,
    is_coupled,
    measure,
    objective_loss,
    pack,
    put_own,
    to_floats,
    unpack,
)
from popalign_core.training.reference import Opponent


@dataclass(frozen=True)
class GlobalGradient:
    """Leaves in each trained weight its gradient of one batch's mean loss, the same on every process.

    Attributes:
        accelerator: Of this process.
        policy: What is called for the policy, wrapped for several processes.
        model: The bare model.
        frozen: The reference's frozen copy; None with an adapter.
        family: Of the model.
        dtype: What the model computes in, under autocast.
        n_micro: Forwards a process.
        target: [K] distribution to calibrate to, or None.
        opponent: Gives the model the weights that it is compared with, from the second round on; else the base is.
    """

    accelerator: Any
    policy: Any
    model: Any
    frozen: nn.Module | None
    family: Family
    dtype: torch.dtype
    n_micro: int
    target: Tensor | None
    opponent: Opponent | None = None

    def take(self, batch: Batch, config: TrainingConfig, running: Running) -> tuple[dict[str, float], Running]:
        """Backward through this process's part of a batch.

        Args:
            batch: The global one, the same on every process, on the CPU.
            config: Objective.
            running: Of the steps before; left as it is.

        Returns:
            The logged terms of the global batch, and what the next step needs.
        """
        world, device = self.accelerator.num_processes, self.accelerator.device
        first, n_parts = self.accelerator.process_index * self.n_micro, world * self.n_micro
        parts = [batch.part(first + i, n_parts).to(device) for i in range(self.n_micro)]
        known, everyone = self._exchange(parts, config) if is_coupled(config) and n_parts > 1 else (None, None)
        whole = batch.to(device) if everyone else None
        collected: list[dict[str, Tensor]] = []
        after = running
        for i, part in enumerate(parts):
            is_last = i == len(parts) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.policy):
                errors = known or self.measure(part, config)
                # each part starts from the same running values and ends with the same
                after = replace(running)
                if everyone and whole:
                    own = put_own(everyone, errors, (first + i) * part.n_pairs)
                    loss, terms = objective_loss(own, whole, self.target, config, after)
                    # DDP takes the mean over processes of what is a sum: hence times their number
                    self.accelerator.backward(loss * world)
                else:
                    loss, terms = objective_loss(errors, part, self.target, config, after)
                    self.accelerator.backward(loss / self.n_micro)
                collected.append(terms)
        means = {name: torch.stack([terms[name] for terms in collected]).mean() for name in collected[0]}
        if not everyone and world > 1:
            stacked = self.accelerator.reduce(torch.stack(list(means.values())), reduction="mean")
            means = dict(zip(means, stacked, strict=True))
        return to_floats(means), after

    def measure(self, part: Batch, config: TrainingConfig) -> Errors:
        """Both models on a part."""
        with self.autocast():
            return measure(self.policy, self.model, self.frozen, self.family, part, config, self.opponent)

    def autocast(self) -> torch.autocast:
        """Within it the model computes in its own dtype, though its trained weights are float32."""
        return torch.autocast(self.accelerator.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def _exchange(self, parts: list[Batch], config: TrainingConfig) -> tuple[Errors | None, Errors]:
        """Everyone's errors without gradient; and one's own with it, where one forward holds them all."""
        with torch.no_grad() if self.n_micro > 1 else nullcontext():
            measured = [self.measure(part, config) for part in parts]
        packed = self.accelerator.gather(torch.cat([pack(errors) for errors in measured]))
        return (measured[0] if self.n_micro == 1 else None), unpack(packed, measured[0])
