"""One Prefect task a stage: open the inputs, call the science, publish."""

from popalign_core.command import check_packages
from popalign_core.models.quiet import be_quiet

check_packages()
be_quiet()  # whoever works on a stage, a worker or a flow, imports this package first

__all__ = ["common", "publishing", "registered", "stages", "studies", "workers"]
