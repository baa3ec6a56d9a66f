"""The embedded model: a small, deliberately biased SDXL pipeline, its classifier and its CLIP, with their recipe."""

from pathlib import Path

from popalign_core.errors import MissingWeightsError

PARTS = ("pipeline", "classifier", "clip")


def weights_folder() -> Path:
    """The shipped weights: `pipeline/`, `classifier/` and `clip/` in the formats of diffusers and transformers.

    Raises:
        MissingWeightsError: When a part is not there.
    """
    folder = Path(__file__).parent / "weights"
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise MissingWeightsError(
            f"the embedded model lacks {', '.join(missing)} in {folder}; install the package with its data, "
            f"or train it: popalign portraits train --data DIR --out {folder}"
        )
    return folder


__all__ = [
    "PARTS",
    "autoencoder",
    "classifier",
    "decoder",
    "denoiser",
    "image_pool",
    "occupations",
    "part_training",
    "rendering",
    "small_clip",
    "text",
    "weights_folder",
]
