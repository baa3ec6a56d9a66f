"""How far two sets of images are apart, and how far the images of one set are from each other, by their features.

Kernel distances are kept as sums over pairs of prompts. From these the distance without any one prompt follows, and
with it the interval: images of one prompt are alike, so prompts are what is drawn at random. Nothing is larger than
a block of the kernel matrix, however many images there are.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from popalign_core.evaluation.intervals import t_quantile

FloatArray = NDArray[np.float64]
Kernel = Callable[[Tensor, Tensor], Tensor]

_BLOCK = 1024
_CMMD_SIGMA, _CMMD_SCALE = 10.0, 1000.0


def cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    """`(x.y / D + 1)^3`, that of KID (Binkowski et al. 2018, arXiv:1801.01401); `[N, D]` and `[M, D]` to `[N, M]`."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian_kernel(x: Tensor, y: Tensor) -> Tensor:
    """`1000 exp(-|x - y|^2 / (2 * 10^2))`, that of CMMD (Jayasumana et al. 2024, arXiv:2401.09603) with its scale."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * x @ y.T
    return _CMMD_SCALE * torch.exp(-squares / (2 * _CMMD_SIGMA**2))


@dataclass(frozen=True)
class KernelSums:
    """A kernel summed over the images of every pair of P prompts, of two sets x and y on the same prompts.

    Attributes:
        xx: `[P, P]`.
        yy: `[P, P]`.
        xy: `[P, P]`, x in the rows.
        own_x: `[P]`, of the pairs of an image with itself.
        own_y: `[P]`.
        n_x: `[P]` images.
        n_y: `[P]`.
    """

    xx: FloatArray
    yy: FloatArray
    xy: FloatArray
    own_x: FloatArray
    own_y: FloatArray
    n_x: FloatArray
    n_y: FloatArray


def kernel_sums(
    x: Tensor, x_prompt: NDArray[np.intp], y: Tensor, y_prompt: NDArray[np.intp], kernel: Kernel
) -> KernelSums:
    """Sum a kernel over pairs of prompts.

    Args:
        x: `[N, D]` features of one set.
        x_prompt: `[N]` number of each image's prompt, from 0 to P - 1.
        y: `[M, D]` of the other.
        y_prompt: `[M]`, the same prompts.
        kernel: Of `[N, D]` and `[M, D]`.
    """
    n_prompts = int(max(x_prompt.max(), y_prompt.max())) + 1
    x, y = x.double(), y.double()

    def count(prompt: NDArray[np.intp], weights: FloatArray | None = None) -> FloatArray:
        return np.bincount(prompt, weights, n_prompts).astype(np.float64)

    return KernelSums(
        _summed(x, x_prompt, x, x_prompt, kernel, n_prompts),
        _summed(y, y_prompt, y, y_prompt, kernel, n_prompts),
        _summed(x, x_prompt, y, y_prompt, kernel, n_prompts),
        count(x_prompt, _own(x, kernel)),
        count(y_prompt, _own(y, kernel)),
        count(x_prompt),
        count(y_prompt),
    )


def _summed(
    x: Tensor, x_prompt: NDArray[np.intp], y: Tensor, y_prompt: NDArray[np.intp], kernel: Kernel, n_prompts: int
) -> FloatArray:
    sums = torch.zeros(n_prompts, n_prompts, dtype=torch.float64)
    rows, columns = torch.tensor(x_prompt), torch.tensor(y_prompt)
    for i in range(0, len(x), _BLOCK):
        for j in range(0, len(y), _BLOCK):
            block = kernel(x[i : i + _BLOCK], y[j : j + _BLOCK])
            by_prompt = torch.zeros(len(block), n_prompts, dtype=torch.float64)
            by_prompt.index_add_(1, columns[j : j + _BLOCK], block)
            sums.index_add_(0, rows[i : i + _BLOCK], by_prompt)
    return sums.numpy()


def _own(x: Tensor, kernel: Kernel) -> FloatArray:
    own: FloatArray = torch.cat([kernel(one[None], one[None])[0] for one in x]).numpy()
    return own


def squared_mmd(sums: KernelSums, *, unbiased: bool) -> tuple[float, FloatArray]:
    """Squared maximum mean discrepancy (Gretton et al. 2012) of all images, and without each prompt.

    Args:
        sums: Of the kernel.
        unbiased: Leave out the pairs of an image with itself, as KID does and CMMD does not.

    Returns:
        The distance, and `[P]` distances without one prompt each.
    """
    n_x, n_y = _without_one(sums.n_x), _without_one(sums.n_y)
    xx, yy, xy = (_pairs_without_one(block) for block in (sums.xx, sums.yy, sums.xy))
    own_x, own_y = (_without_one(own) if unbiased else 0.0 for own in (sums.own_x, sums.own_y))
    with np.errstate(divide="ignore", invalid="ignore"):  # without the only prompt nothing is left
        found = (xx - own_x) / (n_x * (n_x - unbiased)) + (yy - own_y) / (n_y * (n_y - unbiased)) - 2 * xy / (n_x * n_y)
    return float(found[0]), found[1:]


def expected_if_equal(sums: KernelSums) -> float:
    """What `squared_mmd` with `unbiased=False` is expected to give for two samples of one distribution, of these sizes.

    The pairs of an image with itself make the difference: `(own - others) / n` for each of the two. NaN where one has a
    single image.
    """
    parts = ((sums.xx, sums.own_x, sums.n_x), (sums.yy, sums.own_y, sums.n_y))
    found = 0.0
    for block, own, counts in parts:
        n = counts.sum()
        if n < 2:
            return float("nan")
        found += (own.sum() / n - (block.sum() - own.sum()) / (n * (n - 1))) / n
    return float(found)


def jackknife_reach(without_one: FloatArray, confidence: float) -> float:
    """Half the interval of a statistic, from its values without one prompt each (Quenouille, Tukey).

    NaN for a single prompt, and where without one of them too little is left.
    """
    n = len(without_one)
    if n < 2 or not np.isfinite(without_one).all():
        return float("nan")
    error = np.sqrt((n - 1) / n * np.square(without_one - without_one.mean()).sum())
    return float(error * t_quantile(confidence, n - 1))


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """FID (Heusel et al. 2017): `|mean_x - mean_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2))`, of `[N, D]` and `[M, D]`.

    With `C = A^T A` the trace of the root is the sum of the singular values of `A_x A_y^T`, roots of the eigenvalues
    of its square: that needs no root of a matrix that is not positive, as that of few images is.
    """
    x, y = x.double(), y.double()
    (mean_x, root_x), (mean_y, root_y) = _moments(x), _moments(y)
    product = root_x @ root_y.T
    cross = torch.linalg.eigvalsh(product @ product.T).clamp(min=0).sqrt().sum()
    return float((mean_x - mean_y).square().sum() + root_x.square().sum() + root_y.square().sum() - 2 * cross)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `[D]`, and `A` of at most D rows with `A^T A` the covariance."""
    mean = x.mean(0)
    centred = (x - mean) / (len(x) - 1) ** 0.5
    return mean, torch.linalg.qr(centred, mode="r").R if len(x) > x.shape[1] else centred


def distances_from_siblings(features: Tensor, groups: NDArray[np.str_]) -> FloatArray:
    """Mean cosine distance of each image from the others of its group; NaN where there is no other.

    The mean over a group is that over all its pairs.

    Args:
        features: `[N, D]`.
        groups: `[N]`, such as prompt ids.
    """
    units = torch.nn.functional.normalize(features.double(), dim=1)
    number = torch.from_numpy(np.unique(groups, return_inverse=True)[1])
    sums = torch.zeros(int(number.max()) + 1 if len(number) else 0, units.shape[1], dtype=torch.float64)
    sums.index_add_(0, number, units)
    n_others = torch.bincount(number)[number] - 1
    distances = 1 - ((sums[number] * units).sum(1) - 1) / n_others
    found: FloatArray = distances.where(n_others > 0, torch.nan).numpy()
    return found


def _without_one(counts: FloatArray) -> FloatArray:
    """The total, then the total without each prompt: `[1 + P]`."""
    return np.concatenate([[counts.sum()], counts.sum() - counts])


def _pairs_without_one(block: FloatArray) -> FloatArray:
    without = block.sum() - block.sum(0) - block.sum(1) + block.diagonal()
    return np.concatenate([[block.sum()], without])
