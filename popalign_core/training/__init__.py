"""Training: population DPO (Eq. 11) and its rivals, on the sampler's own latents."""
