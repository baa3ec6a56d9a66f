"""Pairs, checks and plans of a study."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from popalign_core.config.review import IMAGES, SETS, StudyConfig
from popalign_core.errors import InputError
from popalign_core.review.pairing import ImagePair, make_checks, pair_sets
from popalign_core.review.rater_plan import plan_rater
from popalign_core.review.screen_images import encode_for_screen, spoil

TWO = StudyConfig(set_size=2, sets_per_prompt=9)


def frame(system: str, prompts: int = 3, images: int = 6, seed: int = 0) -> pd.DataFrame:
    rows = [(f"{system}-{p}-{i}", f"p{p}", i, seed + 10 * p + i) for p in range(prompts) for i in range(images)]
    return pd.DataFrame(rows, columns=["image_id", "prompt_id", "index", "seed"])


def test_both_sides_of_a_pair_share_prompt_and_seeds() -> None:
    pairs = pair_sets(frame("a"), frame("b"), TWO)
    assert len(pairs) == 3 * 3
    for pair in pairs:
        assert [name.removeprefix("a-") for name in pair.a] == [name.removeprefix("b-") for name in pair.b]
        assert {name.split("-")[1] for name in pair.a} == {pair.prompt_id.removeprefix("p")}
    assert Counter(name for pair in pairs for name in pair.a).most_common(1)[0][1] == 1


def test_images_of_other_seeds_are_no_pair_and_imported_ones_are() -> None:
    b = frame("b", seed=1)
    with pytest.raises(InputError, match=r"0 pair\(s\) of 2 images .* out of 0 common images; 1 are asked for"):
        pair_sets(frame("a"), b, TWO)
    assert len(pair_sets(frame("a"), b.assign(seed=-1), TWO)) == 9


def test_a_missing_picture_takes_its_partner_out() -> None:
    pairs = pair_sets(frame("a").query("image_id != 'a-0-1'"), frame("b"), TWO)
    assert sorted(name for pair in pairs if pair.prompt_id == "p0" for name in pair.b) == [
        "b-0-0",
        "b-0-2",
        "b-0-3",
        "b-0-4",
    ]


def test_pairs_are_drawn_from_all_prompts_and_equal_seeds_draw_equal_ones() -> None:
    few = TWO.model_copy(update={"n_pairs": 4})
    chosen = pair_sets(frame("a"), frame("b"), few)
    assert len(chosen) == 4
    assert chosen == pair_sets(frame("a").sample(frac=1, random_state=1), frame("b"), few)
    other = pair_sets(frame("a"), frame("b"), few.model_copy(update={"seed": 1}))
    assert {pair.pair_id for pair in other} != {pair.pair_id for pair in chosen}
    with pytest.raises(InputError, match="10 are asked for"):
        pair_sets(frame("a"), frame("b"), TWO.model_copy(update={"n_pairs": 10}))


def test_checks_alternate_between_questions_and_systems_and_have_one_right_answer() -> None:
    pairs = pair_sets(frame("a"), frame("b"), TWO)
    checks = make_checks(pairs, TWO.model_copy(update={"n_checks": 4}))
    assert [(check.checks, check.kind) for check in checks] == [("fairness", "repeated"), ("quality", "spoiled")] * 2
    assert [check.a[0][0] for check in checks] == ["a", "a", "b", "b"]
    repeated, spoiled = checks[0], checks[1]
    assert (repeated.b, len(set(repeated.a))) == ((repeated.a[0],) * 2, 2)
    assert spoiled.b == spoiled.a
    assert len({check.pair_id for check in checks}) == 4


def test_a_study_of_single_pictures_checks_by_spoiling() -> None:
    pairs = pair_sets(frame("a"), frame("b"), IMAGES)
    assert {check.kind for check in make_checks(pairs, IMAGES)} == {"spoiled"}
    assert (IMAGES.n_raters, SETS.n_raters, SETS.set_size) == (5, 3, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"questions": SETS.questions[:1] * 2}, "contain a duplicate"),
        ({"set_size": 1}, "needs sets of at least 2"),
        ({"questions": [{"name": "x", "text": "Which?"}]}, "no question says how to check it"),
    ],
)
def test_a_study_that_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StudyConfig.model_validate(SETS.model_dump() | change)


def many(n: int = 40) -> list[ImagePair]:
    pairs = [ImagePair(f"{number:02}", "p", ("x", "y"), ("z", "w")) for number in range(n)]
    return [*pairs, *make_checks(pairs, SETS)]


def test_a_plan_asks_all_questions_of_a_pair_in_a_row_with_the_same_side_first() -> None:
    plan = plan_rater(many(), {}, SETS, np.random.default_rng(0))
    assert len(plan) == 40 * 2 + 6
    compared = [asked for asked in plan if len(asked.pair_id) == 2]
    for one, two in zip(compared[::2], compared[1::2], strict=True):
        assert (one.pair_id, one.question, two.question) == (two.pair_id, "fairness", "quality")
        assert one.first == two.first
    assert len({asked.pair_id for asked in compared}) == 40


def test_sides_are_balanced_for_pairs_and_for_checks_and_order_is_the_raters_own() -> None:
    plans = [plan_rater(many(), {}, SETS, np.random.default_rng([0, number])) for number in range(50)]
    for plan in plans:
        first = {asked.pair_id: asked.first for asked in plan}
        assert Counter(side for name, side in first.items() if len(name) == 2) == {"a": 20, "b": 20}
        assert Counter(side for name, side in first.items() if len(name) > 2) == {"a": 3, "b": 3}
        assert len(plan[0].pair_id) == 2, "a check came first"
    assert len({tuple(asked.pair_id for asked in plan) for plan in plans}) == 50
    # over raters every pair stands on either side
    sides = Counter((asked.pair_id, asked.first) for plan in plans for asked in plan if asked.question == "fairness")
    assert min(sides[f"{number:02}", side] for number in range(40) for side in "ab") >= 10


def test_pairs_that_lack_most_raters_come_first_and_none_gets_too_many() -> None:
    config = SETS.model_copy(update={"pairs_per_rater": 15, "n_raters": 3})
    coverage: Counter[str] = Counter()
    for number in range(8):
        plan = plan_rater(many(), coverage, config, np.random.default_rng(number))
        coverage.update({asked.pair_id for asked in plan if len(asked.pair_id) == 2})
        assert max(coverage.values()) - min(coverage[f"{n:02}"] for n in range(40)) <= 1
    assert set(coverage.values()) == {3}
    with pytest.raises(InputError, match="every pair has its 3 raters"):
        plan_rater(many(), coverage, config, np.random.default_rng(9))


def test_a_picture_is_made_smaller_but_never_larger() -> None:
    import io

    def size(pixels: np.ndarray) -> tuple[int, int]:
        return Image.open(io.BytesIO(encode_for_screen(pixels, 100))).size

    assert size(np.zeros((300, 200, 3), np.uint8)) == (67, 100)
    assert size(np.zeros((20, 30, 3), np.uint8)) == (30, 20)


def test_small_pictures_are_shown_exactly_and_spoiled_ones_lose_their_edges() -> None:
    import io

    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    shown = np.asarray(Image.open(io.BytesIO(encode_for_screen(pixels, 512))).convert("RGB"))
    assert np.array_equal(shown, pixels)
    spoiled = spoil(pixels)
    assert (spoiled.shape, spoiled.dtype) == (pixels.shape, np.uint8)
    assert spoiled.std() < pixels.std() / 8
