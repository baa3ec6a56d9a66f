"""Evaluation: images' statistics in, metrics with intervals out."""

__all__ = [
    "agreement",
    "clip_score",
    "confusion",
    "correction",
    "counts",
    "divergence",
    "fairness",
    "frames",
    "intervals",
    "measures",
    "metrics",
    "paired",
    "pareto",
    "prevalence",
    "quality",
    "recall",
    "score_units",
    "share_distances",
    "thresholds",
    "wins",
]
