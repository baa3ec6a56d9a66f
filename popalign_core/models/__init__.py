"""Models: which weights a name means, how they are loaded, and their parts."""

__all__ = [
    "clip",
    "config_fit",
    "denoisers",
    "embeddings",
    "float8",
    "image_processors",
    "loading",
    "lora",
    "lora_files",
    "model_files",
    "model_sources",
    "parts_fit",
    "pipeline_parts",
    "pixels",
    "quiet",
    "torchvision_operators",
    "vae",
    "weights_check",
]
