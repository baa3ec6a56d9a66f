"""From a batch to its loss, over micro-batches and processes: the configured objective, and what retention adds.

Every objective may couple all samples of the *global* batch: Z is a mean over it, a set's margin a sum, KTO's
reference point a mean. So each process first learns everybody's errors, then puts its own, with their gradient, in
their place and computes the whole loss. What flows back is the exact gradient of the global loss by its own samples;
summed over processes and micro-batches it is the gradient of one big batch.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from popalign_core.config import TrainingConfig
from popalign_core.models.denoisers import Conditions, Family, family_of, predict
from popalign_core.training.batch import Batch
from popalign_core.training.losses import (
    anchor_normaliser,
    batch_normaliser,
    binned_normaliser,
    cgm_relax_loss,
    diffusion_dpo_loss,
    diffusion_kto_loss,
    mean_squared_error,
    popalign_loss,
    preserving_scale,
    retention_loss,
    scale_gradient,
    set_dpo_loss,
)
from popalign_core.training.policy_losses import group_preference_loss, population_policy_loss, ratio_matching_loss
from popalign_core.training.reference import Opponent, reference_weights


@dataclass
class Running:
    """What a step needs of the steps before it, besides weights; part of a checkpoint.

    Attributes:
        normaliser: The last Z.
        n_steps: Steps that Z has seen.
        beta: What `beta = "auto"` has found.
        error_ratio: Moving mean of the preferred error over the reference's.
        learning_rate_scale: Halved by every rollback.
        n_rollbacks: How many there were.
        clip_score: The base's, by the probe before the first step.
        stopped: Why the probe ended the training; empty while it goes on.
    """

    normaliser: float = 0.0
    n_steps: int = 0
    beta: float = 0.0
    error_ratio: float = 1.0
    learning_rate_scale: float = 1.0
    n_rollbacks: int = 0
    clip_score: float = 0.0
    stopped: str = ""


Errors = dict[str, Tensor]
"""What the models make of n pairs: name -> [n, k] float32, a row a pair; k = 0 where the objective has no use for it.

