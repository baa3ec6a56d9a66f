"""Losses of training on the policy's own images, and of matching known log-ratios. One value a sample or pair.

`g = reference_mse - policy_mse`, and `beta * g` stands for the log-ratio of policy and reference, as in `losses`; so
`beta * policy_mse` is, but for what does not depend on the policy, minus the log-probability of a sample.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from popalign_core.errors import InputError


def population_policy_loss(policy_mse: Tensor, advantages: Tensor, *, beta: float) -> Tensor:
    """Policy gradient on the diffusion bound: `beta * A * m`, a sample.

    The gradient of `-A log p` with `log p` replaced by its bound `-beta * m`: no trajectory is needed, and any sampler
    will do. The images of a prompt share noise and timestep, so that what a step finds is the difference between them.

    Args:
        policy_mse: [B] float32, squared error, mean over C, H, W.
        advantages: [B] float32, no gradient.
        beta: Scale of the log-probability.

    Returns:
        [B] float32.

    Raises:
        InputError: On wrong shapes.
    """
    _check_lengths(policy_mse=policy_mse, advantages=advantages)
    return beta * advantages.detach() * policy_mse


def group_preference_loss(
    policy_mse: Tensor, reference_mse: Tensor, advantages: Tensor, group: Tensor, *, beta: float
) -> Tensor:
    """Direct group preference optimisation (DGPO, arXiv:2510.08425): `beta * s * A * m`, a sample.

    `s = sigma((beta / K) * sum over the group of A (m - r))`, detached, is near 1 while the group's better images are
    not yet likelier than under the reference, and falls as they get so. The mean over samples has the gradient of
    `-log sigma(-(beta / K) sum A (m - r))`, a mean over groups of K samples each. With these advantages, which are not
    divided by their standard deviation, the loss vanishes at the target by itself.

    Args:
        policy_mse: [B] float32, squared error, mean over C, H, W.
        reference_mse: [B] float32, of the base model, on the same noise and timesteps.
        advantages: [B] float32.
        group: [B] int64, the prompt of each sample; any numbers.
        beta: Divergence penalty.

    Returns:
        [B] float32; gradients reach `policy_mse` alone.

    Raises:
        InputError: On wrong shapes.
    """
    _check_lengths(policy_mse=policy_mse, reference_mse=reference_mse, advantages=advantages, group=group)
    names, number = torch.unique(group, return_inverse=True)
    advantages = advantages.detach()
    departed = advantages * (policy_mse - reference_mse).detach()
    size = torch.bincount(number, minlength=len(names))
    margin = departed.new_zeros(len(names)).index_add(0, number, departed) / size
    weight = torch.sigmoid(beta * margin)[number]
    return beta * weight * advantages * policy_mse


def ratio_matching_loss(policy_mse: Tensor, reference_mse: Tensor, log_ratios: Tensor, *, beta: float) -> Tensor:
    """Matching known log-ratios, a pair: `(beta (g_w - g_l) - (R_w - R_l))^2`.

    Least at the model whose log-ratio to the reference is R up to a constant a prompt, for whatever pairs: unlike
    preferences, which ask for a larger difference for ever, it has its optimum at the target. With R of rewards this is
    the regression of REBEL (arXiv:2404.16767); here R is known (`population.target_log_ratios`).

    Args:
        policy_mse: [2B] float32, B samples, then B others of the same prompts, noise and timesteps.
        reference_mse: [2B] float32.
        log_ratios: [2B] float32, R.
        beta: Scale of the log-ratio.

    Returns:
        [B] float32.

    Raises:
        InputError: On wrong shapes or an odd number of samples.
    """
    _check_lengths(policy_mse=policy_mse, reference_mse=reference_mse, log_ratios=log_ratios)
    if len(policy_mse) % 2:
        raise InputError(f"{len(policy_mse)} samples are not pairs; give one half, then their partners")
    g = reference_mse.detach() - policy_mse
    one, other = (beta * g - log_ratios.detach()).chunk(2)
    return F.mse_loss(one, other, reduction="none")


def _check_lengths(**tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) != 1 or any(len(shape) != 1 or not shape[0] for shape in shapes.values()):
        raise InputError(f"all must share one shape [B], B > 0, got {shapes}")
