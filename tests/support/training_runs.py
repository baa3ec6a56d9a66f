"""What the tests of training share: a small configuration, a run, a batch, and what two models make of it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from popalign_core.config import ProbeConfig, RuntimeConfig, TrainingConfig
from popalign_core.models.denoisers import family_of, find_denoiser
from popalign_core.training.batch import Batch, draw_batch
from popalign_core.training.data import PreferenceData
from popalign_core.training.job import Observers, OnStep, Probe, TrainingSubject
from popalign_core.training.losses import mean_squared_error
from popalign_core.training.noising import forward_process
from popalign_core.training.objective import forward
from popalign_core.training.trainer import train_preferences

TIME_IDS = torch.tensor([[64.0, 64, 0, 0, 64, 64]])
RUNTIME = RuntimeConfig(device="cpu", trackers=())
CONFIG = TrainingConfig(
    lora_rank=0,
    n_steps=6,
    n_pairs=4,
    n_warmup_steps=2,
    learning_rate=1e-3,
    beta=20,
    empty_caption_rate=0.25,
    checkpoint_every=2,
)


def changed(**changes: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({**CONFIG.model_dump(), **changes})


def run(
    pipeline: Any,
    data: PreferenceData,
    folder: Path,
    on_step: OnStep | None = None,
    *,
    runtime: RuntimeConfig = RUNTIME,
    probe: Probe | None = None,
    look: ProbeConfig | None = None,
    **changes: Any,
) -> list[dict[str, Any]]:
    """Train a pipeline's denoiser on the CPU; `look` says when the probe looks. Returns the log."""
    subject = TrainingSubject(find_denoiser(pipeline), pipeline.scheduler, data, TIME_IDS)
    return train_preferences(subject, changed(probe=look, **changes), folder, runtime, Observers(on_step, probe))


def draw(pipeline: Any, data: PreferenceData, **changes: Any) -> Batch:
    config = changed(**{"n_pairs": 64, **changes})
    return draw_batch(data, forward_process(pipeline.scheduler, config), config, TIME_IDS, 1)


def errors(pipeline: Any, batch: Batch) -> Tensor:
    """Mean squared errors [S]."""
    model = find_denoiser(pipeline)
    with torch.no_grad():
        return mean_squared_error(forward(model, family_of(model), batch), batch.target)


def values(log: list[dict[str, Any]], name: str) -> list[float]:
    return [row["value"] for row in log if row["name"] == name]


def same_weights(first: Any, second: Any) -> bool:
    theirs = second.state_dict()
    return all(torch.equal(weight, theirs[name]) for name, weight in first.state_dict().items())


def stop_at(last: int) -> OnStep:
    """Interrupts the training after a step."""

    def on_step(step: int, terms: dict[str, float]) -> None:
        if step == last:
            raise KeyboardInterrupt

    return on_step
