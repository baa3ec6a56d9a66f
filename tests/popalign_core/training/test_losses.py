import math

import pytest
import torch
from torch import Tensor

from popalign_core.errors import InputError
from popalign_core.training.losses import (
    anchor_normaliser,
    batch_normaliser,
    binned_normaliser,
    diffusion_dpo_loss,
    diffusion_kto_loss,
    mean_squared_error,
    popalign_loss,
    preserving_scale,
    scale_gradient,
    set_dpo_loss,
)

# Two pairs, preferred half first. g = reference - policy = [.2, .4, -.2, 0].
POLICY = torch.tensor([0.3, 0.1, 0.6, 0.4])
REFERENCE = torch.tensor([0.5, 0.5, 0.4, 0.4])
PREFERRED = torch.tensor([True, True, False, False])


def softplus(x: float) -> float:
    """-log sigma(-x), in plain Python."""
    return math.log1p(math.exp(x))


def random_batch(n: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.rand((2, n), generator=generator)
    return policy, reference, torch.arange(n) < n // 2


def test_popalign_by_hand() -> None:
    # mean g: preferred (.2 + .4) / 2 = .3, dispreferred (-.2 + 0) / 2 = -.1; Z = (.3 - .1) / 2 = .1
    # I * (g - Z) = [.1, .3, .3, .1]; beta = 10 -> [1, 3, 3, 1]; loss = log(1 + e^-x)
    losses = popalign_loss(POLICY, REFERENCE, PREFERRED, beta=10)
    expected = [softplus(-1), softplus(-3), softplus(-3), softplus(-1)]
    assert losses.tolist() == pytest.approx(expected, abs=1e-6)


def test_alpha_weights_the_preferred_side_of_the_normaliser() -> None:
    # alpha = .75: Z = .75 * .3 + .25 * -.1 = .2; I * (g - Z) = [0, .2, .4, .2]
    assert float(batch_normaliser(POLICY, REFERENCE, PREFERRED, alpha=0.75)) == pytest.approx(0.2)
    losses = popalign_loss(POLICY, REFERENCE, PREFERRED, beta=10, alpha=0.75)
    assert losses.tolist() == pytest.approx([softplus(0), softplus(-2), softplus(-4), softplus(-2)], abs=1e-6)


def test_a_given_normaliser_is_used() -> None:
    # Z = 0: I * g = [.2, .4, .2, 0]
    losses = popalign_loss(POLICY, REFERENCE, PREFERRED, beta=10, normaliser=0.0)
    assert losses.tolist() == pytest.approx([softplus(-2), softplus(-4), softplus(-2), softplus(0)], abs=1e-6)
    # one-sided batches are fine then: Z came from elsewhere
    one = popalign_loss(POLICY[:1], REFERENCE[:1], PREFERRED[:1], beta=10, normaliser=torch.tensor(0.1))
    assert one.tolist() == pytest.approx([softplus(-1)], abs=1e-6)


def test_diffusion_dpo_by_hand() -> None:
    # m - r = [-.2, -.4 | .2, 0]; pair 1: -5 * (-.2 - .2) = 2; pair 2: -5 * (-.4 - 0) = 2
    assert diffusion_dpo_loss(POLICY, REFERENCE, beta=10).tolist() == pytest.approx([softplus(-2)] * 2, abs=1e-6)
    # swapping the sides turns the sign
    swapped = diffusion_dpo_loss(POLICY.roll(2), REFERENCE.roll(2), beta=10)
    assert swapped.tolist() == pytest.approx([softplus(2)] * 2, abs=1e-5)


def test_set_dpo_by_hand() -> None:
    # set pair 4 holds samples 0, 1, 2: .2 + .4 - (-.2) = .8; set pair 9 one more preferred sample (g = .1) and
    # sample 3: .1 - 0 = .1; beta = 2 -> 1.6 and .2. The order of the samples does not matter.
    policy, reference = torch.cat([torch.tensor([0.2]), POLICY]), torch.cat([torch.tensor([0.3]), REFERENCE])
    preferred = torch.cat([torch.tensor([True]), PREFERRED])
    losses = set_dpo_loss(policy, reference, preferred, torch.tensor([9, 4, 4, 4, 9]), beta=2)
    assert losses.tolist() == pytest.approx([softplus(-1.6), softplus(-0.2)], abs=1e-6)


def test_eq_11_is_eq_6_for_one_pair_in_value_and_gradient() -> None:
    # g_w - Z = (g_w - g_l) / 2 = Z - g_l: both samples have Eq. 6's argument, and Z is detached
    reference = torch.tensor([0.45, 0.35])
    population, pairwise = (torch.tensor([0.4, 0.6], requires_grad=True) for _ in range(2))
    losses = popalign_loss(population, reference, torch.tensor([True, False]), beta=7)
    losses.mean().backward()
    expected = diffusion_dpo_loss(pairwise, reference, beta=7)
    expected.mean().backward()
    torch.testing.assert_close(losses, expected.expand(2))
    torch.testing.assert_close(population.grad, pairwise.grad)
    # -beta/2 * [(.4 - .45) - (.6 - .35)] = 3.5 * .3 = 1.05; d/dm_w = beta/2 * sigma(-1.05)
    assert float(expected.detach()) == pytest.approx(softplus(-1.05), abs=1e-6)
    assert pairwise.grad is not None
    assert float(pairwise.grad[0]) == pytest.approx(3.5 / (1 + math.exp(1.05)), abs=1e-6)
    assert float(pairwise.grad[1]) == pytest.approx(-3.5 / (1 + math.exp(1.05)), abs=1e-6)


def test_eq_10_is_twice_the_argument_of_eq_6_for_one_pair() -> None:
    pair = torch.tensor([True, False])
    policy, reference = torch.tensor([0.4, 0.6]), torch.tensor([0.45, 0.35])
    losses = set_dpo_loss(policy, reference, pair, torch.zeros(2, dtype=torch.int64), beta=3.5)
    torch.testing.assert_close(losses, diffusion_dpo_loss(policy, reference, beta=7))


def test_two_pairs_share_the_normaliser() -> None:
    # pair by pair Eq. 6 would give [2, 2] as arguments (above); Eq. 11 gives [1, 3, 3, 1]
    losses = popalign_loss(POLICY, REFERENCE, PREFERRED, beta=10)
    assert not torch.allclose(losses[:2], diffusion_dpo_loss(POLICY, REFERENCE, beta=10))


@pytest.mark.parametrize("beta", [0.1, 20.0, 5000.0])
def test_log_2_where_policy_is_reference(beta: float) -> None:
    policy, _, preferred = random_batch()
    pairs = torch.arange(4).repeat(2)
    for losses in (
        popalign_loss(policy, policy, preferred, beta=beta),
        diffusion_dpo_loss(policy, policy, beta=beta),
        set_dpo_loss(policy, policy, preferred, pairs, beta=beta),
    ):
        torch.testing.assert_close(losses, torch.full_like(losses, math.log(2)))


def test_a_constant_shift_of_every_g_changes_nothing() -> None:
    policy, reference, preferred = random_batch()
    for alpha in (0.25, 0.5, 0.75):
        losses = popalign_loss(policy, reference, preferred, beta=5, alpha=alpha)
        shifted = popalign_loss(policy, reference + 0.7, preferred, beta=5, alpha=alpha)
        torch.testing.assert_close(losses, shifted, rtol=0, atol=1e-5)
    # without a normaliser it does
    zero = popalign_loss(policy, reference, preferred, beta=5, normaliser=0.0)
    assert not torch.allclose(zero, popalign_loss(policy, reference + 0.7, preferred, beta=5, normaliser=0.0))


def test_mean_of_log_sigmoid_not_log_sigmoid_of_mean() -> None:
    # PITFALLS 14: arguments [1, 3, 3, 1] have mean 2, but the mean loss is not softplus(-2)
    mean = float(popalign_loss(POLICY, REFERENCE, PREFERRED, beta=10).mean())
    assert mean == pytest.approx((softplus(-1) + softplus(-3)) / 2, abs=1e-6)
    assert abs(mean - softplus(-2)) > 0.05


def test_gradients_reach_only_the_policy() -> None:
    policy, reference, preferred = random_batch()
    z = torch.tensor(0.1, requires_grad=True)
    pairs = torch.arange(4).repeat(2)
    policy.requires_grad_(True)
    reference.requires_grad_(True)
    losses = [
        popalign_loss(policy, reference, preferred, beta=5),
        popalign_loss(policy, reference, preferred, beta=5, normaliser=z),
        diffusion_dpo_loss(policy, reference, beta=5),
        set_dpo_loss(policy, reference, preferred, pairs, beta=5),
    ]
    torch.cat(losses).sum().backward()
    assert reference.grad is None
    assert z.grad is None
    assert policy.grad is not None
    # descent lowers the policy's error on preferred samples and raises it on dispreferred ones
    assert bool((policy.grad[preferred] > 0).all())
    assert bool((policy.grad[~preferred] < 0).all())


def test_popalign_gradient_by_hand() -> None:
    # the normaliser carries no gradient: d loss / d m = I * beta * sigma(-x), x = [1, 3, 3, 1]
    policy = POLICY.clone().requires_grad_(True)
    popalign_loss(policy, REFERENCE, PREFERRED, beta=10).sum().backward()
    weak, strong = 10 / (1 + math.exp(1)), 10 / (1 + math.exp(3))
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([weak, strong, -strong, -weak], abs=1e-4)


def test_losses_are_finite_far_out() -> None:
    # beta * |g - Z| = 5000 * .5: log(sigmoid(x)) would be -inf
    losses = popalign_loss(torch.tensor([1.0, 0.0]), torch.zeros(2), torch.tensor([True, False]), beta=5000)
    assert losses.tolist() == pytest.approx([2500.0, 2500.0])


def test_mean_squared_error_is_a_mean_over_channels_and_space() -> None:
    model_pred = torch.zeros((2, 3, 2, 2), dtype=torch.bfloat16)
    target = torch.stack([torch.full((3, 2, 2), 2.0), torch.arange(12.0).view(3, 2, 2)])
    # 2^2 = 4; (0 + 1 + 4 + ... + 121) / 12 = 506 / 12
    assert mean_squared_error(model_pred, target).tolist() == pytest.approx([4.0, 506 / 12])


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match=r"share one shape \[B\].*\(4,\), \(2,\), \(4,\)"):
        popalign_loss(POLICY, REFERENCE[:2], PREFERRED, beta=1)
    with pytest.raises(InputError, match="share one shape"):
        popalign_loss(POLICY.view(2, 2), REFERENCE.view(2, 2), PREFERRED.view(2, 2), beta=1)
    with pytest.raises(InputError, match=r"share one shape \[B\], B > 0"):
        diffusion_dpo_loss(POLICY[:0], REFERENCE[:0], beta=1)
    with pytest.raises(InputError, match=r"preferred must be bool, got torch\.int64"):
        popalign_loss(POLICY, REFERENCE, PREFERRED.long(), beta=1)
    with pytest.raises(InputError, match="no dispreferred sample"):
        popalign_loss(POLICY, REFERENCE, torch.ones(4, dtype=torch.bool), beta=1)
    with pytest.raises(InputError, match="no preferred sample"):
        popalign_loss(POLICY, REFERENCE, torch.zeros(4, dtype=torch.bool), beta=1)
    with pytest.raises(InputError, match="3 samples are not pairs"):
        diffusion_dpo_loss(POLICY[:3], REFERENCE[:3], beta=1)
    with pytest.raises(InputError, match=r"set pairs \[5\] have no dispreferred"):
        set_dpo_loss(POLICY, REFERENCE, PREFERRED, torch.tensor([1, 5, 1, 1]), beta=1)
    with pytest.raises(InputError, match=r"set_index must be 4 integers, got torch\.float32 \(4,\)"):
        set_dpo_loss(POLICY, REFERENCE, PREFERRED, torch.zeros(4), beta=1)


