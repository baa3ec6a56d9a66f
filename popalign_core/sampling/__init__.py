"""Sampling: prompts and seeds in, pixels and the sampler's own latents out."""
