"""What people labelled and curated, as sections; and a study's section in the page of its run."""

import re
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from popalign_core.config.review import CANNOT_TELL
from popalign_core.report.cells import group_row, row, table
from popalign_core.report.charts import Line, lines
from popalign_core.report.document import bullets, definitions, figures, html_page
from popalign_core.review.curation_results import CurationResults
from popalign_core.review.labels import LabelResults

_MARK = '<section class="people" data-study="{name}">'


def study_document(
    study: str, subtitle: str, section: str, instructions: str, limits: Iterable[str], about: Mapping[str, str]
) -> str:
    """A complete HTML document of a study.

    Args:
        study: Its name.
        subtitle: What people did.
        section: The results, as HTML.
        instructions: What raters read, as HTML.
        limits: What the results cannot say.
        about: What to print so that the study can be repeated.
    """
    sections = (
        ("Human judgements", section),
        ("Instructions", instructions),
        ("Limitations", bullets(limits)),
        ("Reproducibility", definitions(about)),
    )
    return html_page(study, f'<p class="soft">{escape(subtitle)}</p>', sections)


def add_to_page(page: str, study: str, section: str) -> str:
    """A report with the results of a study as its last section, in place of an earlier version of it.

    Args:
        page: A page of `html_page`.
        study: Its name.
        section: The results, as HTML.
    """
    mark = _MARK.format(name=escape(study))
    kept = re.sub(re.escape(mark) + r".*?</section>", "", page, flags=re.DOTALL)
    head, _, tail = kept.rpartition("</main>")
    return f"{head}{mark}<h2>Human judgements: {escape(study)}</h2>{section}</section></main>{tail}"


def label_section(results: LabelResults) -> str:
    """Counts of every class and agreement, as HTML."""
    heads = ("Class", "Labels", "Images most saw so")
    rows: list[str] = []
    for axis, counts in results.counts.groupby("axis", sort=False):
        rows.append(group_row(str(axis), len(heads)))
        rows += [
            row(heads, each["class"], (str(each["n"]), str(each["n_images"]))) for each in counts.to_dict("records")
        ]
    said = [f"{results.n_labels} labels of {results.n_raters} people; {CANNOT_TELL!r} is among the answers."]
    return table(heads, rows) + bullets([*said, *(_agreement(each) for each in results.agreement.to_dict("records"))])


def curation_section(results: CurationResults) -> str:
    """How many sets were finished, in how many steps, and how near the target they came, as HTML."""
    finished = results.sets[results.sets["end"] == "finished"]
    ends = results.sets["end"].value_counts()
    heads = ("Prompt", "End", "Steps", "Taken", "Discrepancy at the start", "At the end")
    rows = [row(heads, each["prompt"], _course_cells(each)) for each in results.sets.to_dict("records")]
    said = [f"{len(results.sets)} set(s) begun: " + ", ".join(f"{n} {end}" for end, n in ends.items()) + "."]
    if len(finished):
        steps = (finished["n_accepted"] + finished["n_undone"]).mean()
        said.append(
            f"A finished set took {steps:.1f} steps in the mean, of which {finished['n_accepted'].mean():.1f} kept."
        )
    said.append(f"No set of this size can have a discrepancy below {results.floor:.2f}, the floor.")
    return bullets(said) + figures(_path_chart(results)) + table(heads, rows)


def _path_chart(results: CurationResults) -> list[tuple[str, str]]:
    if len(results.path) < 2:
        return []
    steps = list(range(len(results.path)))
    series = [
        Line("sets", steps, results.path, "line-1"),
        Line("floor", [0, steps[-1]], [results.floor] * 2, "dotted"),
    ]
    title = "Mean discrepancy of the finished sets by step"
    return [(title, lines(title, series, "step"))]


def _course_cells(course: Mapping[Any, Any]) -> tuple[str, ...]:
    n = course["n_accepted"] + course["n_undone"]
    ends = (course["discrepancy_start"], course["discrepancy_end"])
    numbers = (f"{value:.2f}" if value == value else "not read" for value in ends)
    return (course["end"], str(n), str(course["n_accepted"]), *numbers)


def _agreement(found: Mapping[Any, Any]) -> str:
    said = found["note"] or f"{found['alpha']:.2f} on {found['n_pairs']} images"
    if found["ci_low"] == found["ci_low"]:  # NaN when there is no interval
        said += f", {found['ci_low']:.2f} to {found['ci_high']:.2f}"
    return f"Agreement on {found['axis']} (Krippendorff's alpha; 1 is full, 0 is chance): {said}."