def test_diffusion_kto_by_hand() -> None:
    # g = [.2, .4, -.2, 0], mean .1, beta = 10: Q = 1; I * (10 g - 1) = [1, 3, 3, 1]
    losses = diffusion_kto_loss(POLICY, REFERENCE, PREFERRED, beta=10)
    expected = [1 / (1 + math.exp(x)) for x in (1, 3, 3, 1)]
    assert losses.tolist() == pytest.approx(expected, abs=1e-6)
    # a mean below 0 is no divergence: Q = 0, and the sides swap with the sign of g
    turned = diffusion_kto_loss(REFERENCE, POLICY, ~PREFERRED, beta=10)
    assert turned.tolist() == pytest.approx([1 / (1 + math.exp(x)) for x in (2, 4, 2, 0)], abs=1e-6)


def test_diffusion_kto_starts_at_one_half_with_a_gradient_of_beta_over_four() -> None:
    policy = torch.full((2,), 0.3, dtype=torch.float64, requires_grad=True)
    losses = diffusion_kto_loss(policy, policy.detach(), torch.tensor([True, False]), beta=8)
    assert losses.tolist() == [0.5, 0.5]
    losses.sum().backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([2, -2])


def test_anchor_normaliser_is_the_mean_g_of_the_anchors() -> None:
    policy = POLICY.clone().requires_grad_(True)
    anchor = anchor_normaliser(policy, REFERENCE)
    assert float(anchor) == pytest.approx(0.1)
    assert not anchor.requires_grad


