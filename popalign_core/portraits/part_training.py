"""One small training loop for the parts of the embedded model: EMA, cosine schedule, checkpoints that resume."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LoopConfig:
    """How one part is trained.

    Attributes:
        steps: Optimiser steps.
        learning_rate: Peak, after warm-up; decays to 2% along a cosine.
        warmup_steps: Linear warm-up.
        ema_decay: Decay of the averaged weights, ramped up from zero.
        weight_decay: AdamW's.
        checkpoint_every: Steps between checkpoints.
        seed: With the step it seeds the step's generator, so a resumed run sees the same draws.
    """

    steps: int
    learning_rate: float
    warmup_steps: int = 200
    ema_decay: float = 0.998
    weight_decay: float = 1e-2
    checkpoint_every: int = 500
    seed: int = 0


def learning_rate_factor(step: int, config: LoopConfig) -> float:
    """Share of the peak learning rate at a step."""
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return warmup * (0.02 + 0.98 * 0.5 * (1 + cos(pi * min(1.0, step / config.steps))))


def fit(
    name: str,
    model: nn.Module,
    loss_fn: Callable[[nn.Module, torch.Generator, int], tuple[Tensor, dict[str, float]]],
    config: LoopConfig,
    folder: Path,
    on_step: Callable[[str, int, dict[str, float]], None] | None = None,
) -> None:
    """Train `model` in place and leave the EMA weights in it. The same call again resumes.

    Args:
        name: Names the checkpoint and the log in `folder`.
        model: What is trained.
        loss_fn: From (model, generator, step) to a scalar loss and terms for the log.
        config: Steps, rates, seed.
        folder: Holds `NAME.checkpoint` and `NAME.jsonl`.
        on_step: Called with (name, step, log row) about every two seconds.

    Raises:
        FloatingPointError: When the loss is not finite; the last checkpoint stays.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, (0.9, 0.98), weight_decay=config.weight_decay
    )
    ema = {key: value.detach().clone() for key, value in model.state_dict().items()}
    path, log_path = folder / f"{name}.checkpoint", folder / f"{name}.jsonl"
    step = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema, step = state["ema"], state["step"]
    model.train()
    averages: dict[str, float] = {}
    reported = time.monotonic()
    while step < config.steps:
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(step, config)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        loss, terms = loss_fn(model, generator, step)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"{name}: the loss is {loss.item()} at step {step}; lower learning_rate and run again"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        _average(ema, model, min(config.ema_decay, step / (step + 10)))
        for key, value in {"loss": float(loss.detach()), **terms}.items():
            averages[key] = value if key not in averages else 0.98 * averages[key] + 0.02 * value
        if step % 50 == 0:
            with log_path.open("a") as log:
                rounded = {key: round(value, 5) for key, value in averages.items()}
                log.write(json.dumps({"step": step, **rounded}) + "\n")
        if on_step and (time.monotonic() - reported > 2 or step == config.steps):
            on_step(name, step, averages)
            reported = time.monotonic()
        if step % config.checkpoint_every == 0 or step == config.steps:
            temporary = path.with_suffix(".tmp")
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema, "step": step}
            torch.save(state, temporary)
            os.replace(temporary, path)
    model.load_state_dict(ema)
    model.eval()


def _average(ema: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                ema[key].lerp_(value, 1 - decay)
            else:
                ema[key].copy_(value)
