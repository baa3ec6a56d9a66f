"""Losses on the policy's own images: by hand, by finite differences, and where their optimum is."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from popalign_core.errors import InputError
from popalign_core.training.policy_losses import group_preference_loss, population_policy_loss, ratio_matching_loss

POLICY = torch.tensor([0.30, 0.10, 0.20, 0.40])
REFERENCE = torch.tensor([0.25, 0.15, 0.20, 0.30])
ADVANTAGES = torch.tensor([0.5, -0.5, 1.0, -1.0])
GROUP = torch.tensor([7, 7, 3, 3])


def test_the_policy_loss_by_hand() -> None:
    """40 * A * m."""
    found = population_policy_loss(POLICY, ADVANTAGES, beta=40)
    assert found.tolist() == pytest.approx([6.0, -2.0, 8.0, -16.0])


def test_the_group_loss_by_hand() -> None:
    """Group 7: (.5 * .05 + -.5 * -.05) / 2 = .025; group 3: (1 * 0 + -1 * .1) / 2 = -.05; beta 10."""
    found = group_preference_loss(POLICY, REFERENCE, ADVANTAGES, GROUP, beta=10)
    one, other = 1 / (1 + math.exp(-0.25)), 1 / (1 + math.exp(0.5))
    expected = [10 * one * 0.15, -10 * one * 0.05, 10 * other * 0.2, -10 * other * 0.4]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_group_loss_has_the_gradient_of_a_logistic_loss_of_groups() -> None:
    policy = POLICY.clone().requires_grad_()
    group_preference_loss(policy, REFERENCE, ADVANTAGES, GROUP, beta=10).mean().backward()
    other = POLICY.clone().requires_grad_()
    margins = 10 / 2 * (ADVANTAGES * (other - REFERENCE)).view(2, 2).sum(1)
    (-torch.nn.functional.logsigmoid(-margins)).mean().backward()
    assert policy.grad is not None
    assert other.grad is not None
    assert torch.allclose(policy.grad, other.grad, rtol=1e-5)


def test_the_ratio_loss_by_hand() -> None:
    """g is (-.05, .05) and (0, -.1): pairs (0, 2) and (1, 3). beta 10: (-.5 - 0 - (1 - 0))^2, (.5 + 1 - (0 - 1))^2."""
    ratios = torch.tensor([1.0, 0.0, 0.0, 1.0])
    assert ratio_matching_loss(POLICY, REFERENCE, ratios, beta=10).tolist() == pytest.approx([2.25, 6.25], rel=1e-4)


@pytest.mark.parametrize(
    "loss",
    [
        lambda m: population_policy_loss(m, ADVANTAGES.double(), beta=40).mean(),
        lambda m: ratio_matching_loss(m, REFERENCE.double(), ADVANTAGES.double(), beta=10).mean(),
    ],
    ids=["policy", "ratio"],
)
def test_finite_differences(loss: Callable[[Tensor], Tensor]) -> None:
    """The group loss has a detached weight: its gradient is checked against the loss that it is the gradient of."""
    assert torch.autograd.gradcheck(loss, (POLICY.double().requires_grad_(),))


def test_gradients_reach_the_policy_alone() -> None:
    policy, reference, advantages = (each.clone().requires_grad_() for each in (POLICY, REFERENCE, ADVANTAGES))
    total = population_policy_loss(policy, advantages, beta=1).sum()
    total = total + group_preference_loss(policy, reference, advantages, GROUP, beta=1).sum()
    (total + ratio_matching_loss(policy, reference, advantages, beta=1).sum()).backward()
    assert policy.grad is not None
    assert reference.grad is None
    assert advantages.grad is None


def test_samples_and_groups_may_come_in_any_order() -> None:
    order = torch.tensor([2, 0, 3, 1])
    found = group_preference_loss(POLICY, REFERENCE, ADVANTAGES, GROUP, beta=10)
    again = group_preference_loss(POLICY[order], REFERENCE[order], ADVANTAGES[order], GROUP[order], beta=10)
    assert torch.allclose(again, found[order])


def test_the_optimum_of_ratio_matching_is_the_target_and_it_stays() -> None:
    """On exact log-densities of three classes: p_ref (.7, .2, .1), wanted (.2, .3, .5). More steps change nothing."""
    base, target = torch.tensor([0.7, 0.2, 0.1]).double(), torch.tensor([0.2, 0.3, 0.5]).double()
    logits = base.log().clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    pairs = torch.tensor([[0, 1], [1, 2], [2, 0]]).T.flatten()
    seen = []
    for _ in range(2):
        for _ in range(500):
            # an error m = -log p stands for a density: g = log p - log p_ref
            policy_mse = -logits.log_softmax(0)
            loss = ratio_matching_loss(
                policy_mse[pairs], -base.log()[pairs], (target.log() - base.log())[pairs], beta=1.0
            ).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seen.append(logits.softmax(0).detach())
    assert torch.allclose(seen[0], target, atol=1e-3)
    assert torch.allclose(seen[1], target, atol=1e-4)


def test_shapes_are_checked() -> None:
    with pytest.raises(InputError, match="must share one shape"):
        population_policy_loss(POLICY, ADVANTAGES[:3], beta=1)
    with pytest.raises(InputError, match="3 samples are not pairs"):
        ratio_matching_loss(POLICY[:3], REFERENCE[:3], ADVANTAGES[:3], beta=1)
