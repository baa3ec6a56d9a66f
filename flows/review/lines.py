"""Results of a study for a terminal."""

from collections.abc import Iterator

from popalign_core.review.results import Results
from storage.review_tables import Study


def result_lines(study: Study, results: Results) -> Iterator[str]:
    """Win rates of the first system, agreement, and the raters flagged."""
    yield f"{study.system_a} against {study.system_b}; a tie counts half"
    for row in results.wins.to_dict("records"):
        counts = f"{row['n_wins']} won, {row['n_ties']} tied, {row['n_losses']} lost"
        ends = f"{row['win_rate']:.3f} ({row['ci_low']:.3f} to {row['ci_high']:.3f})"
        yield f"{row['question']:<12} {row['by']:<9} {ends:<26} {counts}"
    for row in results.agreement.to_dict("records"):
        measured = f"{row['alpha']:.2f} ({row['ci_low']:.2f} to {row['ci_high']:.2f}) on {row['n_pairs']} pair(s)"
        yield f"{row['question']:<12} agreement {row['note'] or measured}"
    flagged = results.raters[results.raters["flag"] != ""]
    yield f"{len(flagged)} of {len(results.raters)} rater(s) flagged, and not counted"
    for row in flagged.to_dict("records"):
        yield f"  {row['rater']}: {row['flag']}"
