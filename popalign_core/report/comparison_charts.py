"""The charts of a comparison of several systems."""

from html import escape

from popalign_core.report.by_prompt import MOST_PROMPTS, axis_rows, largest_discrepancy, paired_prompts
from popalign_core.report.comparison_inputs import ComparisonInputs
from popalign_core.report.document import details, figures
from popalign_core.report.estimates import ReportedMeasure
from popalign_core.report.front import FrontPoint, front_chart, front_table
from popalign_core.report.measure_names import is_distance
from popalign_core.report.plots import dumbbells, forest, strips, system_bars
from popalign_core.report.standings import ComparisonResults
from popalign_core.report.system_tables import prompt_tables


def forests(results: ComparisonResults) -> str:
    """Differences to the reference with intervals: fairness and quality, the rest folded away."""
    first, rest = list[tuple[str, str]](), list[tuple[str, str]]()
    for measure in results.headlines:
        rows = [(s, results.difference(s, measure), results.status(s, measure)) for s in results.inputs.others]
        if any(difference.is_measured for _, difference, _ in rows):
            chart = (measure.name, forest(f"{measure.name}, difference", measure.metric, rows))
            (first if results.decides(measure) or measure in quality_measures(results)[:2] else rest).append(chart)
    lead = "<p>Filled dots differ significantly from zero, hollow ones do not; the dashed line marks no difference.</p>"
    return lead + figures(first) + details("Recall and further metrics", figures(rest)) if first else ""


def quality_measures(results: ComparisonResults) -> list[ReportedMeasure]:
    """Scores of pictures; those of the very pictures whose classes are counted first."""
    found = [m for m in results.headlines if not m.axis and m.metric != "no_face_share" and not is_distance(m.metric)]
    return sorted(found, key=lambda m: m.benchmark not in results.benchmarks.values())


def fronts(results: ComparisonResults) -> str:
    """Discrepancy against each measure of quality, with the Pareto front; the first measure unfolded."""
    blocks, has_partial = [], False
    for y in quality_measures(results):
        charts, tables = [], ""
        for x in results.fairness:
            known = [
                FrontPoint(s, results.value(s, x), results.value(s, y), results.is_partial(s, (x, y)))
                for s in results.inputs.systems
            ]
            points = [p for p in known if p.x.is_measured and p.y.is_measured]
            has_partial |= any(p.is_partial for p in points)
            if len(points) > 1:
                title = f"{x.axis} and {y.name}"
                charts.append((title[:1].upper() + title[1:], front_chart(title, points, x, y)))
                tables += details(f"Points: {title}", front_table(points, x, y))
        blocks.append((f"Against {y.name}", figures(charts) + tables))
    if not any(content for _, content in blocks):
        return ""
    lead = (
        "<p>Full dots are on the Pareto front, joined by the dashed line: no other system is better in one of the two "
        "and no worse in the other. Hollow ones are dominated. Thin lines are intervals: where they overlap, which of "
        "two dominates may be chance.</p>"
    )
    if has_partial:
        lead += (
            "<p>Diamonds, ◆ and ◇, are external images that do not cover the same prompts as the dots: where they "
            "stand may be due to their prompts. The differences above use the prompts of both.</p>"
        )
    names = "".join(f"<li>{escape(name)}</li>" for name in results.inputs.systems)
    (_, shown), *folded = blocks
    return f'{lead}<ol class="key">{names}</ol>{shown}' + "".join(details(*block, is_printed=False) for block in folded)


def histograms(results: ComparisonResults) -> str:
    """Shares of every class under every system, with the target."""
    inputs, blocks = results.inputs, ""
    for axis in results.axes:
        charts = []
        for name, target in zip(axis.classes, axis.shares(), strict=True):
            measure = ReportedMeasure(results.benchmarks[axis.name], f"share:{name}", axis.name)
            rows = [(system, results.value(system, measure)) for system in inputs.systems]
            if any(value.is_measured for _, value in rows):
                chart = system_bars(f"Share of {name}", measure.metric, rows, inputs.reference, target)
                charts.append((f"{axis.name.capitalize()}: {name}", chart))
        blocks += figures(charts)
    lead = "<p>Shares of the images of all neutral prompts together. The dashed line is the target, {} hatched.</p>"
    return lead.format(escape(inputs.reference)) + blocks if blocks else ""


def prompts(inputs: ComparisonInputs) -> str:
    """All prompts of every system at once, and each system beside the reference, sorted by bias."""
    overview, folded = [], ""
    for axis in inputs.axes:
        table = axis_rows(inputs.per_prompt, axis)
        if table.empty:
            continue
        floor, largest = float(table["floor"].mean()), largest_discrepancy(axis)
        values = {system: group["discrepancy"].tolist() for system, group in table.groupby("system")}
        rows = [(system, values.get(system, [])) for system in inputs.systems]
        name, title = axis.name.capitalize(), f"{axis.name} discrepancy by prompt"
        overview.append((f"{name}: a ring a prompt", strips(title, rows, floor, largest)))
        charts = []
        for system in inputs.others:
            pairs = paired_prompts(inputs.per_prompt, axis, inputs.reference, system)[:MOST_PROMPTS]
            chart = dumbbells(f"{axis.name}, {inputs.reference} and {system}", pairs, floor, largest)
            charts.append((f"{name}: {inputs.reference} ○ to {system} ●", chart))
        summary = f"Per prompt, {axis.name}: the most biased under {inputs.reference} first"
        folded += details(summary, figures(charts), is_printed=False)
        folded += details(f"All prompts, {axis.name}", prompt_tables(inputs, axis))
    lead = (
        "<p>Discrepancy of each prompt: a model can look fair overall while every prompt leans its own "
        "way. The thick bar is the mean over prompts, the dashed line what a fair sampler would show.</p>"
    )
    return lead + figures(overview) + folded if overview else ""
