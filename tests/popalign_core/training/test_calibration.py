"""CGM-relax on stored samples of the reference: hand-worked, its optimum, its gradient."""

import math

import pytest
import torch

from popalign_core.errors import InputError
from popalign_core.training.losses import cgm_relax_loss

UNIFORM = torch.tensor([0.5, 0.5])


def loss(log_ratio: list[float], classes: list[int], priors: list[float], **more: object) -> torch.Tensor:
    options = {"set_index": torch.zeros(len(classes), dtype=torch.int64), "target": UNIFORM, "kl_weight": 0.0} | more
    return cgm_relax_loss(
        torch.tensor(log_ratio),
        torch.tensor(classes),
        torch.tensor(priors),
        **options,  # type: ignore[arg-type]
    )


def test_hand_worked() -> None:
    # the reference draws class 0 in .8; one sample of it, two of class 1 which share the weight .2
    still = loss([0.0, 0.0, 0.0], [0, 1, 1], [0.8, 0.2, 0.2])
    assert still.tolist() == pytest.approx([0.3**2 + 0.3**2])
    # ratio 1 on class 0, 4 on both of class 1: .8 and .8, so p = (1/2, 1/2)
    moved = loss([0.0, math.log(4), math.log(4)], [0, 1, 1], [0.8, 0.2, 0.2])
    assert moved.tolist() == pytest.approx([0.0], abs=1e-6)
    # KL of (.5, .5) from (.8, .2)
    divergence = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    kept = loss([0.0, math.log(4), math.log(4)], [0, 1, 1], [0.8, 0.2, 0.2], kl_weight=2.0)
    assert kept.tolist() == pytest.approx([2 * divergence], abs=1e-6)


def test_a_common_factor_of_the_ratios_says_nothing() -> None:
    first = loss([0.1, -0.4, 0.7], [0, 1, 1], [0.7, 0.3, 0.3], kl_weight=0.5)
    second = loss([5.1, 4.6, 5.7], [0, 1, 1], [0.7, 0.3, 0.3], kl_weight=0.5)
    torch.testing.assert_close(first, second)


def test_prompts_are_calibrated_one_by_one() -> None:
    index = torch.tensor([7, 3, 7, 3])
    both = loss([0.0, 0.0, 0.0, 0.0], [0, 0, 1, 1], [0.9, 0.5, 0.1, 0.5], set_index=index)
    # in the order of the set index: prompt 3 is even, prompt 7 leans to class 0 by .9
    assert both.tolist() == pytest.approx([0.0, 2 * 0.4**2], abs=1e-6)


def test_the_minimum_is_the_target_and_the_divergence_holds_it_back() -> None:
    # exact tilting of a categorical distribution: log ratio a number a class, priors .7, .2, .1
    priors, target = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([1 / 3, 1 / 3, 1 / 3])
    found = {}
    for weight in (0.0, 0.1):
        tilt = torch.zeros(3, requires_grad=True)
        optimizer = torch.optim.Adam([tilt], lr=0.1)
        for _ in range(500):
            optimizer.zero_grad()
            cgm_relax_loss(
                tilt, torch.arange(3), priors, torch.zeros(3, dtype=torch.int64), target, kl_weight=weight
            ).sum().backward()
            optimizer.step()
        found[weight] = torch.softmax(tilt.detach() + priors.log(), 0)
    torch.testing.assert_close(found[0.0], target, atol=1e-3, rtol=0)
    distance = float((found[0.1] - target).norm())
    assert 0.02 < distance < float((priors - target).norm())


def test_gradient_is_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    log_ratio = torch.randn(12, generator=generator, dtype=torch.float64, requires_grad=True)
    classes = torch.tensor([0, 1, 2] * 4)
    index = torch.tensor([0, 1] * 6)
    priors = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)[classes]
    target = torch.full((3,), 1 / 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda values: cgm_relax_loss(values, classes, priors, index, target, kl_weight=0.3), log_ratio
    )


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match=r"must share one length > 0, got \[2, 2, 1, 2\]"):
        loss([0.0, 0.0], [0, 1], [0.5])
    with pytest.raises(InputError, match="classes reach from 0 to 2, target has 2"):
        loss([0.0, 0.0], [0, 2], [0.5, 0.5])
