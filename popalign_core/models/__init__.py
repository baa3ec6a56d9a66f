"""Models: which weights a name means, how they are loaded, and their parts."""

__all__ = [
    "clip",
    "config_fit",
    "denoisers",
    "embeddings",
    "float8",
    "image_processors",
    "linked_files",
    "loading",
    "lora",
    "lora_files",
    "model_files",
    "model_sources",
    "parts_fit",
    "pipeline_parts",
    "pixels",
    "quiet",
    "trained_weights",
    "vae",
    "weights_check",
    "whole_model",
]
