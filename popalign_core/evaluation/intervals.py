"""Intervals from few prompts, each with many images.

What was drawn are prompts: the claim is about prompts nobody tried, and images of one prompt are alike, so 840 images
of 14 prompts are nearer to 14 observations than to 840. Every interval here is therefore built on one contribution a
prompt (the jackknife's, see `measures.py`) and on Student's t with one degree of freedom less than there are prompts.

- A mean: `mean +- t s`.
- A share: Wilson's interval at the number of independent images that would vary as much, and never above the number
  of images. It holds near 0 and 1, where `p +- t s` is too narrow, and at 0 of n, where s is 0.
- A distance from a target cannot be treated so: noise only adds to it. `distance_interval` asks for every true
  distance whether what was found would be a surprise, and keeps those where it would not.
- A difference of two distances is put together from both intervals (Zou and Donner 2008, "MOVER").

A plain bootstrap of prompts was measured and left: recentred percentiles covered a pooled discrepancy near 0 in
under 80% and shares of 10 prompts in 90%. `simulation.py` has what these cover.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

_GRID = 49
_REACH = 7.0
"""Standard deviations to both sides of the estimate that are searched."""


@lru_cache(maxsize=1024)
def t_quantile(confidence: float, degrees: int) -> float:
    """The t with `P(|T| <= t) = confidence`; T is Student's with so many degrees of freedom."""
    # T = sqrt(degrees) tan(angle), and the angle's density is proportional to cos(angle)^(degrees - 1)
    angle = np.linspace(0.0, np.pi / 2, 20_001)
    density = np.cos(angle) ** (degrees - 1)
    mass = np.append(0.0, np.cumsum(density[1:] + density[:-1]))
    return math.sqrt(degrees) * math.tan(float(np.interp(confidence, mass / mass[-1], angle)))


def share_interval(share: float, variance: float, n: int, degrees: int, confidence: float) -> tuple[float, float]:
    """Wilson's interval of a share of `n` images in prompts that differ.

    Args:
        share: In [0, 1].
        variance: Of the share, between prompts.
        n: Images, at least 1.
        degrees: Prompts less one.
        confidence: For example .95.
    """
    t, spread = t_quantile(confidence, degrees), share * (1 - share)
    # images of prompts are never more independent than independent images
    independent = min(n, spread / variance) if variance > 0 and spread > 0 else n
    scale = 1 + t * t / independent
    centre = (share + t * t / (2 * independent)) / scale
    half = t * math.sqrt(spread / independent + (t / (2 * independent)) ** 2) / scale
    return max(centre - half, 0.0), min(centre + half, 1.0)


def distance_interval(
    shares: FloatArray,
    centre: FloatArray,
    covariance: FloatArray,
    distance: Callable[[FloatArray], FloatArray],
    degrees: int,
    confidence: float,
    generator: np.random.Generator,
    n_draws: int,
) -> tuple[float, float, float]:
    """Interval of a distance from a centre, and an estimate of it that noise does not push up.

    The truth is looked for on the ray from the centre through the estimate. A true point at distance d would show
    other distances than d; `n_draws` of them are drawn for every d. Their mean, as a function of d, turns a distance
    shown into a distance estimated: 0 where fair shares would show as much. A d is kept unless the estimate of what
    was found is among the (1 - confidence) furthest from d. Near the centre, where nothing can be less than 0, this
    puts all that tail above; far from it, half to each side (as Feldman and Cousins 1998 do for counts).

    Args:
        shares: `[R, K]`, by replicate.
        centre: `[K]`.
        covariance: `[R * K, R * K]` of the shares.
        distance: `[..., R, K]` to `[...]`; grows along every ray from the centre.
        degrees: Prompts less one. Student's t along the ray; across it many directions average out, and the normal
            distribution is nearer.
        confidence: For example .95.
        generator: Of the draws.
        n_draws: How many.

    Returns:
        Low, high, estimate, all distances.
    """
    values, vectors = np.linalg.eigh(covariance)
    offset = (shares - centre).ravel()
    length, spread = float(np.linalg.norm(offset)), math.sqrt(max(float(values.sum()), 0.0))
    if spread < 1e-12:
        return (float(distance(shares)),) * 3
    ray = offset / length if length > 1e-9 else vectors[:, -1]
    noise = generator.standard_normal((n_draws, len(values))) @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
    tails = np.sqrt(degrees / generator.chisquare(degrees, n_draws)) - 1.0
    noise += (tails * (noise @ ray))[:, None] * ray
    reach = np.linspace(max(length - _REACH * spread, 0.0), length + _REACH * spread, _GRID)
    points = (reach[:, None] * ray).reshape(_GRID, *shares.shape) + centre
    shown = np.stack([distance(point + noise.reshape(n_draws, *shares.shape)) for point in points])
    mean = np.maximum.accumulate(shown.mean(axis=1))
    estimate = float(np.interp(distance(shares), mean, reach))
    off = np.abs(np.interp(shown, mean, reach) - reach[:, None])
    p_values = (off >= np.abs(estimate - reach)[:, None] - 1e-12).mean(axis=1)
    low, high = _crossings(reach, p_values, 1.0 - confidence)
    ends = [distance((place * ray).reshape(shares.shape) + centre) for place in (low, high, estimate)]
    return float(ends[0]), float(ends[1]), float(ends[2])


def difference_interval(
    first: tuple[float, float, float], second: tuple[float, float, float], correlation: float
) -> tuple[float, float]:
    """Interval of `second - first`, each given as (low, high, estimate).

    Zou and Donner 2008, "Construction of confidence limits about effect measures", Statistics in Medicine 27.
    """
    change = second[2] - first[2]

    def half(here: float, there: float) -> float:
        return math.sqrt(max(here * here + there * there - 2 * correlation * here * there, 0.0))

    down = half(second[2] - second[0], first[1] - first[2])
    up = half(second[1] - second[2], first[2] - first[0])
    return change - down, change + up


def _crossings(places: FloatArray, p_values: FloatArray, level: float) -> tuple[float, float]:
    """The outermost places where the p-value is at the level; an end of the grid where it is above."""
    kept = np.flatnonzero(p_values > level)
    first, last = int(kept[0]), int(kept[-1])
    low, high = float(places[first]), float(places[last])
    if first > 0:
        low = float(np.interp(level, p_values[first - 1 : first + 1], places[first - 1 : first + 1]))
    if last < len(places) - 1:
        high = float(np.interp(level, p_values[[last + 1, last]], places[[last + 1, last]]))
    return low, high
