"""What a run is made of: the table of steps, their plan, and the runs, comparisons and sweeps that carry it out."""

__all__ = [
    "check",
    "checkpoints",
    "compare_systems",
    "costs",
    "execution",
    "expected_work",
    "fetching",
    "planning",
    "preflight",
    "runs",
    "steps",
    "sweep",
    "trial",
]
