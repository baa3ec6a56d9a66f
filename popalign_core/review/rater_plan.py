"""Who is asked what: every rater has an order of pairs and sides of their own, fixed when they are invited."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from popalign_core.config.review import AskConfig
from popalign_core.errors import InputError
from popalign_core.review.pairing import ImagePair

Side = Literal["a", "b"]


@dataclass(frozen=True)
class PlannedQuestion:
    """One question put to one rater.

    Attributes:
        pair_id: What is judged.
        question: Name of what is asked.
        first: Which side of the pair stands first on the page.
    """

    pair_id: str
    question: str
    first: Side


def plan_rater(
    pairs: Sequence[ImagePair], coverage: Mapping[str, int], config: AskConfig, generator: np.random.Generator
) -> list[PlannedQuestion]:
    """The questions of one rater: pairs that lack raters, those that lack most first chosen, in random order.

    All questions about a pair follow each other. System A stands first in half of the pairs and the known answer in
    half of the checks, so that neither place nor habit favours a system. A check is never the first thing seen.

    Args:
        pairs: Of the study, checks among them.
        coverage: Pair id -> raters who have answered it or have it in their plan.
        config: Raters a pair, pairs a rater.
        generator: Decides choice, order and sides.

    Raises:
        InputError: When every pair has its raters.
    """
    lacking = [pair for pair in pairs if not pair.checks and coverage.get(pair.pair_id, 0) < config.n_raters]
    if not lacking:
        raise InputError(f"every pair has its {config.n_raters} raters already; no more raters are needed")
    shuffled = [lacking[number] for number in generator.permutation(len(lacking))]
    shuffled.sort(key=lambda pair: coverage.get(pair.pair_id, 0))
    chosen = shuffled[: config.pairs_per_rater or None]
    chosen = [chosen[number] for number in generator.permutation(len(chosen))]
    checks = [pair for pair in pairs if pair.checks]
    order = _mix(chosen, [checks[number] for number in generator.permutation(len(checks))], generator)
    sides = _sides(chosen, generator) | _sides(checks, generator)
    return [
        PlannedQuestion(pair.pair_id, name, sides[pair.pair_id]) for pair in order for name in _questions(pair, config)
    ]


def _questions(pair: ImagePair, config: AskConfig) -> list[str]:
    return [pair.checks] if pair.checks else list(config.asks)


def _mix(pairs: Sequence[ImagePair], checks: Sequence[ImagePair], generator: np.random.Generator) -> list[ImagePair]:
    """Each check behind a pair drawn at random."""
    behind: list[list[ImagePair]] = [[pair] for pair in pairs]
    for check, place in zip(checks, generator.integers(0, len(pairs), len(checks)), strict=True):
        behind[place].append(check)
    return [pair for group in behind for pair in group]


def _sides(pairs: Sequence[ImagePair], generator: np.random.Generator) -> dict[str, Side]:
    """A first in half of them; the odd one by lot."""
    places = np.arange(len(pairs)) + generator.integers(2)
    sides: list[Side] = ["a" if place % 2 else "b" for place in generator.permutation(places)]
    return {pair.pair_id: side for pair, side in zip(pairs, sides, strict=True)}
