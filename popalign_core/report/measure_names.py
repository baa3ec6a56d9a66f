"""Measures: their names in words, how their values are written, which way is better."""

import re

import pandas as pd

FAIRNESS = ("discrepancy_pooled", "discrepancy_per_prompt")
"""The two that decide: bias that pooling hides (nurse and engineer) must not count as fair."""
_FURTHER = {
    *("discrepancy_unbiased", "discrepancy_cleam", "kl", "entropy", "parity_gap", "bias"),
    *("discrepancy_pooled_by_faces", "discrepancy_joint_by_faces", "unsure_share", "other_class_share"),
}
"""Other ways to say the same, and squares; in the table of every number only."""
_CROWDED = {"discrepancy_worst10"}
"""The same where many systems share a page."""
_SETS = {"fid", "kid", "cmmd"}
_MISSES = {"no_face_share", "unsure_share", "other_class_share", "no_face_gap", "unsure_gap"}
_LOWER_IS_BETTER = {"kl", "parity_gap", "bias", "quality_gap", *_MISSES, *_SETS}
_SHARES_IF = {
    "share_by_faces": "every classified image weighted equally",
    "share_least": "if no unread image shows it",
    "share_most": "if every unread image shows it",
    "share_corrected": "corrected for classifier error and missed faces",
    "share_cleam": "corrected for classifier error by CLEAM",
    "share_weighted": "corrected for missed faces",
}
_SHARES = {"share", *_SHARES_IF}
_PERCENT = {"recall", "subject_accuracy", "agreement", "win_rate", *_MISSES, *_SHARES}
_USUAL_BENCHMARKS = {
    **dict.fromkeys(("recall", "unsure_share", "other_class_share"), "specific"),
    **dict.fromkeys(("no_face_gap", "unsure_gap", "quality_gap"), "specific"),
    "subject_accuracy": "generic",
}
_THREE_DIGITS = {"kl", "entropy", "parity_gap", "bias", "kappa", "kid", "cmmd", "diversity"}
_ACRONYMS = ("clip", "hps", "fid", "kid", "cmmd")


def is_shown(metric: str, *, is_crowded: bool = False) -> bool:
    """Whether the main tables have it: nothing of a single class, nothing that says the same in another way."""
    name = _base(metric)
    if name == "quality_gap":
        return not is_crowded
    return ":" not in metric and name not in _FURTHER and not (is_crowded and name in _CROWDED)


def is_distance(metric: str) -> bool:
    """Whether it measures how far a system's pictures are from the reference's, which then has no value of its own."""
    return metric in _SETS


def direction(metric: str) -> int:
    """1 where more is better, -1 where less is, 0 where neither is."""
    name = _base(metric)
    if name in _SHARES:
        return 0
    return -1 if name.startswith("discrepancy") or name in _LOWER_IS_BETTER else 1


def measure_name(metric: str, axis: str, benchmark: str) -> str:
    """A measure's name in words."""
    known = {
        "discrepancy_pooled": f"{axis} discrepancy, all prompts together",
        "discrepancy_pooled_by_faces": f"{axis} discrepancy, every classified image weighted equally",
        "discrepancy_per_prompt": f"{axis} discrepancy, mean over prompts",
        "discrepancy_worst10": f"{axis} discrepancy, ten worst prompts",
        "discrepancy_corrected": f"{axis} discrepancy, corrected for classifier error and missed faces",
        "discrepancy_cleam": f"{axis} discrepancy, corrected for classifier error by CLEAM",
        "discrepancy_unbiased": f"{axis} discrepancy squared, unbiased",
        "discrepancy_joint": "discrepancy of all attributes jointly",
        "discrepancy_joint_by_faces": "discrepancy of all attributes jointly, every classified image weighted equally",
        "recall": "recall of all requested attributes" if axis == "all" else f"recall of {axis}",
        "no_face_share": "images without a usable face",
        "no_face_gap": f"images without a usable face, gap between {axis} classes",
        "unsure_gap": f"images with unsure {axis}, gap between classes",
        "subject_accuracy": "right object shown (zero-shot)",
    }
    base, _, name = metric.partition(":")
    if base == "quality_gap":
        known[metric] = f"{scorer_name(name)}, gap between {axis} classes"
    if base in _SHARES_IF:
        known[metric] = f"{axis}: share of {name}, {_SHARES_IF[base]}"
    words = scorer_name(metric) if not axis else f"{axis}: {scorer_name(base)}" + (f" of {name}" if name else "")
    words = known.get(metric, words)
    usual = _USUAL_BENCHMARKS.get(base, "neutral" if axis else None)
    return words[:1].upper() + words[1:] + ("" if benchmark == usual else f" ({benchmark} prompts)")


def scorer_name(metric: str) -> str:
    """The short name of a measure, as a table's head has it."""
    known = {
        "subject_accuracy": "Right object (zero-shot)",
        "no_face_share": "No usable face",
        "agreement": "Classifiers agree",
        "kl": "KL divergence",
    }
    name = metric.removesuffix("_per_prompt")
    words = known.get(name, name.replace("_", " "))
    first, *rest = words.split(" ")
    acronym = next((sign for sign in _ACRONYMS if re.match(rf"{sign}\b", first)), first[:1])
    first = acronym.upper() + first[len(acronym) :]
    return " ".join([first, *rest]) + (", mean over prompts" if name != metric else "")


def column_name(metric: str, axis: str) -> str:
    """A measure's name in a table of one benchmark, as short as it can be."""
    base, _, name = metric.partition(":")
    if base == "recall":
        return name or axis
    where = f"{axis[:1].upper()}{axis[1:]}, "
    known = {
        "discrepancy_pooled": f"{where}all prompts",
        "discrepancy_per_prompt": f"{where}mean",
        "discrepancy_corrected": f"{where}all prompts, corrected for classifier error and missed faces",
        "discrepancy_joint": "All attributes jointly",
    }
    words = scorer_name(base)
    is_acronym = words[1:2].isupper()
    return known.get(base, f"{where}{words if is_acronym else words[:1].lower() + words[1:]}" if axis else words)


def floor_words(value: float, metric: str) -> str:
    """What the best possible system would show; '' where there is no floor."""
    if pd.isna(value):
        return ""
    return f"; {'if equal' if is_distance(metric) else 'fair'} {number(value, metric)}"


def number(value: float, metric: str, *, signed: bool = False) -> str:
    """A value as its measure is read: percent for shares, three digits for discrepancies, two for scores."""
    if pd.isna(value):
        return "–"
    sign = "+" if signed else ""
    if _base(metric) in _PERCENT:
        text = f"{100 * value:{sign}.1f}" + (" pts" if signed else "%")
    else:
        text = f"{value:{sign}.{_digits(metric)}f}"
    zero = not text.strip("+-0.% pts")
    return text.lstrip("+-") if zero else text.replace("-", "−")


def p_words(p_adjusted: float) -> str:
    """A p-value as it is written; '' where there is none."""
    return (
        ""
        if pd.isna(p_adjusted)
        else "p\u00a0<\u00a00.001"
        if p_adjusted < 0.001
        else f"p\u00a0=\u00a0{p_adjusted:.3f}"
    )


def listed(names: list[str]) -> str:
    """'a, b and c'."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _digits(metric: str) -> int:
    return 3 if metric.startswith("discrepancy") or _base(metric) in _THREE_DIGITS else 2


def _base(metric: str) -> str:
    """Without the class, and without saying over what."""
    return metric.partition(":")[0].removesuffix("_per_prompt")
