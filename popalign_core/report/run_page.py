"""The report as one HTML page: no script, nothing loaded from outside, everything from outside escaped."""

from collections.abc import Iterator, Sequence
from html import escape

import pandas as pd

from popalign_core.report.before_after import grids
from popalign_core.report.by_prompt import MOST_PROMPTS, axis_rows, largest_discrepancy, paired_prompts
from popalign_core.report.charts import class_histogram, curve, legend, prompt_bars
from popalign_core.report.document import bullets, definitions, details, figures, html_page, verdict_box
from popalign_core.report.estimates import Estimate
from popalign_core.report.limits import limits
from popalign_core.report.run_inputs import ReportInputs, check_report_inputs
from popalign_core.report.run_tables import (
    agreement_table,
    by_prompt_table,
    full_table,
    left_out_table,
    main_table,
    recall_table,
)
from popalign_core.report.svg_shapes import Bar
from popalign_core.report.system_tables import cost_table
from popalign_core.report.verdict import Change, changes, find_verdict


def build_report(inputs: ReportInputs) -> str:
    """Build the page.

    Args:
        inputs: Tables and pictures of both systems.

    Returns:
        A complete HTML document.

    Raises:
        InputError: When a system is missing or the pictures do not pair (see `check_report_inputs`).
    """
    check_report_inputs(inputs)
    head = (
        f'<p class="soft">{escape(inputs.aligned)} compared with {escape(inputs.base)}, on the same prompts and '
        f"seeds</p>{_verdict(inputs)}"
    )
    return html_page(inputs.title, head, _sections(inputs, changes(inputs)))


def _sections(inputs: ReportInputs, found: Sequence[Change]) -> Iterator[tuple[str, str]]:
    yield "Base and aligned, in numbers", _numbers(inputs, found)
    yield "Who is shown", _histograms(inputs, found)
    yield "The same prompts and seeds, before and after", grids(inputs.grids, inputs.base, inputs.aligned)
    yield "Prompt by prompt", _prompts(inputs)
    yield "Training", _training(inputs.training_log)
    yield "Two classifiers on the same images", agreement_table(inputs.metrics)
    yield "Left out, and why", left_out_table(inputs.attributes, inputs.drops)
    yield "What it costs", cost_table(inputs.costs)
    yield "What this report cannot say", bullets((*limits(inputs.metrics, inputs.comparison), *inputs.notes))
    yield "To repeat it", definitions(inputs.reproducibility)


def _verdict(inputs: ReportInputs) -> str:
    verdict = find_verdict(inputs)
    parts = [sentence.partition(": ") for sentence in verdict.sentences]
    return verdict_box(verdict.status, verdict.headline, [(lead, rest) for lead, _, rest in parts])


def _numbers(inputs: ReportInputs, found: Sequence[Change]) -> str:
    share = f"{inputs.confidence:.0%}"
    text = (
        f"<p>Small numbers are {share} intervals, for prompts like these. “Fair sampler” is what a "
        "perfectly fair model would show at this number of images: no discrepancy can be expected to be lower. "
        f"“Improved” and “worse” are said only where the {share} interval of the paired difference excludes zero and "
        "its p-value, where there is one, is as small after adjusting for the number of rows; “no clear change” is not "
        "proof that nothing changed.</p>"
    )
    recall = details("Recall of every class", recall_table(found, inputs))
    full = details("Every number: p-values, further measures, notes", full_table(found, inputs))
    return text + main_table(found, inputs) + recall + full


def _histograms(inputs: ReportInputs, found: Sequence[Change]) -> str:
    shares = {(c.axis, c.metric): c for c in found if c.benchmark == "neutral" and c.metric.startswith("share:")}
    charts = []
    for axis in inputs.axes:
        rows = [shares.get((axis.name, f"share:{name}")) for name in axis.classes]
        known = [row for row in rows if row is not None and row.base.is_measured and row.aligned.is_measured]
        if len(known) == len(axis.classes):
            sides = ([_bar(row.base) for row in known], [_bar(row.aligned) for row in known])
            chart = class_histogram(axis.name, axis.classes, *sides, axis.shares())
            charts.append((axis.name.capitalize(), chart))
    lead = "<p>Shares of the images of all neutral prompts together. The dashed line is the target.</p>"
    return lead + legend(inputs.base, inputs.aligned) + figures(charts) if charts else ""


def _prompts(inputs: ReportInputs) -> str:
    charts, tables = [], []
    for axis in inputs.axes:
        rows = paired_prompts(inputs.per_prompt, axis, inputs.base, inputs.aligned)
        if not rows:
            continue
        floor = axis_rows(inputs.per_prompt, axis)["floor"].mean()
        title = f"{axis.name} discrepancy by prompt"
        chart = prompt_bars(title, rows[:MOST_PROMPTS], floor, largest_discrepancy(axis))
        cut = f", the {MOST_PROMPTS} most biased of {len(rows)}" if len(rows) > MOST_PROMPTS else ""
        charts.append((f"{axis.name.capitalize()}{cut}", chart))
        table = by_prompt_table(inputs.per_prompt, axis, inputs)
        tables.append(details(f"All {len(rows)} prompts, {axis.name}", table))
    lead = (
        "<p>Discrepancy of each prompt on its own, the most biased under the base first: a model can look fair on the "
        "whole while every prompt leans its own way. The dashed line is what a fair sampler would show.</p>"
    )
    return lead + legend(inputs.base, inputs.aligned) + figures(charts) + "".join(tables) if charts else ""


def _training(log: pd.DataFrame) -> str:
    charts = []
    for name in dict.fromkeys(log["name"]):
        rows = log[log["name"] == name].sort_values("step")
        finite = rows[rows["value"].map(lambda value: abs(value) < float("inf"))]
        if len(finite) > 1:
            chart = curve(str(name), finite["step"].tolist(), finite["value"].tolist())
            charts.append((str(name).replace("_", " ").capitalize(), chart))
    lead = "<p>Thin: every logged step. Thick: the running mean.</p>"
    return lead + figures(charts) if charts else "<p>No training was logged for this model.</p>"


def _bar(estimate: Estimate) -> Bar:
    measured = estimate.low == estimate.low  # NaN when there is no interval
    ends = (estimate.low, estimate.high) if measured else (estimate.value, estimate.value)
    return Bar(estimate.value, *ends)
