"""Two or more systems side by side as one HTML page: a verdict, the paper's tables, and what stands behind them.

A run's report is this page for base and aligned model, with the training between them.
"""

from collections.abc import Iterator
from html import escape

from popalign_core.report.by_prompt import largest_discrepancy
from popalign_core.report.comparison_charts import forests, fronts, histograms, prompts
from popalign_core.report.comparison_inputs import ComparisonInputs, check_comparison
from popalign_core.report.document import (
    bullets,
    definitions,
    details,
    figures,
    html_page,
    quick_look,
    verdict_box,
    warning,
)
from popalign_core.report.estimates import Status, check_scorers, has_tests
from popalign_core.report.image_strips import system_grids
from popalign_core.report.limits import few_images, limits
from popalign_core.report.measure_names import listed
from popalign_core.report.pair_table import pair_table
from popalign_core.report.plots import system_bars
from popalign_core.report.readings_section import readings_section
from popalign_core.report.standings import ComparisonResults, Summary
from popalign_core.report.system_tables import (
    agreement_table,
    benchmark_tables,
    class_recall_tables,
    cost_table,
    drop_table,
    glance_table,
    systems_table,
    win_tables,
)
from popalign_core.report.training_section import training_curves, training_drop_table
from popalign_core.report.verdict import find_verdict

TITLES = {
    "neutral": "Prompts that name no identity (the paper's Table 1)",
    "specific": "Prompts that name an identity (the paper's Table 2)",
    "generic": "Prompts of every kind (the paper's Table 3)",
}
"""Headings by benchmark."""


def build_comparison(inputs: ComparisonInputs) -> str:
    """Build the page.

    Args:
        inputs: Tables and images of all systems.

    Returns:
        A complete HTML document.

    Raises:
        InputError: When the tables or pictures do not fit together, or scorers differ (see `check_comparison`).
    """
    check_tables(inputs)
    results = ComparisonResults(inputs)
    summary = find_verdict(results)
    return html_page(inputs.title, _head(results, summary), _sections(results, summary))


def check_tables(inputs: ComparisonInputs) -> None:
    """Refuse what would give a wrong page or table.

    Raises:
        InputError: See `check_comparison` and `check_scorers`.
    """
    check_comparison(inputs)
    check_scorers(inputs.metrics)


def describe_systems(inputs: ComparisonInputs) -> list[str]:
    """What was compared, and whether this is a quick look only."""
    seeds = f"{inputs.n_seeds} seeds each" if inputs.n_seeds > 1 else "one seed"
    same = "the same prompts" if inputs.elsewhere else f"the same prompts and seeds ({seeds})"
    text = (
        f"{len(inputs.systems)} systems on {same}; {inputs.reference} is the reference."
        if len(inputs.systems) > 2
        else f"{inputs.others[0]} compared with {inputs.reference}, on {same}."
    )
    if inputs.elsewhere:
        text += (
            f" The images of {listed(list(inputs.elsewhere))} were made elsewhere, with other seeds and perhaps not "
            "for all prompts: they are compared per prompt, on the prompts of both."
        )
    warnings = (*quick_look(inputs.scale), *few_images(inputs.metrics.to_dict("records")))
    return [" ".join((text, *_measured(inputs))), *warnings]


def _measured(inputs: ComparisonInputs) -> Iterator[str]:
    """Which model, which preset, and how many images. No date: the same run again is the same page."""
    if inputs.model:
        yield f"Model: {inputs.model}."
        yield f"Preset: {inputs.preset}." if inputs.preset else "Preset: none; see the configuration below."
    sampled = inputs.costs[inputs.costs["unit"] == "images"]
    if len(sampled):
        yield f"Images: {', '.join(f'{row.value:,.0f} of {row.system}' for row in sampled.itertuples())}."


def _head(results: ComparisonResults, summary: Summary) -> str:
    first, *warnings = describe_systems(results.inputs)
    lead = f'<p class="soft">{escape(first)}</p>' + "".join(map(warning, warnings))
    return lead + verdict_box(summary.status, summary.headline, summary.sentences)


def _sections(results: ComparisonResults, summary: Summary) -> Iterator[tuple[str, str]]:
    inputs = results.inputs
    yield from _pair_sections(results) if len(inputs.systems) == 2 else _system_sections(results)
    yield f"Differences to {inputs.reference}", forests(results)
    if len(inputs.systems) > 2:
        yield "Fairness and quality", fronts(results)
    yield "Win rates by scorer", win_tables(inputs)
    yield "Class distribution", histograms(results)
    yield "The same prompts and seeds", system_grids(inputs.grids, inputs.systems)
    yield "Results per prompt", prompts(inputs)
    yield "Training", training_curves(inputs.training_log)
    yield "Dropped images", _left_out(results)
    yield "Classifier agreement", agreement_table(inputs.metrics)
    yield "Other classifiers and detectors", readings_section(inputs)
    yield "Cost", cost_table(inputs.costs)
    yield "All metrics", _every_number(results)
    yield (
        "Limitations",
        bullets((*limits(inputs.metrics, inputs.comparison, inputs.n_seeds), *inputs.notes)),
    )
    yield "Next steps", _what_next(summary.status)
    yield "Reproducibility", definitions(inputs.reproducibility)


