"""Tables that the command line prints."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flows.plan.costs import Cost
    from flows.plan.planning import PlannedNode
    from popalign_core.evaluation.thresholds import GateOutcome
    from popalign_core.report.standings import ComparisonResults
    from storage.store import GarbageReport

Row = Mapping[Any, Any]
VERDICT = (
    ("neutral", "discrepancy_pooled", "pooled discrepancy"),
    ("neutral", "discrepancy_per_prompt", "per-prompt discrepancy"),
    ("specific", "recall", "identity recall"),
    ("neutral", "clip_score", "CLIP score, neutral"),
    ("generic", "clip_score", "CLIP score, generic"),
    ("generic", "subject_accuracy", "subject accuracy, generic"),
)
"""(benchmark, metric, what a reader calls it), in the order of the table."""


def plan_lines(nodes: Sequence["PlannedNode"], costs: Mapping[str, "Cost"] | None = None) -> list[str]:
    """One line a stage: hit or miss, work, time, key; and a total of the work that is left.

    Args:
        nodes: Of the plan.
        costs: Of those that are not in the store; without, times are left out.
    """
    width = max(24, *(len(node.node) for node in nodes))
    lines = [
        f"{node.node:<{width}} {'hit ' if node.is_hit else 'miss'}  {_work(node):<14} "
        f"{'' if costs is None else f'{_time(costs.get(node.node)):<12} '}{node.ref}"
        for node in nodes
    ]
    misses = [node for node in nodes if not node.is_hit]
    sampled = sum(node.n_images for node in misses if node.node.startswith("sample"))
    steps = sum(node.n_steps for node in misses)
    total = f"{len(misses)} of {len(nodes)} stages to run: about {sampled} images to sample, {steps} training steps"
    if not misses:
        return [*lines, f"all {len(nodes)} stages are in the store"]
    return [*lines, total, *(cost_lines(costs) if costs else ())]


def plan_json(nodes: Sequence["PlannedNode"], costs: Mapping[str, "Cost"]) -> str:
    """The same for programs: an object a stage; seconds are null where no rate is known, and 0 for a hit."""
    rows = []
    for node in nodes:
        cost = costs.get(node.node)
        left = {"seconds": 0.0, "n_bytes": 0.0, "n_calls": 0} if cost is None else asdict(cost)
        work = {"n_images": node.n_images, "n_steps": node.n_steps}
        rows.append({"node": node.node, "key": node.ref.key, "is_hit": node.is_hit, **work, **left})
    return json.dumps(rows, indent=1)


def rows_json(rows: Iterable[Row]) -> str:
    """Rows of a table for programs: a list of objects, where what is absent is null."""
    return json.dumps([{str(name): _plain(value) for name, value in row.items()} for row in rows], indent=1)


def whole_work_line(n_images: int, n_steps: int, n_bytes: float) -> str:
    """What a run is that begins with nothing, where its plan cannot be made for what this machine lacks."""
    return (
        f"a complete run: about {n_images} images to sample, {n_steps} training steps, "
        f"{n_bytes / 2**20:.1f} MiB of images"
    )


def cost_lines(costs: Mapping[str, "Cost"]) -> list[str]:
    """What all of it takes: time, disk, paid calls; and of what the time is not known."""
    unknown = [node for node, cost in costs.items() if cost.seconds is None]
    seconds = sum(cost.seconds or 0.0 for cost in costs.values())
    n_bytes, n_calls = sum(cost.n_bytes for cost in costs.values()), sum(cost.n_calls for cost in costs.values())
    paid = f", {n_calls} or more calls of the language model" if n_calls else ""
    lines = [f"about {spell_seconds(seconds)}, {n_bytes / 2**20:.1f} MiB in the store{paid}"]
    if unknown:
        lines.append(
            f"not included, no rate known on this machine: {', '.join(unknown)}; "
            "`popalign plan --measure` measures them"
        )
    return lines


def spell_seconds(seconds: float) -> str:
    """`40 s`, `3 min 20 s`, `5 h 12 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def verdict_lines(results: "ComparisonResults") -> list[str]:
    """Base beside aligned with their intervals, and the report's verdict in its own words."""
    from popalign_core.report.verdict import find_verdict

    rows = results.inputs.metrics.to_dict("records")
    by_key = {(row["system"], row["benchmark"], row["metric"], row["axis"]): row for row in rows}
    systems = results.inputs.systems
    table = [f"{'':<34} {systems[0]:<24} {systems[1]:<24} floor"]
    for benchmark, metric, label in VERDICT:
        axes = [key[3] for key in by_key if key[:3] == (systems[0], benchmark, metric)]
        for axis in axes:
            pair = [by_key.get((system, benchmark, metric, axis)) for system in systems]
            if pair[0] is None or pair[1] is None:
                continue
            base, aligned = pair[0], pair[1]
            floor = "" if _absent(base["floor"]) else f"{base['floor']:.3f}"
            name = f"{label}, {axis}" if axis else label
            table.append(f"{name:<34} {_interval(base):<24} {_interval(aligned):<24} {floor}".rstrip())
    verdict = find_verdict(results)
    said = [verdict.headline, *(f"{lead}: {text}" for lead, text in verdict.sentences)]
    return [*table, "", *said, *caveat_lines(rows)]


def caveat_lines(rows: Iterable[Row]) -> list[str]:
    """That figures mean nothing, as the pages say it too, where they rest on too few images."""
    from popalign_core.report.limits import few_images

    return [f"⚠ {said}" for said in few_images(rows)]


def board_lines(rows: Iterable[Row]) -> list[str]:
    """The headline metrics of every checkpoint, a line a metric."""
    labels = {(benchmark, metric): label for benchmark, metric, label in VERDICT}
    lines = []
    for row in rows:
        label = labels.get((row["benchmark"], row["metric"]))
        if label:
            name = f"{label}, {row['axis']}" if row["axis"] else label
            lines.append(f"{row['checkpoint']:<32} {name:<34} {_interval(row)}")
    return lines


def systems_lines(metrics: Iterable[Row], systems: Sequence[str]) -> list[str]:
    """The headline metrics, each with a line a system; a floor beside the value whose number of images it is for."""
    by_key = {(row["system"], row["benchmark"], row["metric"], row["axis"]): row for row in metrics}
    width, lines = max(map(len, systems)) + 2, []
    for benchmark, metric, label in VERDICT:
        for axis in dict.fromkeys(key[3] for key in by_key if key[1:3] == (benchmark, metric)):
            rows = {system: by_key.get((system, benchmark, metric, axis)) for system in systems}
            lines.append(f"{label}, {axis}" if axis else label)
            for system, row in rows.items():
                lines.append(f"  {system:<{width}}{'-' if row is None else _interval(row) + _floor(row)}")
    return lines


def outcome_lines(outcome: "GateOutcome") -> list[str]:
    """A line a judgement: what became of the threshold, the threshold, and why; and how many are proven."""
    words = {"met": "ok", "missed": "MISSED", "unclear": "cannot tell", "unmeasured": "NOT MEASURED"}
    wide = max([28, *(len(str(each.threshold)) + 2 for each in outcome.judgements)])
    subject = max([12, *(len(each.subject) + 2 for each in outcome.judgements)])
    return [
        f"{words[each.verdict]:<14}{each.threshold!s:<{wide}}{each.subject:<{subject}}{each.reason}"
        + ("; evaluate more images" if each.verdict == "unclear" else "")
        for each in outcome.judgements
    ] + [f"{outcome.n_proven} of {len(outcome.judgements)} thresholds proven"]


def outcome_json(outcome: "GateOutcome") -> str:
    """The same for programs: the verdict, and a list of objects."""
    rows = [
        asdict(each) | {"threshold": str(each.threshold), "bound": each.threshold.bound} for each in outcome.judgements
    ]
    head = {"verdict": outcome.verdict, "n_proven": outcome.n_proven, "n_thresholds": len(rows)}
    return json.dumps(head | {"judgements": rows}, indent=1)


def point_lines(points: Iterable[Row], front: Iterable[Row]) -> list[str]:
    """The headline metrics of a sweep, each with a line a point; those of the Pareto front have a star."""
    best = {(row["parameter"], row["system"], row["value"]) for row in front if not row["dominated_by_value"]}
    groups: dict[tuple[str, str], list[str]] = {}
    labels = {(benchmark, metric): label for benchmark, metric, label in VERDICT}
    for row in points:
        label = labels.get((row["benchmark"], row["metric"]))
        if label:
            head = (row["parameter"], f"{label}, {row['axis']}" if row["axis"] else label)
            star = "*" if (row["parameter"], row["system"], row["value"]) in best else " "
            found = row["note"] if _absent(row["estimate"]) else _interval({**row, "value": row["estimate"]})
            groups.setdefault(head, []).append(f"  {star} {row['system']:<16} {row['value']:<16} {found}")
    return [line for (parameter, label), lines in groups.items() for line in (f"{label} by {parameter}", *lines)]


def garbage_lines(report: "GarbageReport") -> list[str]:
    """What garbage collection deleted, or would delete, and how much room that makes."""
    goes = [*map(str, report.artifacts), *report.scratch, *report.leftovers]
    verb = "would delete" if report.dry_run else "deleted"
    busy = [f"kept, in use: {ref}" for ref in report.busy]
    total = f"{verb} {len(goes)} folder(s), {report.freed_bytes / 2**20:.1f} MiB"
    return [*(f"{verb} {name}" for name in goes), *busy, total]


def drops_line(drops: Iterable[Row]) -> str:
    """What a stage left out, by reason: rows of a `drops` table."""
    return f"dropped: {_dropped(drops)}"


def import_line(n_pairs: int, drops: Iterable[Row]) -> str:
    """How many pairs an import kept, and how many it dropped for which reason: rows of a `drops` table."""
    return f"{n_pairs} pair(s) to train on; dropped: {_dropped(drops)}"


def sets_line(n_members: int, n_sets: int, drops: Iterable[Row]) -> str:
    """How many members of how many pairs of sets an import kept, and what it dropped."""
    return f"{n_members} member(s) of {n_sets} pair(s) of sets to train on; dropped: {_dropped(drops)}"


def images_line(n_images: int, n_covered: int, n_prompts: int, drops: Iterable[Row]) -> str:
    """How many images an import kept, of how many of the evaluation prompts, and what it dropped."""
    return f"{n_images} image(s) of {n_covered} of {n_prompts} evaluation prompts; dropped: {_dropped(drops)}"


def _dropped(drops: Iterable[Row]) -> str:
    return ", ".join(f"{row['n']} {row['reason']}" for row in drops if row["n"]) or "none"


def _work(node: "PlannedNode") -> str:
    if node.n_steps:
        return f"{node.n_steps} steps"
    return f"{node.n_images} images" if node.n_images else ""


def _time(cost: "Cost | None") -> str:
    if cost is None:
        return ""
    return "?" if cost.seconds is None else spell_seconds(cost.seconds)


def _interval(row: Row) -> str:
    if _absent(row["value"]):
        return str(row.get("note") or "not measured")
    if _absent(row["ci_low"]) or _absent(row["ci_high"]):
        return f"{row['value']:.3f}"
    return f"{row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"


def _floor(row: Row) -> str:
    return "" if _absent(row["floor"]) else f" (floor {row['floor']:.3f})"


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | list | None) else str(value)


def _absent(value: float | None) -> bool:
    return value is None or math.isnan(value)
