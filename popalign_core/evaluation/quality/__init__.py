"""How good the pictures are: scorers of one picture and its prompt, and distances between sets of pictures."""

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
