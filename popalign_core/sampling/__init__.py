"""Sampling: prompts and seeds in, pixels and the sampler's own latents out."""

__all__ = [
    "captions",
    "edits",
    "engine",
    "guidance",
    "layouts",
    "prediction",
    "reuse",
    "safety",
    "sampler",
    "schedulers",
    "watermark",
]
