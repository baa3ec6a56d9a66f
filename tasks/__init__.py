"""One Prefect task a stage: open the inputs, call the science, publish."""

from popalign_core.models.quiet import be_quiet

be_quiet()  # whoever works on a stage, a worker or a flow, imports this package first

__all__ = ["common", "prefect_tasks", "publishing", "stages", "studies", "workers"]
