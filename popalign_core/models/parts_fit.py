"""Whether the parts of a pipeline are of one model, by their configurations: their weights need not be run for that.

A folder may be put together from several models, or be one that reads more than noise and captions (for inpainting, or
SDXL's refiner). Each part is whole then, and fails at the first image, after all prompts are encoded.
"""

from typing import Any

from popalign_core.errors import DamagedWeightsError
from popalign_core.models.config_fit import is_number
from popalign_core.models.denoisers import family_of, latent_channels, pipeline_family, text_widths
from popalign_core.models.embeddings import PromptEmbeddings
from popalign_core.models.weights_check import PartFolder


def check_parts(pipeline: Any, root: PartFolder) -> None:
    """Compare those parts of a pipeline that are loaded.

    Args:
        pipeline: Of any family; parts may be None.
        root: Its folder.

    Raises:
        DamagedWeightsError: When denoiser, VAE and pipeline are not of one model, or the VAE's factors are no numbers.
        ConfigError: When pipeline or denoiser are of no known family.
    """
    denoiser, vae = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None), pipeline.vae
    problem = None if denoiser is None else _misfit(pipeline, denoiser)
    if vae is not None and problem is None:
        problem = _wrong_factors(vae.config)
        n_channels = vae.config.latent_channels
        if denoiser is not None and n_channels != (n_read := latent_channels(denoiser)):
            problem = f"its VAE has latents of {n_channels} channels, its denoiser reads {n_read}"
    if problem is not None:
        raise root.refusal(problem)


def check_widths(denoiser: Any, embeddings: PromptEmbeddings) -> None:
    """Compare embeddings with what a denoiser reads.

    Raises:
        DamagedWeightsError: When they are of other text encoders than the denoiser's.
    """
    given, read = (embeddings.prompt_embeds.shape[2], embeddings.pooled_prompt_embeds.shape[1]), text_widths(denoiser)
    if given != read:
        raise DamagedWeightsError(
            f"the text encoders give embeddings of width {given[0]}, pooled {given[1]}; the denoiser reads {read[0]} "
            f"and {read[1]}: they are of different models; restore the model's files"
        )


def _misfit(pipeline: Any, denoiser: Any) -> str | None:
    family, expected = family_of(denoiser), pipeline_family(pipeline)
    if not family.name.startswith(expected.name):
        return f"model_index.json has {type(pipeline).__name__}, but its denoiser is one of {family.name}"
    n_read, n_made = denoiser.config.in_channels, denoiser.config.out_channels
    if n_made not in (n_read, None):
        return (
            f"its denoiser reads {n_read} channels and makes {n_made}: it is for inpainting or editing, and takes more "
            "than noise and a prompt"
        )
    return None


def _wrong_factors(config: Any) -> str | None:
    """What is wrong with the numbers that latents are scaled by, if anything is."""
    if not (is_number(config.scaling_factor) and config.scaling_factor > 0):
        return f"its VAE has scaling_factor {config.scaling_factor!r}, which is no positive number"
    shift = getattr(config, "shift_factor", None)
    if not (shift is None or is_number(shift)):
        return f"its VAE has shift_factor {shift!r}, which is no number"
    for name in ("latents_mean", "latents_std"):
        values = getattr(config, name, None)
        if values is not None and not (len(values) == config.latent_channels and all(map(is_number, values))):
            return f"its VAE has {name} {values!r:.60}, which are no {config.latent_channels} numbers"
    return None
