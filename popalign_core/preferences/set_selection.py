"""Which images go into the preferred sets: as near the target as they allow, as they come, or by a judged chain.

Every draw takes all its randomness from a generator of the prompt's own, and begins with one permutation of the
prompt's images, so that strategies compare on the same draw.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from popalign_core.preferences.target import FloatArray, IntArray, Target, TargetOf

Shape = tuple[int, int]
"""Sets of a prompt, and images a set."""

Generators = Sequence[np.random.Generator]


def draw_at_random(n_images: int, shape: Shape, generator: np.random.Generator) -> IntArray:
    """Disjoint random sets.

    Args:
        n_images: To draw from.
        shape: (n_sets, size), together at most `n_images`.
        generator: Of the prompt.

    Returns:
        [n_sets, size] positions among the images.
    """
    n_sets, size = shape
    return generator.permutation(n_images)[: n_sets * size].reshape(n_sets, size)


def draw_to_target(
    cells: Sequence[IntArray], shapes: Sequence[Shape], target: Target, of: TargetOf, generators: Generators
) -> list[IntArray]:
    """Sets as near the target as the images allow, without replacement; all prompts at once, each by itself.

    One image at a time goes to the cell that lacks most (target share x size - count so far). With images enough
    this is the largest-remainder quota; with too few it is still the nearest joint, because the squared distance
    is a sum of convex terms, one a cell. Equal cells are told apart by what the axes lack by themselves, then at
    random, so that no cell gets the odd image of every set. The sets take turns and so share what is scarce.

    For the marginals the order of the two is reversed. That alone is not the nearest, for a cell serves several
    axes at once: single swaps then bring the sets nearer, from these and from random ones, and the better end is
    taken. So they are never farther than sets drawn at random.

    Args:
        cells: [n_images] a prompt, each image's cell.
        shapes: (n_sets, size) a prompt, together at most its images.
        target: The wanted population.
        of: Whether the cells' shares count, or each axis's alone.
        generators: One a prompt.

    Returns:
        A prompt: [n_sets, size] positions among its images.
    """
    orders = [generator.permutation(len(each)) for each, generator in zip(cells, generators, strict=True)]
    supplies = np.array([np.bincount(each, minlength=len(target.cells)) for each in cells])
    appearance = np.array(
        [_by_appearance(each[order], len(target.cells)) for each, order in zip(cells, orders, strict=True)]
    )
    picked = _take_turns(supplies, appearance, np.array(shapes), target, of, generators)
    drawn = []
    for each, order, supply, shape, picks in zip(cells, orders, supplies, shapes, picked, strict=True):
        n_sets, size = shape
        picks = picks[:n_sets, :size]
        if of == "marginal":
            random = each[order[: n_sets * size]].reshape(shape)
            picks = _nearer(picks, random, supply, target)
        drawn.append(_images_of(picks, each, order))
    return drawn


def _by_appearance(cells: IntArray, n_cells: int) -> IntArray:
    """All cells, in the order in which they first appear, absent ones last."""
    first = np.full(n_cells, len(cells))
    first[cells[::-1]] = np.arange(len(cells))[::-1]
    return np.argsort(first, kind="stable")


def _take_turns(
    supplies: IntArray, appearance: IntArray, shapes: IntArray, target: Target, of: TargetOf, generators: Generators
) -> IntArray:
    """[P, max n_sets, max size]: the cell that each place is filled from."""
    supplies, (most_sets, largest) = supplies.copy(), shapes.max(axis=0)
    counts = np.zeros((len(shapes), most_sets, len(target.cells)), dtype=np.int64)
    picked = np.zeros((len(shapes), most_sets, largest), dtype=np.int64)
    for slot in range(largest):
        for number in range(most_sets):
            rows = np.flatnonzero((shapes[:, 0] > number) & (shapes[:, 1] > slot))
            if not len(rows):
                continue
            is_open = supplies[rows] > 0
            lacks = _lacks(counts[rows, number], shapes[rows, 1:], target)
            draws = _draws(is_open, appearance[rows], [generators[row] for row in rows.tolist()])
            chosen = _largest([*(lacks if of == "joint" else lacks[::-1]), draws], is_open)
            picked[rows, number, slot] = chosen
            supplies[rows, chosen] -= 1
            counts[rows, number, chosen] += 1
    return picked


def _lacks(counts: IntArray, sizes: IntArray, target: Target) -> tuple[FloatArray, FloatArray]:
    """[P, C]: images that each cell lacks, and that its classes lack over all axes; rounded, so that ties are ties."""
    marginal: FloatArray = np.zeros(counts.shape)
    for have, shares, classes in zip(target.marginals(counts), target.shares, target.class_of, strict=True):
        marginal += (shares * sizes - have)[:, classes]
    return np.round(target.joint * sizes - counts, 9), np.round(marginal, 9)


def _draws(is_open: NDArray[np.bool_], appearance: IntArray, generators: Generators) -> FloatArray:
    """[P, C]: a uniform draw for each open cell, from the prompt's generator, in the order of `appearance`."""
    in_order = np.take_along_axis(is_open, appearance, axis=1)
    draws = np.zeros(is_open.shape)
    n_open = in_order.sum(axis=1).tolist()
    draws[in_order] = np.concatenate([each.random(n) for each, n in zip(generators, n_open, strict=True)])
    back = np.zeros(is_open.shape)
    np.put_along_axis(back, appearance, draws, axis=1)
    return back


