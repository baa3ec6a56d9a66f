"""How several systems stand against one reference: fairer, at what cost, or not to be told apart."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from popalign_core.config import Axis
from popalign_core.evaluation.paired import NONE_IN_COMMON, OF_BOTH
from popalign_core.report.comparison_inputs import ComparisonInputs
from popalign_core.report.estimates import (
    ORIGIN,
    UNKNOWN,
    Estimate,
    ReportedMeasure,
    Status,
    by_measure,
    combined,
    deciding_benchmarks,
    has_tests,
    judge_difference,
    measures_of,
)
from popalign_core.report.measure_names import FAIRNESS, is_distance, is_shown, listed, number, scorer_name

Place = Literal["fairer", "fairer at a cost", "less fair", "unclear", "unmeasured"]


@dataclass(frozen=True)
class Standing:
    """One system against the reference.

    Attributes:
        system: Its name.
        place: What may be said of it.
        axes: Axis to what may be said of its fairness.
        lost: What got worse, fairness apart.
        doubtful: What would have got worse had it been the only thing compared.
        gained: What got better, fairness apart.
    """

    system: str
    place: Place
    axes: Mapping[str, Status]
    lost: tuple[ReportedMeasure, ...]
    doubtful: tuple[ReportedMeasure, ...]
    gained: tuple[ReportedMeasure, ...]


@dataclass(frozen=True)
class ComparisonResults:
    """The tables of a comparison by measure and system."""

    inputs: ComparisonInputs

    @cached_property
    def measures(self) -> list[ReportedMeasure]:
        """Every measure, in the order of the metrics tables."""
        return measures_of(self.inputs.metrics)

    @cached_property
    def _values(self) -> dict[tuple[str, ReportedMeasure], Estimate]:
        return by_measure(self.inputs.metrics)

    @cached_property
    def _differences(self) -> dict[tuple[str, ReportedMeasure], Estimate]:
        return by_measure(self.inputs.comparison)

    @cached_property
    def _has_tests(self) -> bool:
        return has_tests(self.inputs.comparison)

    @cached_property
    def benchmarks(self) -> dict[str, str]:
        """Axis to the benchmark that decides."""
        return deciding_benchmarks(self.measures)

    @property
    def axes(self) -> list[Axis]:
        """Those that a discrepancy was measured on."""
        return [axis for axis in self.inputs.axes if axis.name in self.benchmarks]

    @property
    def fairness(self) -> list[ReportedMeasure]:
        """The mean discrepancy over prompts of each of `axes`."""
        return [ReportedMeasure(self.benchmarks[axis.name], FAIRNESS[1], axis.name) for axis in self.axes]

    @property
    def headlines(self) -> list[ReportedMeasure]:
        """What the tables of the paper show; the rest is in the table of every number."""
        return [m for m in self.measures if is_shown(m.metric, is_crowded=True)]

    def value(self, system: str, measure: ReportedMeasure) -> Estimate:
        """What a system was measured to have."""
        is_origin = system == self.inputs.reference and is_distance(measure.metric)
        return self._values.get((system, measure), ORIGIN if is_origin else UNKNOWN)

    def difference(self, system: str, measure: ReportedMeasure) -> Estimate:
        """A system minus the reference."""
        return self._differences.get((system, measure), UNKNOWN)

    def status(self, system: str, measure: ReportedMeasure) -> Status:
        """What may be said of the difference."""
        difference, share = self.difference(system, measure), self.inputs.confidence
        return judge_difference(measure.metric, difference, share, tested=self._has_tests)

    def is_partial(self, system: str, measures: Sequence[ReportedMeasure]) -> bool:
        """Whether its pictures were made elsewhere and, of some measure, not of the prompts of the reference."""
        others = self.inputs.others if system == self.inputs.reference else [system]
        notes = [self.difference(name, m).note for name in others for m in measures]
        return system in self.inputs.elsewhere and any(OF_BOTH in note or NONE_IN_COMMON in note for note in notes)

    def standing(self, system: str) -> Standing:
        """One system against the reference, from intervals and adjusted p-values alone."""
        axes = {axis.name: self._fairness(system, axis.name) for axis in self.axes}
        found = {m: self.status(system, m) for m in self.headlines if not self.decides(m) and self.counts(m)}
        lost = tuple(m for m, status in found.items() if status == "worse")
        gained = tuple(m for m, status in found.items() if status == "improved")
        doubtful = tuple(m for m, status in found.items() if status == "doubtful")
        return Standing(system, _place(list(axes.values()), bool(lost)), axes, lost, doubtful, gained)

    def decides(self, measure: ReportedMeasure) -> bool:
        """Whether a system is called fairer or less fair by this measure."""
        return measure.metric in FAIRNESS and measure.benchmark == self.benchmarks[measure.axis]

    def counts(self, measure: ReportedMeasure) -> bool:
        """Whether a change is a gain or a loss; faces are looked for where shares are read off them."""
        return measure.metric != "no_face_share" or measure.benchmark in self.benchmarks.values()

    def _fairness(self, system: str, axis: str) -> Status:
        return combined([self.status(system, m) for m in self.measures if self.decides(m) and m.axis == axis])


@dataclass(frozen=True)
class Summary:
    """The head of the page: its status, a headline, and (lead, text) pairs, the most important first."""

    status: Status
    headline: str
    sentences: tuple[tuple[str, str], ...]


def summarise_many(results: ComparisonResults) -> Summary:
    """What a release manager must know."""
    inputs = results.inputs
    standings = [results.standing(name) for name in inputs.others]
    fairer = [s.system for s in standings if s.place.startswith("fairer")]
    costly = [s.system for s in standings if s.place == "fairer at a cost"]
    if fairer:
        headline = _count(fairer, len(standings)) + f" fairer than {inputs.reference}"
        headline += ", at a measurable cost" if fairer == costly else f", {len(costly)} at a cost" if costly else ""
        status: Status = "improved"
    elif all(s.place == "unmeasured" for s in standings):
        status, headline = "unmeasured", "Fairness cannot be judged: there is no interval; use more prompts"
    else:
        status = "worse" if all(s.place == "less fair" for s in standings) else "unclear"
        headline = f"No system is shown to be fairer than {inputs.reference}"
    return Summary(status, headline, tuple(_sentences(results, standings)))


def _place(statuses: Sequence[Status], is_costly: bool) -> Place:
    places: dict[Status, Place] = {
        "worse": "less fair",
        "improved": "fairer at a cost" if is_costly else "fairer",
        "unclear": "unclear",
        "doubtful": "unclear",
        "untested": "unmeasured",
        "unmeasured": "unmeasured",
    }
    return places[combined(statuses)]


_LEADS: tuple[tuple[Place, str], ...] = (
    ("fairer", "Fairer, at no significant cost"),
    ("fairer at a cost", "Fairer, at a cost"),
    ("less fair", "Less fair"),
    ("unclear", "No significant difference in fairness from {reference}"),
    ("unmeasured", "Not tested against {reference}: no interval or no common seeds"),
)


def _sentences(results: ComparisonResults, standings: Sequence[Standing]) -> Iterator[tuple[str, str]]:
    for place, lead in _LEADS:
        chosen = [standing for standing in standings if standing.place == place]
        if chosen:
            parts = "; ".join(standing.system + _losses(results, standing) for standing in chosen)
            yield lead.format(reference=results.inputs.reference), f"{parts}."


def _losses(results: ComparisonResults, standing: Standing) -> str:
    parts = []
    for lead, measures in (("worse", standing.lost), ("perhaps worse", standing.doubtful)):
        is_all = any(m.metric == "recall" and m.axis == "all" for m in measures)  # then its parts need no words
        said = [m for m in measures if not (is_all and m.metric == "recall" and m.axis != "all")]
        shifts = [(m, results.difference(standing.system, m).value) for m in said]
        names = [f"{_short(m)} {number(shift, m.metric, signed=True)}" for m, shift in shifts]
        parts += [f"{lead}: {listed(names)}"] if names else []
    return f" ({'; '.join(parts)})" if parts else ""


def _short(measure: ReportedMeasure) -> str:
    if measure.metric == "recall":
        return "recall" if measure.axis == "all" else f"recall of {measure.axis}"
    return measure.name if measure.axis else f"{scorer_name(measure.metric)} on {measure.benchmark} prompts"


def _count(names: list[str], total: int) -> str:
    if len(names) <= 2:
        return f"{listed(names)} {'is' if len(names) == 1 else 'are'}"
    return f"{len(names)} of {total} systems are"