def scale_of(won: Tensor, lost: Tensor, slack: float = 0.0) -> Tensor:
    return preserving_scale(won.detach().square().sum(), (won * lost).detach().sum(), slack=slack)


def test_preserving_scale_by_hand() -> None:
    won = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    # <w, l> = 4 > ||w||^2 = 1: a quarter; with half the progress kept, an eighth
    strong = torch.tensor([4.0, 3.0]).view(1, 1, 1, 2)
    assert float(scale_of(won, strong)) == 0.25
    assert float(scale_of(won, strong, slack=0.5)) == 0.125
    # weak or opposed: the whole gradient
    assert float(scale_of(won, torch.tensor([0.5, 9.0]).view(1, 1, 1, 2))) == 1
    assert float(scale_of(won, -strong)) == 1


def change_of_preferred_error(weight: Tensor, given: Tensor, targets: Tensor, *, safe: bool) -> float:
    """By a small step of one linear map that predicts both samples of a pair from the same input."""
    errors = (weight @ given - targets).view(2, 1, 1, 6)
    scale = scale_of(errors[:1], errors[1:]) if safe else 1.0
    won, lost = errors.square().mean((1, 2, 3))
    (step,) = torch.autograd.grad(won - scale_gradient(lost, scale), weight)
    moved = (weight - 1e-4 * step).detach()
    return float((moved @ given - targets[0]).square().mean() - won.detach())


