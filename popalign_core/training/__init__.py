"""Training: population DPO (Eq. 11) and its rivals, on the sampler's own latents."""

__all__ = [
    "accelerate",
    "batch",
    "checkpoint",
    "data",
    "gradients",
    "input_checks",
    "losses",
    "model_card",
    "noising",
    "objective",
    "optimizers",
    "output",
    "preemption",
    "probe",
    "processes",
    "reference",
    "settings",
    "trained",
    "trainer",
]
