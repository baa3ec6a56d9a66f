"""The report as one HTML page: no script, nothing loaded from outside, everything from outside escaped."""

from collections.abc import Iterator, Sequence
from html import escape

import pandas as pd

from popalign_core.config import Axis
from popalign_core.evaluation.fairness import discrepancies
from popalign_core.report.charts import PATTERNS, Bar, class_histogram, curve, legend, prompt_bars
from popalign_core.report.inputs import ReportInputs, check_inputs
from popalign_core.report.pictures import grids
from popalign_core.report.style import CSS
from popalign_core.report.tables import SYMBOLS, drops_table, main_table, prompt_table, recall_table
from popalign_core.report.verdict import Change, Estimate, changes, judge

_MOST_PROMPTS = 20
"""Prompts drawn as bars; the table below them has all."""
_LIMITS = (
    "Attributes are a classifier's reading of perceived appearance in a picture. They are not anyone's identity.",
    "Gender is read as one of two classes and race as one of a few broad ones. People whom these classes do not fit "
    "are not measured, and a discrepancy of 0 does not mean that they are represented.",
    "The classifier errs, and may err more on some groups than on others; its errors move the shares shown here.",
    "Pictures without one usable face take no part in the shares. They are counted above.",
    "Intervals cover the choice of prompts and of images. They do not cover the classifier's errors or another "
    "training run, and are not adjusted for the number of rows compared.",
    "If the model is the embedded ‘portraits’ demonstration, its occupations and their bias are invented: it makes no "
    "claim about real people, and its numbers say nothing about other models.",
)


def build_report(inputs: ReportInputs) -> str:
    """Build the page.

    Args:
        inputs: Tables and pictures of both systems.

    Returns:
        A complete HTML document.

    Raises:
        InputError: When a system is missing or the pictures do not pair (see `check_inputs`).
    """
    check_inputs(inputs)
    found = changes(inputs)
    sections = "".join(
        f"<section><h2>{escape(title)}</h2>{content}</section>"
        for title, content in _sections(inputs, found)
        if content
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(inputs.title)}</title><style>{CSS}</style></head><body>{PATTERNS}"
        f'<header class="top"><h1>{escape(inputs.title)}</h1><p class="soft">{escape(inputs.aligned)} compared with '
        f"{escape(inputs.base)}, on the same prompts and seeds</p>{_verdict(inputs)}</header>"
        f"<main>{sections}</main><footer>Made by PopAlign. This page is complete: it loads nothing.</footer>"
        "</body></html>\n"
    )


def _sections(inputs: ReportInputs, found: Sequence[Change]) -> Iterator[tuple[str, str]]:
    yield "Base and aligned, in numbers", _numbers(inputs, found)
    yield "Who is shown", _histograms(inputs, found)
    yield "The same prompts and seeds, before and after", grids(inputs.grids, inputs.base, inputs.aligned)
    yield "Prompt by prompt", _prompts(inputs)
    yield "Training", _training(inputs.training_log)
    yield "Left out, and why", drops_table(inputs.attributes, inputs.drops)
    yield "What this report cannot say", _limits(inputs)
    yield "To repeat it", _reproducibility(inputs)


def _verdict(inputs: ReportInputs) -> str:
    verdict = judge(inputs)
    parts = [sentence.partition(": ") for sentence in verdict.sentences]
    items = "".join(f"<li><b>{escape(lead)}:</b> {escape(rest)}</li>" for lead, _, rest in parts)
    return (
        f'<div class="verdict {verdict.status}" role="note"><p class="headline"><span aria-hidden="true">'
        f"{SYMBOLS[verdict.status]}</span> {escape(verdict.headline)}</p><ul>{items}</ul></div>"
    )


def _numbers(inputs: ReportInputs, found: Sequence[Change]) -> str:
    share = f"{inputs.confidence:.0%}"
    text = (
        f"<p>Small numbers are {share} intervals (bootstrap over prompts and their images). “Fair sampler” is what a "
        "perfectly fair model would show at this number of images: no discrepancy can be expected to be lower. "
        f"“Improved” and “worse” are said only where the {share} interval of the paired difference excludes zero; “no "
        "clear change” is not proof that nothing changed.</p>"
    )
    recall = recall_table(found, inputs)
    more = f"<details><summary>Recall of every class</summary>{recall}</details>" if recall else ""
    return text + main_table(found, inputs) + more