def _pair_sections(results: ComparisonResults) -> Iterator[tuple[str, str]]:
    inputs = results.inputs
    (system,) = inputs.others
    benchmarks = dict.fromkeys(m.benchmark for m in results.measures)
    recall = "".join(class_recall_tables(results, benchmark) for benchmark in benchmarks)
    share = f"{inputs.confidence:.0%}"
    text = (
        f"<p>Small numbers are {share} intervals, for prompts like these. “Fair sampler” is what a perfectly fair "
        "model would show at this number of images: no lower discrepancy can be expected. “Improved” and "
        f"“worse” mean that the {share} interval of the difference excludes zero{_and_tested(inputs)}. "
        f"“No clear change” does not prove that nothing changed.</p>{_definition(inputs)}"
    )
    name = f"{inputs.reference[:1].upper()}{inputs.reference[1:]} and {system}, in numbers"
    yield name, text + pair_table(results) + details("Recall of every class", recall)


def _system_sections(results: ComparisonResults) -> Iterator[tuple[str, str]]:
    yield f"Summary: each system against {results.inputs.reference}", _glance(results)
    for benchmark in dict.fromkeys(m.benchmark for m in results.measures):
        tables = benchmark_tables(results, benchmark)
        content = "".join(f"<h3>{escape(caption)}</h3>{table}" for caption, table in tables)
        more = class_recall_tables(results, benchmark)
        yield TITLES.get(benchmark, f"Prompts “{benchmark}”"), content + details("Recall of every class", more)


def _glance(results: ComparisonResults) -> str:
    inputs = results.inputs
    share, reference = f"{inputs.confidence:.0%}", escape(inputs.reference)
    text = (
        f"<p>✔ and ✖ mean that the {share} interval of the difference to {reference} excludes "
        f"zero{_and_tested(inputs)}. ≈ does not prove that nothing changed. Systems other "
        f"than {reference} are not tested against each other: read their intervals.</p><p>Small numbers in all tables "
        f"are {share} intervals, for prompts like these. “fair” beside a discrepancy is what a perfectly fair model "
        f"would show at this number of images: no lower value can be expected.</p>{_definition(inputs)}"
    )
    return glance_table(results, [results.standing(name) for name in inputs.others]) + text


def _and_tested(inputs: ComparisonInputs) -> str:
    """How p-values take part in a verdict, or that there are none."""
    if not has_tests(inputs.comparison):
        return (
            ": there are no p-values here, since images without common seeds, or in different numbers, cannot be "
            "exchanged, so nothing is adjusted for the number of comparisons"
        )
    return (
        " and its p-value, adjusted for the number of comparisons (Holm), is significant; “perhaps worse” is no longer "
        "significant after the adjustment; “not tested” (–) has no p-value"
    )


def _definition(inputs: ComparisonInputs) -> str:
    """What a discrepancy is, and the largest one."""
    largest = listed([f"{largest_discrepancy(axis):.3f} ({axis.name})" for axis in inputs.axes])
    return (
        "<p>A discrepancy is the distance of the shares of an attribute's classes from their targets: 0 at the "
        f"targets, and at most {escape(largest)}, when every image shows the class with the smallest target.</p>"
    )


def _what_next(status: Status) -> str:
    """Where to go from a verdict."""
    more = "Evaluate more: evaluation.n_neutral and prompts.eval_lists, or your own model with `popalign evaluate`."
    steps: dict[Status, tuple[str, ...]] = {
        "improved": (
            "Put thresholds into CI: `popalign check MODEL --max-discrepancy ... --min-recall ...`.",
            "Ask people: `popalign study create` compares the images of both systems blindly.",
            "Try your own prompts: prompts.eval_lists; the intervals apply to prompts like these only.",
        ),
        "worse": (
            "Look at the training curves and the dropped images above.",
            "Sweep the parameters: `popalign sweep training.beta=10,20,40`.",
        ),
    }
    return bullets(steps.get(status, (more, "Sweep the parameters: `popalign sweep training.beta=10,20,40`.")))


def _every_number(results: ComparisonResults) -> str:
    text = "<p>With p-values and notes; left out on paper, for its length. The tables beside this page have it too.</p>"
    return text + details("All metrics of all systems", systems_table(results), is_printed=False)


def _left_out(results: ComparisonResults) -> str:
    inputs = results.inputs
    charts = []
    for measure in results.measures:
        if measure.metric == "no_face_share":
            rows = [(name, results.value(name, measure)) for name in inputs.systems]
            charts.append((measure.name, system_bars(measure.name, measure.metric, rows, inputs.reference)))
    by_reason = details("By reason", drop_table(inputs.drops))
    return figures(charts) + by_reason + training_drop_table(inputs.training_drops)