`policy`, `reference`: mean squared errors, a column a side. `retained_policy`, `retained_reference`: on the retained
images. `departure`: their squared distance there. `won_square`, `together`: squared norm of the preferred error and its
product with the dispreferred one, for `preserve_preferred`. One's own `policy` and `departure` carry gradient.
"""


def pack(errors: Errors) -> Tensor:
    """[n, F] without gradient: what processes exchange, in one message."""
    return torch.cat(list(errors.values()), dim=1).detach()


def unpack(packed: Tensor, like: Errors) -> Errors:
    """The columns by name again, as many as `like` has."""
    widths = [columns.shape[1] for columns in like.values()]
    return dict(zip(like, packed.split(widths, dim=1), strict=True))


def put_own(everyone: Errors, own: Errors, first: int) -> Errors:
    """Everyone's errors with one's own, gradient and all, from row `first` on."""
    last = first + len(own["policy"])
    return {name: torch.cat([rows[:first], own[name], rows[last:]]) for name, rows in everyone.items()}


def needs_reference(config: TrainingConfig) -> bool:
    """SFT and policy gradients compare with nothing, unless they must retain."""
    return config.objective not in ("sft", "population-policy") or config.retention > 0


def is_coupled(config: TrainingConfig) -> bool:
    """Whether the loss of a sample depends on other samples than its own partner."""
    if config.preserve_preferred or config.objective in ("set-dpo", "diffusion-kto", "cgm-relax", "dgpo"):
        return True
    return config.objective == "popalign" and config.normaliser != "zero"


def compute_loss(
    model: Any,
    frozen: nn.Module | None,
    batch: Batch,
    config: TrainingConfig,
    running: Running,
    target: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """`measure` and `objective_loss` of a batch that one process takes in one forward."""
    errors = measure(model, model, frozen, family_of(model), batch, config)
    loss, terms = objective_loss(errors, batch, target, config, running)
    return loss, to_floats(terms)


def to_floats(terms: dict[str, Tensor]) -> dict[str, float]:
    """The logged values, in one transfer from the device a step.

    `g_spread`, the standard deviation of g over both sides, takes the place of its mean square: beta times it is of
    order one as long as the loss still asks for something.
    """
    values = dict(zip(terms, torch.stack(list(terms.values())).tolist(), strict=True))
    if "g_square" in values:
        mean = (values["g_preferred"] + values["g_dispreferred"]) / 2
        values["g_spread"] = math.sqrt(max(0.0, values.pop("g_square") - mean**2))
    return values


def forward(model: Any, family: Family, batch: Batch, rows: slice = slice(None)) -> Tensor:
    """What a model predicts for a batch, or for some of its rows: [S, C, h, w]."""
    known = batch.conditions
    conditions = Conditions(
        known.prompt_embeds[rows], known.pooled_prompt_embeds[rows], known.time_ids[rows], known.guidance[rows]
    )
    return predict(model, family, batch.noisy_latents[rows], batch.timesteps[rows], conditions)


def measure(
    policy: Any,
    reference: Any,
    frozen: nn.Module | None,
    family: Family,
    batch: Batch,
    config: TrainingConfig,
    opponent: Opponent | None = None,
) -> Errors:
    """Both models on a batch.

    Args:
        policy: What is called for the policy, a wrapper for several processes perhaps.
        reference: The bare model, which carries the adapter.
        frozen: The reference's frozen copy, None with an adapter.
        family: Of the model.
        batch: On the model's device.
        config: Objective.
        opponent: Gives `reference` the weights that compared samples are measured against in place of the base's.
    """
    # the reference goes first: switching the adapter off and on again must not touch the policy's graph
    compared, retained = _reference_preds(reference, frozen, family, batch, config, opponent)
    policy_pred = forward(policy, family, batch)
    n, m = batch.n_pairs, len(batch.preferred)

    def columns(values: Tensor) -> Tensor:
        return values.view(-1, n).T

    policy_mse = mean_squared_error(policy_pred, batch.target)
    none = policy_mse.new_zeros((n, 0))
    errors = dict.fromkeys(
        ("reference", "retained_policy", "retained_reference", "departure", "won_square", "together"), none
    )
    errors = {"policy": columns(policy_mse[:m])} | errors
    if compared is not None:
        errors["reference"] = columns(mean_squared_error(compared, batch.target[:m]))
    if retained is not None:
        errors["retained_policy"] = columns(policy_mse[m:].detach())
        errors["retained_reference"] = columns(mean_squared_error(retained, batch.target[m:]))
        errors["departure"] = columns(retention_loss(policy_pred[m:], retained))
    if config.preserve_preferred:
        won, lost = (policy_pred[:m].detach().float() - batch.target[:m]).flatten(1).chunk(2)
        errors["won_square"] = won.square().sum(1, keepdim=True)
        errors["together"] = (won * lost).sum(1, keepdim=True)
    return errors


def _reference_preds(
    reference: Any,
    frozen: nn.Module | None,
    family: Family,
    batch: Batch,
    config: TrainingConfig,
    opponent: Opponent | None,
) -> tuple[Tensor | None, Tensor | None]:
    """What the compared samples are measured against, [M, ...], and the base's of the retained; None where unused."""
    m, retains = len(batch.preferred), len(batch.generic) > 0
    if not needs_reference(config):
        return None, None
    if opponent is None and config.objective != "population-policy":
        with reference_weights(reference, frozen) as bare:
            both = forward(bare, family, batch)
        return both[:m], both[m:] if retains else None
    compared = retained = None
    if opponent is not None:
        with torch.no_grad(), opponent():
            compared = forward(reference, family, batch, slice(m))
    if retains:
        with reference_weights(reference, frozen) as bare:
            retained = forward(bare, family, batch, slice(m, None))
    return compared, retained


