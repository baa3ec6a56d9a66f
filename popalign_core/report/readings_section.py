"""The same images read in several ways: by other classifiers, by other detectors."""

from html import escape

import pandas as pd

from popalign_core.report.cells import NOTHING, Footnotes, estimate_cell, group_row, row, table
from popalign_core.report.comparison_inputs import ComparisonInputs
from popalign_core.report.estimates import estimate_of
from popalign_core.report.measure_names import column_name


def readings_section(inputs: ComparisonInputs) -> str:
    """A table for each benchmark and axis, a row for each system and reading; '' when there is one reading."""
    readings = inputs.readings
    if readings.empty:
        return ""
    text = (
        "<p>The rows of a system differ only in how its images were classified. Where they are further apart than "
        "their intervals are wide, the figures of this page depend on the classifier or the detector.</p>"
    )
    faces = readings[readings["axis"] == ""]
    for (benchmark, axis), rows in readings[readings["axis"] != ""].groupby(["benchmark", "axis"], sort=False):
        both = pd.concat([faces[faces["benchmark"] == benchmark], rows])
        text += f"<h3>{escape(f'{axis}, {benchmark} prompts')}</h3>" + _readings_table(both, str(axis))
    return text


def _readings_table(rows: pd.DataFrame, axis: str) -> str:
    metrics = list(dict.fromkeys(rows["metric"]))
    heads = ("Reading", "Classifier", *(_head(metric, axis) for metric in metrics), "Images read")
    notes, lines = Footnotes(), []
    for system, group in rows.groupby("system", sort=False):
        lines.append(group_row(str(system), len(heads)))
        for reading, found in group.groupby("reading", sort=False):
            known = {
                metric: estimate_of(line) for metric, (_, line) in zip(found["metric"], found.iterrows(), strict=True)
            }
            cells = [estimate_cell(known[name], name, notes) if name in known else NOTHING for name in metrics]
            n = min(estimate.n for estimate in known.values())  # `no_face_share` is of all images
            lines.append(row(heads, str(reading), (escape(str(found["scorer"].iloc[0])), *cells, f"{n:,}")))
    return table(heads, lines) + str(notes)


def _head(metric: str, axis: str) -> str:
    base, _, name = metric.partition(":")
    if base == "share":
        return f"Share of {name}"
    return column_name(metric, "" if base == "no_face_share" else axis)