def test_a_step_with_the_preserving_scale_does_not_raise_the_preferred_error() -> None:
    generator = torch.Generator().manual_seed(3)
    risen = {True: 0, False: 0}
    for _ in range(20):
        weight = torch.randn(6, 6, generator=generator, dtype=torch.float64).requires_grad_(True)
        given = torch.randn(6, generator=generator, dtype=torch.float64)
        targets = torch.randn(2, 6, generator=generator, dtype=torch.float64)
        for safe in (True, False):
            risen[safe] += change_of_preferred_error(weight, given, targets, safe=safe) > 1e-6
    assert risen[True] == 0
    assert risen[False] > 0


def test_scale_gradient_leaves_the_values() -> None:
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    scaled = scale_gradient(values, 0.25)
    assert scaled.tolist() == [1, 2]
    scaled.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.25, 0.25]


FINITE = {
    "popalign, Z of the batch": lambda m, r, p, s: popalign_loss(m, r, p, beta=3.0, normaliser=0.1),
    "diffusion-dpo": lambda m, r, p, s: diffusion_dpo_loss(m, r, beta=3.0),
    "set-dpo": lambda m, r, p, s: set_dpo_loss(m, r, p, s, beta=3.0),
    "sft": lambda m, r, p, s: m,
}


@pytest.mark.parametrize("name", FINITE)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    policy_mse = torch.rand(8, generator=generator, dtype=torch.float64, requires_grad=True)
    reference_mse = torch.rand(8, generator=generator, dtype=torch.float64)
    preferred = torch.arange(8) < 4
    sets = torch.tensor([0, 1, 1, 0] * 2)
    assert torch.autograd.gradcheck(lambda m: FINITE[name](m, reference_mse, preferred, sets), policy_mse)


