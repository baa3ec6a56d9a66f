"""How good the images are: scorers of one image and its prompt, and distances between sets of images."""

__all__ = [
    "aesthetics",
    "feature_distances",
    "features",
    "hps",
    "image_reward",
    "open_clip_files",
    "scorer",
    "scorer_factory",
    "scorer_files",
    "set_distances",
]
