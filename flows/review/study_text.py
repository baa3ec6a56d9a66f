"""Studies and their results for a terminal."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from popalign_core.config.review import CurateConfig, LabelConfig
from popalign_core.review.curation_results import CurationResults
from popalign_core.review.labels import LabelResults
from popalign_core.review.vote_results import StudyResults
from storage.reviews.review_tables import Study
from tasks.studies.pairwise import study_results
from tasks.studies.study_records import parse_study

if TYPE_CHECKING:
    from storage.reviews.votes import ReviewDatabase


def about(study: Study) -> str:
    """What a study asks, in a few words."""
    config = parse_study(study)
    if isinstance(config, LabelConfig):
        return f"labels: {', '.join(config.asks)}"
    return (
        f"sets of {config.set_size}" if isinstance(config, CurateConfig) else f"{study.system_a} and {study.system_b}"
    )


def study_lines(database: "ReviewDatabase", name: str) -> Iterator[str]:
    """The results of a study so far, of whatever kind."""
    from tasks.studies.labelling import label_results
    from tasks.studies.study_results import curation_results

    study = database.study(name)
    config = parse_study(study)
    if isinstance(config, LabelConfig):
        yield from label_lines(label_results(database, name))
    elif isinstance(config, CurateConfig):
        yield from curation_lines(curation_results(database, name))
    else:
        yield from result_lines(study, study_results(database, name))


def label_lines(results: LabelResults) -> Iterator[str]:
    """Counts of every class, and agreement by axis."""
    yield f"{results.n_labels} label(s) of {results.n_raters} rater(s)"
    for row in results.counts.to_dict("records"):
        yield f"{row['axis']:<12} {row['class']:<20} {row['n']:>6} label(s), most labels of {row['n_images']} image(s)"
    for row in results.agreement.to_dict("records"):
        yield f"{row['axis']:<12} agreement {_agreement(row, 'image')}"


def curation_lines(results: CurationResults) -> Iterator[str]:
    """A line a set, and how near the target it came by what the classifier reads."""
    for row in results.sets.to_dict("records"):
        steps = f"{row['n_accepted'] + row['n_undone']} step(s), {row['n_accepted']} taken"
        ends = f"discrepancy {row['discrepancy_start']:.2f} to {row['discrepancy_end']:.2f}"
        yield f"{row['end']:<10} {steps:<24} {ends}  {row['prompt']}"
    yield f"no set of this size can be nearer than {results.floor:.2f}"


def result_lines(study: Study, results: StudyResults) -> Iterator[str]:
    """Win rates of the first system, agreement, and the raters flagged."""
    yield f"{study.system_a} against {study.system_b}; a tie counts half"
    for row in results.wins.to_dict("records"):
        counts = f"{row['n_wins']} won, {row['n_ties']} tied, {row['n_losses']} lost"
        ends = f"{row['win_rate']:.3f} ({row['ci_low']:.3f} to {row['ci_high']:.3f})"
        yield f"{row['question']:<12} {row['by']:<9} {ends:<26} {counts}"
    for row in results.agreement.to_dict("records"):
        yield f"{row['question']:<12} agreement {_agreement(row, 'pair')}"
    flagged = results.raters[results.raters["flag"] != ""]
    yield f"{len(flagged)} of {len(results.raters)} rater(s) flagged, and not counted"
    for row in flagged.to_dict("records"):
        yield f"  {row['rater']}: {row['flag']}"


def _agreement(row: Mapping[Any, Any], thing: str) -> str:
    measured = f"{row['alpha']:.2f} ({row['ci_low']:.2f} to {row['ci_high']:.2f}) on {row['n_pairs']} {thing}(s)"
    return str(row["note"]) or measured
