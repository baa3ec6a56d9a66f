"""The objectives, one function an equation (numbers: PopAlign paper). Every loss is one value a sample or pair.

`g = reference_mse - policy_mse` stands for the log-ratio of policy and reference: positive where the policy predicts
better. The squared errors are means over C, H, W. Reference errors and normaliser are detached: gradients reach only
the policy.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from popalign_core.errors import InputError


def mean_squared_error(model_pred: Tensor, target: Tensor) -> Tensor:
    """Squared error a sample, averaged over C, H, W in float32: [B, C, h, w] twice to [B]."""
    return (model_pred.float() - target.float()).square().mean(dim=(1, 2, 3))


def retention_loss(policy_pred: Tensor, reference_pred: Tensor) -> Tensor:
    """How far the policy has left the reference, a sample: [B, C, h, w] twice to [B] float32.

    Population alignment asks for another mixture under neutral captions only. Nothing in Eq. 11 holds the rest in
    place: what identity words mean, and objects, drift along with the mixture. Under captions that are to stay, this
    is (up to the timestep's weight) the divergence of what the two models sample.
    """
    return mean_squared_error(policy_pred, reference_pred.detach())


def batch_normaliser(policy_mse: Tensor, reference_mse: Tensor, preferred: Tensor, *, alpha: float = 0.5) -> Tensor:
    """Z of Eq. 11: `alpha * mean(g | preferred) + (1 - alpha) * mean(g | dispreferred)`, detached.

    Over the *global* batch: hand in every process's errors.

    Args:
        policy_mse: [B] float32.
        reference_mse: [B] float32.
        preferred: [B] bool.
        alpha: Weight of the preferred side; 0.5 in the paper.

    Returns:
        A scalar without gradient.

    Raises:
        InputError: On wrong shapes, or when a side is empty.
    """
    _check(policy_mse, reference_mse, preferred)
    n_preferred = int(preferred.sum())
    if n_preferred in (0, len(preferred)):
        side = "preferred" if n_preferred == 0 else "dispreferred"
        raise InputError(f"batch of {len(preferred)} has no {side} sample; the normaliser needs both sides")
    g = (reference_mse - policy_mse).detach()
    return alpha * g[preferred].mean() + (1 - alpha) * g[~preferred].mean()


def binned_normaliser(
    policy_mse: Tensor, reference_mse: Tensor, preferred: Tensor, bins: Tensor, *, alpha: float = 0.5
) -> Tensor:
    """`batch_normaliser` within each bin (of timesteps, whose errors differ by an order of magnitude).

    Args:
        policy_mse: [B] float32.
        reference_mse: [B] float32.
        preferred: [B] bool.
        bins: [B] int64, any numbers; the two of a pair share timestep and so bin.
        alpha: Weight of the preferred side.

    Returns:
        [B] without gradient: each sample's Z.

    Raises:
        InputError: On wrong shapes, or when a bin lacks a side.
    """
    _check(policy_mse, reference_mse, preferred)
    z = torch.empty_like(policy_mse)
    for number in torch.unique(bins).tolist():
        rows = bins == number
        z[rows] = batch_normaliser(policy_mse[rows], reference_mse[rows], preferred[rows], alpha=alpha)
    return z


def anchor_normaliser(policy_mse: Tensor, reference_mse: Tensor) -> Tensor:
    """Z as the mean `g` of samples that no preference speaks of, where the log-ratio should stay 0.

    On exact log-ratios Z = 0 makes Eq. 11 logistic density-ratio estimation, which keeps what is not compared; on a
    diffusion model `g` is a bound with an offset of its own, and samples of unrelated prompts show that offset.

    Args:
        policy_mse: [A] float32, A > 0.
        reference_mse: [A] float32.

    Returns:
        A scalar without gradient.

    Raises:
        InputError: On wrong shapes or no sample.
    """
    _check(policy_mse, reference_mse, torch.ones_like(policy_mse, dtype=torch.bool))
    return (reference_mse - policy_mse).detach().mean()


def popalign_loss(
    policy_mse: Tensor,
    reference_mse: Tensor,
    preferred: Tensor,
    *,
    beta: float,
    alpha: float = 0.5,
    normaliser: Tensor | float | None = None,
) -> Tensor:
    """PopAlign's loss a sample, Eq. 11: `-log sigma(I * beta * (g - Z))`, I = +1 preferred, -1 dispreferred.

    Args:
        policy_mse: [B] float32, policy's squared error, mean over C, H, W.
        reference_mse: [B] float32, the reference's on the same noise and timestep.
        preferred: [B] bool.
        beta: Divergence penalty, on the mean squared error.
        alpha: Weight of the preferred side in Z.
        normaliser: Z itself, one or one a sample (0 for none, an EMA, ...); None takes it from this batch.

    Returns:
        [B] float32; log 2 where policy and reference agree and Z = 0.

    Raises:
        InputError: On wrong shapes, or, when Z comes from the batch, when a side is empty.
    """
    _check(policy_mse, reference_mse, preferred)
    if normaliser is None:
        normaliser = batch_normaliser(policy_mse, reference_mse, preferred, alpha=alpha)
    z = normaliser.detach() if isinstance(normaliser, Tensor) else normaliser
    g = reference_mse.detach() - policy_mse
    sign = torch.where(preferred, 1.0, -1.0)
    return -F.logsigmoid(sign * beta * (g - z))


def diffusion_dpo_loss(policy_mse: Tensor, reference_mse: Tensor, *, beta: float) -> Tensor:
    """Diffusion-DPO's loss a pair (Wallace et al. 2023, arXiv:2311.12908, Eq. 14; here Eq. 6).

    `-log sigma(-beta/2 * [(m_w - r_w) - (m_l - r_l)])`; the two of a pair share noise and timestep.

    Args:
        policy_mse: [2B] float32, B preferred, then their B dispreferred.
        reference_mse: [2B] float32.
        beta: Divergence penalty, on the mean squared error.

    Returns:
        [B] float32.

    Raises:
        InputError: On wrong shapes or an odd number of samples.
    """
    _check(policy_mse, reference_mse, torch.ones_like(policy_mse, dtype=torch.bool))
    if len(policy_mse) % 2:
        raise InputError(
            f"{len(policy_mse)} samples are not pairs; give the preferred half, then the dispreferred half"
        )
    won, lost = (policy_mse - reference_mse.detach()).chunk(2)
    return -F.logsigmoid(-beta / 2 * (won - lost))


def set_dpo_loss(
    policy_mse: Tensor, reference_mse: Tensor, preferred: Tensor, set_index: Tensor, *, beta: float
) -> Tensor:
    """Set-level diffusion DPO, Eq. 10: `-log sigma(beta * (sum over X_w of g - sum over X_l of g))`.

    Args:
        policy_mse: [B] float32.
        reference_mse: [B] float32.
        preferred: [B] bool.
        set_index: [B] int64, the pair of sets a sample belongs to; any numbers.
        beta: Divergence penalty, on the mean squared error.

    Returns:
        [n_pairs] float32, in the order of ascending set index.

    Raises:
        InputError: On wrong shapes, or when a pair of sets lacks a side.
    """
    _check(policy_mse, reference_mse, preferred)
    if set_index.shape != policy_mse.shape or set_index.is_floating_point():
        raise InputError(
            f"set_index must be {len(policy_mse)} integers, got {set_index.dtype} {tuple(set_index.shape)}"
        )
    names, pair = torch.unique(set_index, return_inverse=True)
    for side, mask in (("preferred", preferred), ("dispreferred", ~preferred)):
        lacking = names[torch.bincount(pair[mask], minlength=len(names)) == 0].tolist()
        if lacking:
            raise InputError(f"set pairs {lacking[:5]} have no {side} sample; each pair of sets needs both sides")
    g = reference_mse.detach() - policy_mse
    margin = g.new_zeros(len(names)).index_add(0, pair, torch.where(preferred, g, -g))
    return -F.logsigmoid(beta * margin)


def diffusion_kto_loss(policy_mse: Tensor, reference_mse: Tensor, preferred: Tensor, *, beta: float) -> Tensor:
    """Diffusion-KTO's loss a sample (Li et al. 2024, arXiv:2404.04465), with the Kahneman-Tversky utility.

    `1 - sigma(I * (beta * g - Q))`, with Q = max(0, beta * mean g) of the batch, detached, as the reference point
    that stands for the divergence from the reference model.

    Args:
        policy_mse: [B] float32.
        reference_mse: [B] float32.
        preferred: [B] bool; any mixture of sides.
        beta: Divergence penalty, on the mean squared error.

    Returns:
        [B] float32 in (0, 1); 1/2 where policy and reference agree.

    Raises:
        InputError: On wrong shapes.
    """
    _check(policy_mse, reference_mse, preferred)
    g = reference_mse.detach() - policy_mse
    point = (beta * g.detach().mean()).clamp(min=0)
    sign = torch.where(preferred, 1.0, -1.0)
    return 1 - torch.sigmoid(sign * (beta * g - point))


def cgm_relax_loss(
    log_ratio: Tensor, classes: Tensor, priors: Tensor, set_index: Tensor, target: Tensor, *, kl_weight: float
) -> Tensor:
    """Calibration to a target distribution, one value a prompt (CGM-relax, Smith et al. 2025, arXiv:2510.10020).

    `||p - target||^2 + kl_weight * KL(policy || reference)`, p the policy's share of each class. The paper takes both
    from samples of the policy. Here they come from stored samples of the reference, stratified by class: with
    `exp(log_ratio)` the density ratio of policy and reference, a sample of class k has the weight
    `prior_k / n_k * exp(log_ratio)`, normalised over the prompt.

    Args:
        log_ratio: [B] float32, log of policy over reference; on a diffusion model its bound, `beta * g`.
        classes: [B] int64 in [0, K).
        priors: [B] float32, the reference's share, under this prompt, of the sample's own class.
        set_index: [B] int64, which samples are of one prompt; any numbers.
        target: [K] float32, sums to 1.
        kl_weight: lambda of the paper, >= 0.

    Returns:
        [n_prompts] float32, in the order of ascending set index.

    Raises:
        InputError: On different lengths, or a class outside the target.
    """
    lengths = [len(log_ratio), len(classes), len(priors), len(set_index)]
    if len(set(lengths)) != 1 or not lengths[0]:
        raise InputError(f"log_ratio, classes, priors and set_index must share one length > 0, got {lengths}")
    if int(classes.min()) < 0 or int(classes.max()) >= len(target):
        raise InputError(f"classes reach from {int(classes.min())} to {int(classes.max())}, target has {len(target)}")
    names, prompt = torch.unique(set_index, return_inverse=True)
    cell = prompt * len(target) + classes
    n_cells = len(names) * len(target)
    in_cell = torch.bincount(cell, minlength=n_cells)[cell]
    log_base = torch.log(priors / in_cell)
    # normalise weights over each prompt in log space
    log_weight = log_base + log_ratio
    log_total = torch.stack([torch.logsumexp(log_weight[prompt == i], 0) for i in range(len(names))])
    log_known = torch.stack([torch.logsumexp(log_base[prompt == i], 0) for i in range(len(names))])
    weight = torch.exp(log_weight - log_total[prompt])
    shares = weight.new_zeros(n_cells).index_add(0, cell, weight).view(len(names), len(target))
    log_density = log_ratio - (log_total - log_known)[prompt]
    divergence = weight.new_zeros(len(names)).index_add(0, prompt, weight * log_density)
    return (shares - target).square().sum(1) + kl_weight * divergence


def preserving_scale(won_square: Tensor, together: Tensor, *, slack: float = 0.0) -> Tensor:
    """Diffusion-SDPO's factor for the dispreferred gradient (arXiv:2511.03317, its closed-form safe scale).

    To first order, and with the network's Jacobians taken as equal, a step along `-(e_w - s e_l)` does not raise the
    preferred error as long as `s <= (1 - slack) ||e_w||^2 / <e_w, e_l>`. Where the two errors do not point the same way
    any factor is safe, and the full gradient stays.

    Args:
        won_square: `||e_w||^2` of the preferred errors, prediction minus target, summed over all processes.
        together: `<e_w, e_l>` with the dispreferred errors at the same noise and timesteps, summed likewise.
        slack: Share of the preferred side's own progress to keep, in [0, 1].

    Returns:
        A scalar in [0, 1].
    """
    scale = (1 - slack) * won_square / together.clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(together > 0, scale, torch.ones_like(scale)).clamp(max=1)


def scale_gradient(values: Tensor, scale: Tensor | float) -> Tensor:
    """The same values; their gradient times `scale`."""
    return values.detach() + scale * (values - values.detach())


def _check(policy_mse: Tensor, reference_mse: Tensor, preferred: Tensor) -> None:
    shapes = [tuple(tensor.shape) for tensor in (policy_mse, reference_mse, preferred)]
    if policy_mse.ndim != 1 or len(policy_mse) == 0 or len(set(shapes)) != 1:
        raise InputError(f"policy_mse, reference_mse and preferred must share one shape [B], B > 0, got {shapes}")
    if preferred.dtype != torch.bool:
        raise InputError(f"preferred must be bool, got {preferred.dtype}; write for example `labels == 1`")
