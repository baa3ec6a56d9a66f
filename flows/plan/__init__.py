"""What a run is made of: the table of steps, their plan, and the runs, comparisons and sweeps that carry it out."""

__all__ = ["check", "checkpoints", "expected_work", "planning", "running", "runs", "steps", "sweep", "systems_run"]
