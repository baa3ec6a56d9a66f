"""Which comparisons count."""

import math

import pytest

from popalign_core.preferences.image_pairs import PREFERRED_SIDE, pair_fault

PICTURES = (b"one", b"other")


@pytest.mark.parametrize(
    ("caption", "label", "pictures", "reason"),
    [
        ("a cat", 1.0, PICTURES, None),
        ("a cat", 0.0, PICTURES, None),
        ("a cat", 0.5, PICTURES, "tie"),
        ("a cat", None, PICTURES, "no label"),
        ("a cat", math.nan, PICTURES, "no label"),
        ("a cat", 0.7, PICTURES, "unknown label"),
        (" \n", 1.0, PICTURES, "empty caption"),
        (None, 1.0, PICTURES, "empty caption"),
        ("a cat", 1.0, (b"one", None), "missing image"),
        ("a cat", 1.0, (b"", b"other"), "missing image"),
        ("a cat", 1.0, (b"one", b"one"), "same image twice"),
    ],
)
def test_a_comparison_counts_or_has_a_reason_not_to(
    caption: str | None, label: float | None, pictures: tuple[bytes | None, bytes | None], reason: str | None
) -> None:
    assert pair_fault(caption, label, pictures) == reason


def test_label_0_speaks_of_picture_0() -> None:
    assert PREFERRED_SIDE == {1.0: 0, 0.0: 1}