def objective_loss(
    errors: Errors, batch: Batch, target: Tensor | None, config: TrainingConfig, running: Running
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean loss of the global batch with what retention adds, and its logged terms; brings `running` up to date.

    Args:
        errors: Of the global batch.
        batch: The global batch; its latents are not read.
        target: [K] distribution to calibrate to, for `cgm-relax`.
        config: Objective.
        running: Beta when it is automatic, and the Z of the steps before.
    """
    if config.objective == "sft":
        loss = errors["policy"].mean()
        terms = {"loss": loss.detach(), "policy_mse_preferred": loss.detach()}
    elif config.has_advantages:
        losses, terms = _advantage_losses(errors, batch, config)
        loss = losses.mean()
        terms = {"loss": loss.detach()} | terms
    else:
        losses, terms = _preference_losses(errors, batch, target, config, running)
        loss = losses.mean()
        terms = {"loss": loss.detach()} | terms
    if config.retention > 0:
        departure = errors["departure"].mean()
        loss = loss + config.retention * departure
        terms |= {"loss": loss.detach(), "retention": departure.detach()}
    return loss, terms


def _preference_losses(
    errors: Errors, batch: Batch, target: Tensor | None, config: TrainingConfig, running: Running
) -> tuple[Tensor, dict[str, Tensor]]:
    policy_mse, reference_mse = errors["policy"].T.flatten(), errors["reference"].T.flatten()
    terms = _terms(policy_mse.detach(), reference_mse)
    if config.preserve_preferred:
        scale = preserving_scale(errors["won_square"].sum(), errors["together"].sum())
        terms["preserving_scale"] = scale
        kept, scaled = policy_mse.chunk(2)
        policy_mse = torch.cat([kept, scale_gradient(scaled, scale)])
    beta, preferred = running.beta if config.beta == "auto" else config.beta, batch.preferred
    if config.objective == "ratio-matching":
        losses = ratio_matching_loss(policy_mse, reference_mse, batch.wanted, beta=beta)
    elif config.objective == "diffusion-dpo":
        losses = diffusion_dpo_loss(policy_mse, reference_mse, beta=beta)
    elif config.objective == "set-dpo":
        losses = set_dpo_loss(policy_mse, reference_mse, preferred, batch.set_index, beta=beta)
    elif config.objective == "diffusion-kto":
        losses = diffusion_kto_loss(policy_mse, reference_mse, preferred, beta=beta)
    elif config.objective == "cgm-relax":
        assert target is not None
        log_ratio = beta * (reference_mse - policy_mse)
        losses = cgm_relax_loss(
            log_ratio, batch.classes, batch.priors, batch.set_index, target, kl_weight=config.kl_weight
        )
    else:
        z = _normaliser(errors, batch, config, running)
        losses = popalign_loss(policy_mse, reference_mse, preferred, beta=beta, normaliser=z)
        terms["normaliser"] = z.mean()
    return losses, terms


def _advantage_losses(errors: Errors, batch: Batch, config: TrainingConfig) -> tuple[Tensor, dict[str, Tensor]]:
    policy_mse, beta = errors["policy"].T.flatten(), float(config.beta)
    terms = {"policy_mse": policy_mse.detach().mean()}
    if config.objective == "population-policy":
        return population_policy_loss(policy_mse, batch.wanted, beta=beta), terms
    reference_mse = errors["reference"].T.flatten()
    losses = group_preference_loss(policy_mse, reference_mse, batch.wanted, batch.set_index, beta=beta)
    return losses, terms | {"reference_mse": reference_mse.mean()}


def _normaliser(errors: Errors, batch: Batch, config: TrainingConfig, running: Running) -> Tensor:
    """Z of Eq. 11 as configured: a scalar, or with bins one a sample, [M]."""
    policy_mse, reference_mse = errors["policy"].detach().T.flatten(), errors["reference"].T.flatten()
    if config.normaliser == "zero":
        return policy_mse.new_zeros(())
    if config.normaliser_bins > 1:
        return binned_normaliser(policy_mse, reference_mse, batch.preferred, batch.bins, alpha=config.alpha)
    if config.normaliser == "anchor":
        anchors = [errors[name].flatten()[batch.generic] for name in ("retained_policy", "retained_reference")]
        if not len(anchors[0]):
            # a small batch may hold no anchor: the last Z stands
            return policy_mse.new_tensor(running.normaliser)
        found = anchor_normaliser(*anchors)
    else:
        found = batch_normaliser(policy_mse, reference_mse, batch.preferred, alpha=config.alpha)
    if config.normaliser == "ema" and running.n_steps > 0:
        found = config.normaliser_decay * running.normaliser + (1 - config.normaliser_decay) * found
    running.normaliser, running.n_steps = float(found), running.n_steps + 1
    return found


def _terms(policy_mse: Tensor, reference_mse: Tensor) -> dict[str, Tensor]:
    won, lost = (reference_mse - policy_mse).chunk(2)
    terms = {
        "implicit_accuracy": 0.5 + 0.5 * torch.sign(won - lost).mean(),
        "g_preferred": won.mean(),
        "g_dispreferred": lost.mean(),
        # a mean, unlike the deviation, can be averaged over processes
        "g_square": torch.cat([won, lost]).square().mean(),
    }
    sides = zip(("preferred", "dispreferred"), policy_mse.chunk(2), reference_mse.chunk(2), strict=True)
    for side, policy, reference in sides:
        terms |= {f"policy_mse_{side}": policy.mean(), f"reference_mse_{side}": reference.mean()}
    return terms
