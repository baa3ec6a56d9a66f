"""One Prefect task a stage: open the inputs, call the science, publish."""

from popalign_core.command import check_packages
from popalign_core.models.quiet import be_quiet

check_packages()
be_quiet()  # stages, workers and flows all import this package first

__all__ = ["common", "prefect_tasks", "publishing", "stages", "studies", "workers"]
