"""The inputs of a training: what is trained on what, and the callbacks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from popalign_core.training.checkpoint import Checkpoint
from popalign_core.training.data import PreferenceData

OnStep = Callable[[int, dict[str, float]], None]
Probe = Callable[[], dict[str, float]]
"""Measures the population that the model samples now: `discrepancy/AXIS` for each axis, and `clip_score`."""


@dataclass(frozen=True)
class TrainingSubject:
    """What is trained, and on what.

    Attributes:
        model: The base denoiser: SDXL's or SD 1/2's `UNet2DConditionModel`, an `SD3Transformer2DModel` or a
            `FluxTransformer2DModel`.
        noise_scheduler: Any diffusers scheduler of the model; its noise schedule and prediction type are read.
        data: Latents in the model's scaled space, and who is preferred.
        time_ids: [1, 6] micro-conditioning that the latents were sampled with; only SDXL reads it.
        before: The end of the round before, which this one goes on from; None for the first.
        seen: What is known of the round's images, to be logged before its first step.
    """

    model: Any
    noise_scheduler: Any
    data: PreferenceData
    time_ids: Tensor
    before: Checkpoint | None = None
    seen: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Observers:
    """Callbacks while a model trains.

    Attributes:
        on_step: Called after each step with its number (from 1), its logged terms, `samples_per_s` and `eta_s`.
        probe: Called every `config.probe.every` steps, and once before the first.
        is_orphaned: Asked after each step; True ends the training as SIGTERM does.
        log_folder: Where the trackers write; the folder of the checkpoints when not given.
    """

    on_step: OnStep | None = None
    probe: Probe | None = None
    is_orphaned: Callable[[], bool] | None = None
    log_folder: Path | None = None


NO_OBSERVERS = Observers()
