"""Flows that chain the stages, and the command line."""

from popalign_core.command import check_packages

check_packages()  # before anything of a package is imported that may be another project's

__all__ = [
    "cli",
    "compare",
    "deployment",
    "evaluate",
    "pages",
    "parameters",
    "pipeline",
    "plan",
    "prefect_artifacts",
    "review",
    "stage",
    "terminal",
]
