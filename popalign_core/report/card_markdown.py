"""The same in Markdown, for a model card: verdict, tables with intervals, limits."""

import re
from collections.abc import Iterator, Mapping, Sequence

from popalign_core.report.comparison_inputs import ComparisonInputs
from popalign_core.report.comparison_page import TITLES, check_tables, describe_systems
from popalign_core.report.estimates import SYMBOLS, WORDS, Estimate, ReportedMeasure, Status, interval_words
from popalign_core.report.limits import limits
from popalign_core.report.markdown import escape_markdown, markdown_table, unescape_markdown
from popalign_core.report.measure_names import column_name, floor_words, is_shown, number
from popalign_core.report.standings import ComparisonResults
from popalign_core.report.verdict import find_verdict

_HEADLINE = re.compile(rf"^\*\*((?:{'|'.join(sorted(set(SYMBOLS.values())))}) .+)\*\*$", re.MULTILINE)


def comparison_markdown(inputs: ComparisonInputs) -> str:
    """Two or more systems side by side, without charts and images.

    Args:
        inputs: As for the page.

    Returns:
        Markdown with headings of the second and third level.

    Raises:
        InputError: As `build_comparison`.
    """
    check_tables(inputs)
    results = ComparisonResults(inputs)
    parts = [
        f"## {escape_markdown(inputs.title)}\n",
        *(f"{escape_markdown(text)}\n" for text in describe_systems(inputs)),
        verdict_markdown(results),
    ]
    if len(inputs.systems) == 2:
        parts += _pair(results)
    else:
        for benchmark in dict.fromkeys(m.benchmark for m in results.headlines):
            parts.append(f"### {escape_markdown(TITLES.get(benchmark, f'Prompts “{benchmark}”'))}\n")
            parts += _benchmark(results, [m for m in results.headlines if m.benchmark == benchmark])
    said = limits(inputs.metrics, inputs.comparison, inputs.n_seeds)
    parts += [_explained(inputs.confidence), *_closing([*said, *inputs.notes], inputs.reproducibility)]
    return "\n".join(parts)


def verdict_markdown(results: ComparisonResults) -> str:
    """The verdict alone: its headline and its sentences."""
    summary = find_verdict(results)
    return _verdict(summary.status, summary.headline, summary.sentences)


def read_headline(card: str) -> str | None:
    """The verdict's headline with its sign, as text, out of what `comparison_markdown` wrote; None if it has none."""
    found = _HEADLINE.search(card)
    return None if found is None else unescape_markdown(found[1])


class _Notes:
    """Reasons of what could not be measured, each once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, note: str) -> str:
        return f" [{self._numbers.setdefault(note, len(self._numbers) + 1)}]"

    def lines(self) -> list[str]:
        return (
            ["".join(f"- [{n}] {escape_markdown(note)}\n" for note, n in self._numbers.items())]
            if self._numbers
            else []
        )


def _pair(results: ComparisonResults) -> Iterator[str]:
    """A row a measure."""
    reference, (system,) = results.inputs.reference, results.inputs.others
    notes, rows = _Notes(), []
    for measure in results.measures:
        if is_shown(measure.metric):
            sides = [_cell(results.value(name, measure), measure.metric, notes) for name in (reference, system)]
            difference = results.difference(system, measure)
            shift = _cell(difference, measure.metric, notes, signed=True) if difference.is_measured else "–"
            rows.append([escape_markdown(measure.name), *sides, shift, _mark(results.status(system, measure))])
    heads = ("Measure", reference, system, "Change", "Verdict")
    yield markdown_table([escape_markdown(head) for head in heads], rows)
    yield from notes.lines()


def _benchmark(results: ComparisonResults, measures: Sequence[ReportedMeasure]) -> Iterator[str]:
    notes = _Notes()
    rows = []
    for system in results.inputs.systems:
        cells = []
        for measure in measures:
            cell = _cell(results.value(system, measure), measure.metric, notes)
            is_compared = results.difference(system, measure).is_measured
            cells.append(f"{cell} {SYMBOLS[results.status(system, measure)]}" if is_compared else cell)
        rows.append([escape_markdown(system), *cells])
    yield markdown_table(["System", *(escape_markdown(column_name(m.metric, m.axis)) for m in measures)], rows)
    yield from notes.lines()


def _cell(estimate: Estimate, metric: str, notes: _Notes, *, signed: bool = False) -> str:
    if not estimate.is_measured:
        return f"not measured{notes.mark(estimate.note)}"
    shown = (interval_words(estimate, metric, signed=signed) + floor_words(estimate.floor, metric)).lstrip("; ")
    return number(estimate.value, metric, signed=signed) + (f" ({shown})" if shown else "")


def _mark(status: Status) -> str:
    return f"{SYMBOLS[status]} {WORDS[status]}"


def _verdict(status: Status, headline: str, sentences: Sequence[tuple[str, str]]) -> str:
    items = "".join(f"- **{escape_markdown(lead)}:** {escape_markdown(rest)}\n" for lead, rest in sentences)
    return f"**{SYMBOLS[status]} {escape_markdown(headline)}**\n\n{items}"


def _explained(confidence: float) -> str:
    return (
        f"In brackets: {confidence:.0%} intervals, and what a fair sampler would show at this number of images. "
        f"{SYMBOLS['improved']} and {SYMBOLS['worse']}: the interval of the paired difference excludes zero, and the "
        f"p-value, where there is one, is as small after adjusting for the number of comparisons (Holm). "
        f"{SYMBOLS['unclear']}: it cannot be told.\n"
    )


def _closing(said: Sequence[str], reproducibility: Mapping[str, str]) -> Iterator[str]:
    yield "### Limitations\n"
    yield "".join(f"- {escape_markdown(text)}\n" for text in said)
    if reproducibility:
        yield "### Reproducibility\n"
        yield "".join(
            f"- {escape_markdown(name)}: {escape_markdown(value)}\n"
            for name, value in reproducibility.items()
            if not _is_document(value)
        )
        for name, value in reproducibility.items():
            if _is_document(value):  # to be copied as it is; JSON has no line of backticks
                yield f"{escape_markdown(name)}:\n\n```json\n{value}\n```\n"


def _is_document(value: str) -> bool:
    return value.startswith("{") and "\n" not in value