def _largest(keys: Sequence[FloatArray], is_open: NDArray[np.bool_]) -> IntArray:
    """[P]: the open cell with the largest key; the next key tells equal ones apart."""
    for key in keys:
        key = np.where(is_open, key, -np.inf)
        is_open = key == key.max(axis=1, keepdims=True)
    chosen: IntArray = is_open.argmax(axis=1)
    return chosen


def _images_of(picks: IntArray, cells: IntArray, order: IntArray) -> IntArray:
    """Positions of images of the cells picked: of each cell, in the order of the turns, the last of `order` first."""
    turns = picks.T.ravel()
    taken = np.argsort(turns, kind="stable")
    reverse = order[::-1]
    by_cell = reverse[np.argsort(cells[reverse], kind="stable")]
    n_cells = int(cells.max()) + 1
    starts = np.cumsum(np.bincount(cells, minlength=n_cells)) - np.bincount(cells, minlength=n_cells)
    used = np.bincount(turns, minlength=n_cells)
    nth = np.arange(len(turns)) - np.repeat(np.cumsum(used) - used, used)
    images = np.empty(len(turns), dtype=np.int64)
    images[taken] = by_cell[starts[turns[taken]] + nth]
    return images.reshape(picks.T.shape).T


def _nearer(picks: IntArray, random: IntArray, supply: IntArray, target: Target) -> IntArray:
    """The better end of swapping one image at a time, from two starts."""
    ends = [_swap(target.count(start), supply, target) for start in (picks, random)]
    best = min(ends, key=lambda counts: float(target.discrepancies(counts).sum()))
    return np.array([np.repeat(np.arange(len(row)), row) for row in best])


def _swap(counts: IntArray, supply: IntArray, target: Target) -> IntArray:
    """Counts [n_sets, C] after the best single swaps of a member for a spare image, until none helps."""
    counts, spare = counts.copy(), supply - counts.sum(axis=0)
    is_moving = True
    while is_moving:
        is_moving = False
        for members in counts:
            change = np.where((members[:, None] > 0) & (spare > 0), _swapped(members, target), np.inf)
            out, into = np.unravel_index(int(change.argmin()), change.shape)
            if change[out, into] < float(target.discrepancies(members)) - 1e-12:
                members[[out, into]] += (-1, 1)
                spare[[out, into]] += (1, -1)
                is_moving = True
    return counts


def _swapped(members: IntArray, target: Target) -> FloatArray:
    """[C, C]: the discrepancy of one set after an image of the one cell has made room for one of the other."""
    total = np.zeros((len(members), len(members)))
    for have, shares, classes in zip(target.marginals(members), target.shares, target.class_of, strict=True):
        one = np.eye(len(shares), dtype=np.int64)
        moved = (have - one[:, None] + one[None, :]) / members.sum()
        total += np.sqrt(((moved - shares) ** 2).sum(axis=-1))[np.ix_(classes, classes)]
    return total / len(target.shares)