def test_what_is_detached_is_a_constant_to_finite_differences() -> None:
    """Z of Eq. 11 and KTO's reference point: the gradient is that of the loss with these held where they are."""
    generator = torch.Generator().manual_seed(3)
    policy_mse = torch.rand(8, generator=generator, dtype=torch.float64)
    reference_mse = policy_mse + 0.3 * torch.rand(8, generator=generator, dtype=torch.float64)
    preferred = torch.arange(8) < 4
    z = batch_normaliser(policy_mse, reference_mse, preferred, alpha=0.3)
    point = 3 * (reference_mse - policy_mse).mean()
    assert float(point) > 0
    sign = torch.where(preferred, 1.0, -1.0).double()

    def held(m: Tensor) -> tuple[Tensor, Tensor]:
        g = reference_mse - m
        return -torch.nn.functional.logsigmoid(sign * 3 * (g - z)), 1 - torch.sigmoid(sign * (3 * g - point))

    for number, loss in enumerate(
        (
            lambda m: popalign_loss(m, reference_mse, preferred, beta=3.0, alpha=0.3),
            lambda m: diffusion_kto_loss(m, reference_mse, preferred, beta=3.0),
        )
    ):
        live = policy_mse.clone().requires_grad_(True)
        loss(live).sum().backward()
        step = 1e-6
        for i in range(8):
            nudge = torch.zeros(8, dtype=torch.float64)
            nudge[i] = step
            up, down = held(policy_mse + nudge)[number].sum(), held(policy_mse - nudge)[number].sum()
            assert live.grad is not None
            assert float(live.grad[i]) == pytest.approx(float(up - down) / (2 * step), rel=1e-6, abs=1e-9)


def test_binned_normaliser_is_one_z_a_bin() -> None:
    policy = torch.tensor([0.1, 0.5, 0.3, 0.9])
    reference = torch.tensor([0.2, 0.9, 0.3, 0.5])
    preferred = torch.tensor([True, True, False, False])
    # g = .1, .4, 0, -.4; bin 5 holds samples 0 and 2, bin 2 samples 1 and 3
    z = binned_normaliser(policy, reference, preferred, torch.tensor([5, 2, 5, 2]))
    torch.testing.assert_close(z, torch.tensor([0.05, 0.0, 0.05, 0.0]))
    one = binned_normaliser(policy, reference, preferred, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(one, batch_normaliser(policy, reference, preferred).expand(4))
    with pytest.raises(InputError, match="no dispreferred sample"):
        binned_normaliser(policy, reference, preferred, torch.tensor([0, 1, 1, 1]))
