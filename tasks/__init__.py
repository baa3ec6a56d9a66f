"""One Prefect task a stage: open the inputs, call the science, publish."""
