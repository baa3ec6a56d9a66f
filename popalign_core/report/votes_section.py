"""What people said of two systems: a section of a report or of a page of its own."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from popalign_core.report.cells import row, table
from popalign_core.report.document import bullets
from popalign_core.review.vote_results import StudyResults

_COUNTED = {"majority": "majority of each pair", "votes": "every vote"}
JUDGING_LIMITS = (
    "Raters judged appearance in images. They did not judge anyone's identity.",
    "Intervals cover the choice of prompts and how far raters of one pair agree. They do not cover another pool of "
    "raters or another wording of the instructions.",
)


def people_section(systems: tuple[str, str], results: StudyResults) -> str:
    """Win rates, agreement of the raters and who was flagged, as HTML.

    Args:
        systems: A, whose win rate is given, and B.
        results: Of the votes.
    """
    heads = ("Question", "Counted", *systems[:1], "Tie", *systems[1:], f"Win rate of {systems[0]}", "Preferred")
    rows = [row(heads, wins["question"], _cells(systems, wins)) for wins in results.wins.to_dict("records")]
    return table(heads, rows) + bullets([*_agreement(results), *_flags(results)])


def _cells(systems: tuple[str, str], wins: Mapping[Any, Any]) -> tuple[str, ...]:
    low, high = wins["ci_low"], wins["ci_high"]
    preferred = escape(systems[0]) if low > 0.5 else escape(systems[1]) if high < 0.5 else "no clear preference"
    counts = (str(wins[name]) for name in ("n_wins", "n_ties", "n_losses"))
    rate = f"<b>{wins['win_rate']:.3f}</b> <small>{low:.3f} to {high:.3f}</small>"
    return (_COUNTED[wins["by"]], *counts, rate, preferred)


def _agreement(results: StudyResults) -> Iterator[str]:
    for found in results.agreement.to_dict("records"):
        said = found["note"] or f"{found['alpha']:.2f} on {found['n_pairs']} pairs"
        if found["ci_low"] == found["ci_low"]:  # NaN when there is no interval
            said += f", {found['ci_low']:.2f} to {found['ci_high']:.2f}"
        yield f"Agreement on {found['question']} (Krippendorff's alpha; 1 is full, 0 is chance): {said}."


def _flags(results: StudyResults) -> Iterator[str]:
    flagged = results.raters[results.raters["flag"] != ""]
    votes = int(results.raters["n_votes"].sum())
    yield (
        f"{votes} votes of {len(results.raters)} raters; {len(flagged)} of them did not pass the attention checks, and "
        "their votes are not counted above."
    )
    for found in flagged.to_dict("records"):
        yield f"Flagged: rater {found['rater']}, {found['flag']}."
