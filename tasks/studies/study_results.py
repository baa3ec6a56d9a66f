"""What came out of a study of any kind: as a table, a section of a page, a page, and in the report of its run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from popalign_core.config.review import CurateConfig, LabelConfig
from popalign_core.errors import InputError
from storage.store import Store
from tasks.studies.curation import curated_table, iter_curated
from tasks.studies.labelling import label_results, label_table
from tasks.studies.pairwise import read_votes, study_results
from tasks.studies.study_records import parse_kind, parse_study

if TYPE_CHECKING:
    from popalign_core.review.curation_results import CurationResults
    from storage.reviews.votes import ReviewDatabase

SUFFIXES = (".parquet", ".csv")
REPORT = "report.html"
_APPEARANCE = "People judged appearance in images. They did not judge anyone's identity."
_LABEL_LIMITS = (
    _APPEARANCE,
    "Agreement is among these people. Others, or other instructions, may give another result.",
)
_CURATION_LIMITS = (
    _APPEARANCE,
    "Discrepancies are by what a classifier reads, which knows few classes and is wrong at times; curators may have "
    "balanced what it does not see.",
)


def study_table(database: "ReviewDatabase", name: str, *, known_only: bool = False) -> tuple[str, pd.DataFrame]:
    """The name and content of the table that a study fills: `votes`, `labels` or `curated`."""
    config = parse_study(database.study(name))
    if isinstance(config, LabelConfig):
        return "labels", label_table(database, name, known_only=known_only)
    if isinstance(config, CurateConfig):
        return "curated", curated_table(database, name)
    return "votes", read_votes(database, name)


def export_study(database: "ReviewDatabase", name: str, path: Path, *, known_only: bool = False) -> int:
    """Write a study's table as Parquet or CSV, by the ending of the path; the number of rows.

    Args:
        database: Has the study.
        name: Of the study.
        path: To write.
        known_only: Of labels: write free classes as `cannot tell`.

    Raises:
        InputError: For another ending, or nothing to write.
    """
    from storage.formats.parquet import encode
    from storage.roots import write_atomic

    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} ends in {path.suffix!r}; give a path that ends in {' or '.join(SUFFIXES)}")
    table, frame = study_table(database, name, known_only=known_only)
    if frame.empty:
        raise InputError(f"study {name!r} has no {table} yet; `popalign study links {name}` shows who was invited")
    write_atomic(path, encode(table, frame) if path.suffix == ".parquet" else table_csv(frame).encode())
    return len(frame)


def table_csv(frame: pd.DataFrame) -> str:
    """A table as CSV; ids of several images separated by spaces."""
    joined = {name: frame[name].map(" ".join) for name in ("images_a", "images_b") if name in frame}
    return frame.assign(**joined).to_csv(index=False)


def curation_results(database: "ReviewDatabase", name: str) -> "CurationResults":
    """How far the sets of a study are."""
    from popalign_core.review.curation_results import ENDS, Course, evaluate_courses
    from storage.reviews.chain_steps import read_all_classes
    from storage.reviews.review_tables import DONE, GIVEN_UP

    ends, seen = dict(zip((DONE, GIVEN_UP, ""), ENDS, strict=True)), read_all_classes(database, name)
    courses = [
        Course(each.pair.prompt, ends[each.choice], each.chains, seen[each.pair.pair_id], each.seconds)
        for each in iter_curated(database, name)
    ]
    return evaluate_courses(courses, parse_kind(database.study(name), CurateConfig))


def results_section(database: "ReviewDatabase", name: str) -> str:
    """The results of a study so far, as HTML."""
    from popalign_core.report.study_sections import curation_section, label_section
    from popalign_core.report.votes_section import people_section

    study = database.study(name)
    config = parse_study(study)
    if isinstance(config, LabelConfig):
        return label_section(label_results(database, name))
    if isinstance(config, CurateConfig):
        return curation_section(curation_results(database, name))
    return people_section((study.system_a, study.system_b), study_results(database, name))


def write_page(database: "ReviewDatabase", name: str, instructions: str, path: Path) -> None:
    """Write the results of a study as one self-contained HTML page.

    Args:
        database: Has the study.
        name: Of the study.
        instructions: What raters read, as HTML.
        path: Of the page.
    """
    from popalign_core.report.study_sections import study_document
    from popalign_core.report.votes_section import JUDGING_LIMITS
    from storage.roots import write_atomic

    study = database.study(name)
    subtitle, limits = {
        "judge": (f"{study.system_a} against {study.system_b}, judged by people", JUDGING_LIMITS),
        "label": ("What people saw in single images", _LABEL_LIMITS),
        "curate": ("Sets that people made, an image at a time", _CURATION_LIMITS),
    }[parse_study(study).kind]
    about = {**study.source, "configuration": json.dumps(study.config, sort_keys=True)}
    page = study_document(name, subtitle, results_section(database, name), instructions, limits, about)
    write_atomic(path, page.encode())


def add_to_report(database: "ReviewDatabase", store: Store, name: str) -> str:
    """Put the results so far into the report of the run that the study was made of, as its last section.

    The run's folder holds a copy of the report; that changes, and no artifact. A later publication of the run writes
    the copy anew, without the section.

    Returns:
        Where the report is.

    Raises:
        InputError: When the study names no run, or the run has no report.
    """
    from popalign_core.report.study_sections import add_to_page

    run = database.study(name).source.get("run", "")
    folder = store.run_folder(run) if run else None
    page = folder.read_text(REPORT) if folder else None
    if folder is None or page is None:
        raise InputError(f"study {name!r} has no run with a report ({run!r}); give a path for a page of its own")
    folder.write_text(REPORT, add_to_page(page, name, results_section(database, name)))
    return f"{folder.url}/{REPORT}"
