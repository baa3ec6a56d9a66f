"""Set preferences: for each neutral training prompt, sets near the target population against sets as the model samples.

Preferred images come from the prompt's identity-specific children, dispreferred ones from the prompt itself; both
will carry the neutral prompt as caption in training.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from popalign_core.config import Axis, PreferencesConfig
from popalign_core.errors import InputError
from popalign_core.ids import content_id
from popalign_core.preferences.chain import Chain, Member, TargetJudge, run_chain
from popalign_core.preferences.pools import Ids, PromptPool, gather_pools
from popalign_core.preferences.set_selection import Generators, Shape, draw_at_random, draw_to_target
from popalign_core.preferences.target import FloatArray, IntArray, Target

_STAGE = "preferences"
_COLUMNS = ("set_id", "prompt_id", "role", "image_id", "slot", "target", "discrepancy", "balance")
_PROMPTS_AT_ONCE = 512


@dataclass(frozen=True)
class _Job:
    """What a strategy is given: some prompts with images enough, and each one's shape and generator."""

    pools: Sequence[PromptPool]
    shapes: Sequence[Shape]
    generators: Generators
    target: Target
    config: PreferencesConfig
    drops: Counter[str]


def build_sets(
    prompts: pd.DataFrame,
    images: pd.DataFrame,
    attributes: pd.DataFrame,
    axes: Sequence[Axis],
    config: PreferencesConfig,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Build up to `n_sets` pairs of sets for each neutral training prompt.

    No image is in two sets. The preferred sets come of `config.strategy`; the dispreferred ones are drawn at random
    from the neutral images with a readable face. The sets of a prompt have equal sizes: `set_size`, or less by at
    most half where images are missing, or fewer sets. A pair whose preferred set is not nearer the target, by its
    discrepancy, is no preference and is dropped.

    Args:
        prompts: A `prompts` table with the specific children.
        images: `image_id` and `prompt_id` at least; images of other prompts than training ones are not looked at.
        attributes: An `attributes` table that covers the images.
        axes: The attributes with their targets.
        config: Strategy, sizes and the seed. The draw depends on nothing else, nor on the order of any row.

    Returns:
        A `preferences` table, whose statistics are those of each row's set, and a `drops` table. Its reasons
        `specific_image/...` and `neutral_image/...` count images, and with the images used add up to the images given
        (`unused`: fine, but in no set); `prompt/...` counts prompts, `set_pair/...` pairs and `chain_step/...` the
        steps of strategy `mcmc`.

    Raises:
        InputError: When an image has no attributes or is there twice, or no pair at all can be built.
    """
    drops: Counter[str] = Counter()
    tables = list(iter_sets(prompts, [(images, attributes)], axes, config, drops))
    return pd.concat(tables, ignore_index=True), tabulate_set_drops(drops)


def iter_sets(
    prompts: pd.DataFrame,
    pieces: Iterable[tuple[pd.DataFrame, pd.DataFrame]],
    axes: Sequence[Axis],
    config: PreferencesConfig,
    drops: Counter[str],
) -> Iterator[pd.DataFrame]:
    """`build_sets` for tables of any size: they are given in pieces, and the sets come prompts by prompts.

    Args:
        prompts: As `build_sets` takes it.
        pieces: Of `images` and `attributes`; a piece's attributes cover its images. The cut changes no result.
        axes: The attributes with their targets.
        config: Strategy, sizes and the seed.
        drops: Counts as the table `drops` does, complete at the end; see `tabulate_set_drops`.

    Yields:
        Parts of the `preferences` table.

    Raises:
        InputError: As `build_sets`.
    """
    pools, target, n_rows = gather_pools(prompts, pieces, axes, drops), Target(axes), 0
    n_images = sum(len(pool.specific) + len(pool.neutral) for pool in pools) + drops.total()
    for start in range(0, len(pools), _PROMPTS_AT_ONCE):
        table = _draw_sets(pools[start : start + _PROMPTS_AT_ONCE], target, config, drops)
        n_rows += len(table)
        if len(table):
            yield table
    if not n_rows:
        counted = {reason: n for reason, n in sorted(drops.items()) if n}
        raise InputError(
            f"no preference pair can be built from {len(pools)} neutral training prompt(s) and {n_images} "
            f"image(s); dropped: {counted or 'nothing'}. Sample more images, or change preferences.set_size: smaller "
            "sets need fewer images, larger ones can come nearer the target"
        )


def tabulate_set_drops(drops: Counter[str]) -> pd.DataFrame:
    """Table `drops` of what `iter_sets` counted."""
    counted = sorted((reason, n) for reason, n in drops.items() if n)
    return pd.DataFrame(
        {
            "stage": [_STAGE] * len(counted),
            "reason": [reason for reason, _ in counted],
            "n": np.array([n for _, n in counted], dtype=np.int64),
        }
    )


def _draw_sets(
    pools: Sequence[PromptPool], target: Target, config: PreferencesConfig, drops: Counter[str]
) -> pd.DataFrame:
    shapes = [_shape(pool, config, drops) for pool in pools]
    used = [(pool, shape) for pool, shape in zip(pools, shapes, strict=True) if shape is not None]
    generators = [_generator(pool.prompt_id, config) for pool, _ in used]
    job = _Job([pool for pool, _ in used], [shape for _, shape in used], generators, target, config, drops)
    pairs = _no_worse(_pair_up(job), job) if used else None
    n_used = len(pairs.winners.ids) if pairs else 0
    drops["specific_image/unused"] += sum(len(pool.specific) for pool in pools) - n_used
    drops["neutral_image/unused"] += sum(len(pool.neutral) for pool in pools) - n_used
    return _table(pairs, job) if n_used and pairs else pd.DataFrame(columns=list(_COLUMNS))


def _shape(pool: PromptPool, config: PreferencesConfig, drops: Counter[str]) -> Shape | None:
    """As many sets as can be at least half full, as full as they can equally be."""
    for n_sets in range(config.n_sets, 0, -1):
        size = min(config.set_size, min(len(pool.specific), len(pool.neutral)) // n_sets)
        if size > 0 and 2 * size >= config.set_size:
            return n_sets, size
    drops[f"prompt/too_few_{'specific' if len(pool.specific) < len(pool.neutral) else 'neutral'}_images"] += 1
    return None


def _generator(prompt_id: str, config: PreferencesConfig) -> np.random.Generator:
    return np.random.default_rng(int(content_id("sets", config.seed, prompt_id), 16))


def _balanced(job: _Job) -> list[IntArray]:
    """As near the target as the images allow."""
    cells = [pool.specific_cells for pool in job.pools]
    return draw_to_target(cells, job.shapes, job.target, job.config.target_of, job.generators)


def _paper(job: _Job) -> list[IntArray]:
    """The paper's: verified images of all identities together, and luck."""
    return [
        draw_at_random(len(pool.specific), shape, generator)
        for pool, shape, generator in zip(job.pools, job.shapes, job.generators, strict=True)
    ]


def _mcmc(job: _Job) -> list[IntArray]:
    """The paper's Appendix B with the classifier as judge, from random sets; the chains of a prompt share its spare
    images.
    """
    drawn = []
    for pool, random, generator in zip(job.pools, _paper(job), job.generators, strict=True):
        judge = TargetJudge(dict(enumerate(pool.specific_cells.tolist())), job.target, job.config.target_of)
        spare: tuple[Member, ...] = tuple(sorted(set(range(len(pool.specific))) - set(random.ravel().tolist())))
        ends = []
        for members in random.tolist():
            end = run_chain(Chain(tuple(members), spare), judge, generator, job.config.mcmc_steps)
            spare = end.spare
            ends.append(end.members)
            job.drops["chain_step/accepted"] += end.n_accepted
            job.drops["chain_step/undone"] += end.n_undone
        drawn.append(np.array(ends, dtype=np.int64))
    return drawn


_STRATEGIES: dict[str, Callable[[_Job], list[IntArray]]] = {
    "balanced": _balanced,
    "paper": _paper,
    "pairwise": _balanced,
    "mcmc": _mcmc,
}


@dataclass(frozen=True)
class _Side:
    """One role's images of all pairs, one after another: ids and cells, [n]."""

    ids: Ids
    cells: IntArray

    def __getitem__(self, rows: NDArray[np.bool_]) -> "_Side":
        return _Side(self.ids[rows], self.cells[rows])


@dataclass(frozen=True)
class _Pairs:
    """Pairs of sets, both sides alike: [n_pairs] number of the prompt and size."""

    owner: IntArray
    sizes: IntArray
    winners: _Side
    losers: _Side

    def discrepancies(self, target: Target) -> tuple[FloatArray, FloatArray]:
        """[n_pairs] of the preferred and of the dispreferred sets."""
        pair_of = np.repeat(np.arange(len(self.sizes)), self.sizes)
        shape = (len(self.sizes), len(target.cells))
        places = (pair_of * shape[1] + side.cells for side in (self.winners, self.losers))
        counts = (np.bincount(each, minlength=shape[0] * shape[1]).reshape(shape) for each in places)
        better, worse = (target.discrepancies(each) for each in counts)
        return better, worse


def _pair_up(job: _Job) -> _Pairs:
    """The strategy's sets against neutral images drawn at random."""
    drawn = _STRATEGIES[job.config.strategy](job)
    neutral = [
        draw_at_random(len(pool.neutral), shape, generator)
        for pool, shape, generator in zip(job.pools, job.shapes, job.generators, strict=True)
    ]
    winners = [
        (pool.specific[at.ravel()], pool.specific_cells[at.ravel()]) for pool, at in zip(job.pools, drawn, strict=True)
    ]
    losers = [
        (pool.neutral[at.ravel()], pool.neutral_cells[at.ravel()]) for pool, at in zip(job.pools, neutral, strict=True)
    ]
    n_sets, sizes = np.array(job.shapes).T
    owner = np.repeat(np.arange(len(job.pools)), n_sets)
    return _Pairs(owner, np.repeat(sizes, n_sets), _joined(winners), _joined(losers))


def _no_worse(pairs: _Pairs, job: _Job) -> _Pairs:
    """Without the pairs that are no preference, which are counted; strategy `pairwise` then takes sets apart."""
    better, worse = pairs.discrepancies(job.target)
    is_nearer = better < worse
    job.drops["set_pair/not_nearer_the_target"] += int((~is_nearer).sum())
    kept = np.repeat(is_nearer, pairs.sizes)
    owner, sizes = pairs.owner[is_nearer], pairs.sizes[is_nearer]
    if job.config.strategy == "pairwise":
        owner, sizes = np.repeat(owner, sizes), np.ones(sizes.sum(), dtype=np.int64)
    return _Pairs(owner, sizes, pairs.winners[kept], pairs.losers[kept])


def _table(pairs: _Pairs, job: _Job) -> pd.DataFrame:
    """Part of a `preferences` table: of every pair the preferred set, then the dispreferred one."""
    prompt_ids = np.array([pool.prompt_id for pool in job.pools], dtype=object)[pairs.owner]
    winners, losers = ([name.decode() for name in side.ids.tolist()] for side in (pairs.winners, pairs.losers))
    ends = np.cumsum(pairs.sizes)
    starts = ends - pairs.sizes
    set_ids = [
        content_id("set-pair", prompt_id, sorted(winners[start:end]), sorted(losers[start:end]))
        for prompt_id, start, end in zip(prompt_ids, starts.tolist(), ends.tolist(), strict=True)
    ]
    one_side = np.repeat(np.arange(len(starts)), pairs.sizes)
    order = np.argsort(np.concatenate([2 * one_side, 2 * one_side + 1]), kind="stable")
    pair, is_winner = np.tile(one_side, 2)[order], order < len(one_side)
    better, worse = pairs.discrepancies(job.target)
    distance = np.where(is_winner, better[pair], worse[pair])
    shares = job.target.table()
    return pd.DataFrame(
        {
            "set_id": np.array(set_ids, dtype=object)[pair],
            "prompt_id": prompt_ids[pair],
            "role": np.where(is_winner, "preferred", "dispreferred"),
            "image_id": np.array(winners + losers, dtype=object)[order],
            "slot": (order % len(one_side) - starts[pair]).astype(np.int32),
            "target": pd.Series([shares] * len(pair), dtype=object),
            "discrepancy": distance,
            "balance": 1.0 - distance / job.target.largest_discrepancy(),
        },
        columns=list(_COLUMNS),
    )


def _joined(parts: Sequence[tuple[Ids, IntArray]]) -> _Side:
    return _Side(np.concatenate([ids for ids, _ in parts]), np.concatenate([cells for _, cells in parts]))
