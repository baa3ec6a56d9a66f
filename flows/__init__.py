"""Flows that chain the stages, and the command line."""

__all__ = ["cli", "compare", "evaluate", "pipeline", "plan", "prefect_artifacts", "review", "stage", "terminal"]
