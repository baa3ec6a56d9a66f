"""Train objectives on the mixture and follow the mass of G1, G2 and G3."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor

from popalign_core.errors import InputError
from popalign_core.synthetic.mixture import Mixture, policy, preference_samples, reference_mixture
from popalign_core.training.losses import popalign_loss

N_BATCH = 128
"""Samples a side and step."""
LEARNING_RATE = 1e-2
TOLERANCE = 0.1
"""What counts as balanced and as kept."""


@dataclass(frozen=True)
class ExperimentSetting:
    """One objective.

    Attributes:
        objective: "sft" (maximum likelihood of the preferred samples) or "popalign" (Eq. 11).
        normaliser: "batch" or "zero"; only for popalign.
        beta: Divergence penalty on exact log-ratios.
        alpha: Weight of the preferred side in Z.
    """

    objective: str = "popalign"
    normaliser: str = "zero"
    beta: float = 1.0
    alpha: float = 0.5

    @property
    def name(self) -> str:
        """As it stands in tables."""
        if self.objective == "sft":
            return "sft"
        alpha = f" alpha {self.alpha:g}" if self.normaliser == "batch" and self.alpha != 0.5 else ""
        return f"popalign {self.normaliser} beta {self.beta:g}{alpha}"


MAIN = (ExperimentSetting("sft"), ExperimentSetting(normaliser="batch"), ExperimentSetting())
"""Compared on every seed."""
SWEEP = (
    *(
        ExperimentSetting(normaliser=normaliser, beta=beta)
        for normaliser in ("batch", "zero")
        for beta in (0.25, 0.5, 2.0, 4.0)
    ),
    *(ExperimentSetting(normaliser="batch", beta=beta, alpha=alpha) for beta in (0.5, 1.0) for alpha in (0.25, 0.75)),
)
"""Compared on the first seed."""


@dataclass(frozen=True)
class Outcome:
    """One trained mixture.

    Attributes:
        setting: Its objective.
        seed: Of data and batches.
        final: The mixture after the last step.
        history: (step, G1, G2, G3), the reference's first.
    """

    setting: ExperimentSetting
    seed: int
    final: Mixture
    history: list[tuple[int, float, float, float]] = field(repr=False)


def train_objective(
    setting: ExperimentSetting, seed: int, *, n_steps: int = 3000, n_samples: int = 20_000, log_every: int = 50
) -> Outcome:
    """Train one mixture with Adam; the rate falls linearly to 0, so that the end is not one step's noise.

    Args:
        setting: The objective.
        seed: Of data and batches.
        n_steps: Optimiser steps.
        n_samples: Preference data a side. With the paper's 1,000 the number of dispreferred G3 samples alone has a
            standard error of 8%, and the balance with it.
        log_every: Steps between two rows of the history.

    Raises:
        InputError: For an unknown objective or normaliser, a beta that is not above 0, or too few samples.
    """
    _check(setting, n_samples)
    generator = torch.Generator().manual_seed(seed)
    preferred, dispreferred = preference_samples(n_samples, generator)
    model, start = policy(), reference_mixture()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    history = [(0, *model.masses())]
    for step in range(1, n_steps + 1):
        rows = torch.randint(n_samples, (2, N_BATCH), generator=generator)
        loss = _loss(setting, model, start, preferred[rows[0]], dispreferred[rows[1]])
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - (step - 1) / n_steps)
        optimizer.step()
        if step % log_every == 0 or step == n_steps:
            history.append((step, *model.masses()))
    final = Mixture(*(parameter.detach() for parameter in model.parameters()))
    return Outcome(setting, seed, final, history)


def run_experiment(
    n_seeds: int = 5, *, n_steps: int = 3000, on_run: Callable[[int, int], None] | None = None
) -> list[Outcome]:
    """The main settings on every seed, the sweep on the first.

    Args:
        n_seeds: At least 1.
        n_steps: Optimiser steps of each.
        on_run: Told (done, total).

    Raises:
        InputError: When there is no seed.
    """
    if n_seeds < 1:
        raise InputError(f"the experiment needs at least 1 seed, got {n_seeds}")
    plan = [(setting, seed) for setting in MAIN for seed in range(n_seeds)] + [(setting, 0) for setting in SWEEP]
    outcomes = []
    for done, (setting, seed) in enumerate(plan, start=1):
        outcomes.append(train_objective(setting, seed, n_steps=n_steps))
        if on_run is not None:
            on_run(done, len(plan))
    return outcomes


def summarise_experiment(outcomes: Iterable[Outcome]) -> pd.DataFrame:
    """One row an outcome: setting, seed, final masses, and whether G1/G3 is balanced and G2 kept within 10%."""
    before = reference_mixture().masses()
    rows = []
    for outcome in outcomes:
        _, g1, g2, g3 = outcome.history[-1]
        rows.append(
            {
                "setting": outcome.setting.name,
                "seed": outcome.seed,
                "G1": g1,
                "G2": g2,
                "G3": g3,
                "balanced": abs(g1 - g3) <= TOLERANCE * (g1 + g3) / 2,
                "G2_kept": abs(g2 - before[1]) <= TOLERANCE * before[1],
            }
        )
    return pd.DataFrame(rows)


def _loss(setting: ExperimentSetting, model: Mixture, start: Mixture, won: Tensor, lost: Tensor) -> Tensor:
    if setting.objective == "sft":
        return -model.log_density(won).mean()
    x = torch.cat([won, lost])
    preferred = torch.arange(len(x)) < len(won)
    # Eq. 11's g = reference error - policy error is here the exact log-ratio
    losses = popalign_loss(
        -model.log_density(x),
        -start.log_density(x),
        preferred,
        beta=setting.beta,
        alpha=setting.alpha,
        normaliser=0.0 if setting.normaliser == "zero" else None,
    )
    return losses.mean()


def _check(setting: ExperimentSetting, n_samples: int) -> None:
    if setting.objective not in ("sft", "popalign") or setting.normaliser not in ("batch", "zero"):
        raise InputError(
            f"objective {setting.objective!r} with normaliser {setting.normaliser!r} is unknown here; "
            "give sft or popalign, batch or zero"
        )
    if setting.beta <= 0:
        raise InputError(f"beta must be above 0, got {setting.beta:g}")
    if n_samples < 2:
        raise InputError(f"the preference data needs at least 2 samples per side, got {n_samples}")