def _histograms(inputs: ReportInputs, found: Sequence[Change]) -> str:
    shares = {(c.axis, c.metric): c for c in found if c.benchmark == "neutral" and c.metric.startswith("share:")}
    figures = []
    for axis in inputs.axes:
        rows = [shares.get((axis.name, f"share:{name}")) for name in axis.classes]
        known = [row for row in rows if row is not None]
        if len(known) == len(axis.classes):
            sides = ([_bar(row.base) for row in known], [_bar(row.aligned) for row in known])
            chart = class_histogram(axis.name, axis.classes, *sides, axis.shares())
            figures.append((axis.name.capitalize(), chart))
    lead = "<p>Shares of the images of all neutral prompts together. The dashed line is the target.</p>"
    return lead + legend(inputs.base, inputs.aligned) + _figures(figures) if figures else ""


def _prompts(inputs: ReportInputs) -> str:
    figures, tables = [], []
    for axis in inputs.axes:
        rows = _prompt_rows(inputs, axis)
        if not rows:
            continue
        table = inputs.per_prompt[inputs.per_prompt["axis"] == axis.name]
        target = axis.shares()
        largest = max(
            float(discrepancies([float(i == j) for j in range(len(target))], target)) for i in range(len(target))
        )
        chart = prompt_bars(f"{axis.name} discrepancy by prompt", rows[:_MOST_PROMPTS], table["floor"].mean(), largest)
        cut = f", the {_MOST_PROMPTS} most biased of {len(rows)}" if len(rows) > _MOST_PROMPTS else ""
        figures.append((f"{axis.name.capitalize()}{cut}", chart))
        summary = f"All {len(rows)} prompts, {escape(axis.name)}"
        tables.append(f"<details><summary>{summary}</summary>{prompt_table(table, axis, inputs)}</details>")
    lead = (
        "<p>Discrepancy of each prompt on its own, the most biased under the base first: a model can look fair on the "
        "whole while every prompt leans its own way. The dashed line is what a fair sampler would show.</p>"
    )
    return lead + legend(inputs.base, inputs.aligned) + _figures(figures) + "".join(tables) if figures else ""


def _prompt_rows(inputs: ReportInputs, axis: Axis) -> list[tuple[str, float, float]]:
    table = inputs.per_prompt[inputs.per_prompt["axis"] == axis.name]
    sides = [table[table["system"] == name].set_index("prompt_id") for name in (inputs.base, inputs.aligned)]
    both = sides[0].join(sides[1]["discrepancy"].rename("aligned"), how="inner")
    both = both.sort_values(["discrepancy", "text"], ascending=[False, True])
    subjects = _without_common_start([str(text) for text in both["text"]])
    return list(zip(subjects, both["discrepancy"].tolist(), both["aligned"].tolist(), strict=True))


def _without_common_start(texts: Sequence[str]) -> list[str]:
    # "a photo of a " before every label leaves no room for what tells the prompts apart.
    start = min((text for text in texts), key=len, default="")
    while start and not (all(text.startswith(start) and text != start for text in texts) and start.endswith(" ")):
        start = start[:-1]
    if len(texts) < 2:
        return list(texts)
    rest = [text[len(start) :] for text in texts]
    return [text.removeprefix("an ").removeprefix("a ") for text in rest]


def _training(log: pd.DataFrame) -> str:
    figures = []
    for name in dict.fromkeys(log["name"]):
        rows = log[log["name"] == name].sort_values("step")
        finite = rows[rows["value"].map(lambda value: abs(value) < float("inf"))]
        if len(finite) > 1:
            chart = curve(str(name), finite["step"].tolist(), finite["value"].tolist())
            figures.append((str(name).replace("_", " ").capitalize(), chart))
    lead = "<p>Thin: every logged step. Thick: the running mean.</p>"
    return lead + _figures(figures) if figures else "<p>No training was logged for this model.</p>"


def _limits(inputs: ReportInputs) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in (*_LIMITS, *inputs.notes)) + "</ul>"


def _reproducibility(inputs: ReportInputs) -> str:
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in inputs.reproducibility.items()
    )
    return f"<dl>{items}</dl>" if items else ""


def _figures(figures: Sequence[tuple[str, str]]) -> str:
    inner = "".join(f"<figure><figcaption>{escape(title)}</figcaption>{chart}</figure>" for title, chart in figures)
    return f'<div class="charts">{inner}</div>'


def _bar(estimate: Estimate) -> Bar:
    measured = estimate.low == estimate.low  # NaN when there is no interval
    ends = (estimate.low, estimate.high) if measured else (estimate.value, estimate.value)
    return Bar(estimate.value, *ends)
