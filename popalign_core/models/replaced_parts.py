"""Parts in place of a model's own: a denoiser and a VAE, each a folder of its own. Imports torch only to load."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from popalign_core.config import ModelConfig
from popalign_core.documents import read_json
from popalign_core.errors import ConfigError, DamagedWeightsError, MissingWeightsError
from popalign_core.models.local_models import MODEL_INDEX, local_folder
from popalign_core.models.model_sources import denoiser_source, vae_source
from popalign_core.models.pipeline_parts import snapshot
from popalign_core.models.single_files import expanded_denoiser, is_single_file
from popalign_core.models.weights_digest import DENOISERS
from popalign_core.sources import Source, how_to_get

# What the other parts of a pipeline hand to its denoiser, in the words of the denoiser's configuration.
_DENOISER_SHAPE = (
    *("in_channels", "out_channels", "cross_attention_dim", "addition_embed_type"),
    *("projection_class_embeddings_input_dim", "joint_attention_dim", "pooled_projection_dim"),
)
_LATENT_SHAPE = ("latent_channels",)
# What the denoiser's noise levels rest on; a VAE of another class scales its latents on its own.
_LATENT_SCALE = ("_class_name", "scaling_factor", "shift_factor")


def denoiser_folder(model: ModelConfig) -> Path | None:
    """The folder of the denoiser that takes the place of the model's own, or that a single file became; None without.

    Raises:
        ConfigError: As `single_files.is_single_file`.
        MissingWeightsError: When the folder holds no denoiser, or the model has no configuration for a single file.
        DamagedWeightsError: As `single_files.expanded_denoiser`.
    """
    if model.denoiser is not None and is_single_file(model.denoiser):
        pipeline = local_folder(model) or snapshot(model.name, model.revision, MODEL_INDEX)
        found = [name for name in DENOISERS if pipeline and (pipeline / name / "config.json").is_file()]
        if pipeline is None or not found:
            raise MissingWeightsError(
                f"model.denoiser {model.denoiser!r} takes its configuration from {model.name}, which has none here; "
                "run `popalign fetch`, or give a complete folder as model.name"
            )
        return expanded_denoiser(Path(model.denoiser), pipeline, found[0])
    return _folder_of(model.denoiser, "denoiser", "unet", denoiser_source(model))


def vae_folder(model: ModelConfig) -> Path | None:
    """The folder of the VAE that takes the place of the model's own; None without one.

    Raises:
        MissingWeightsError: When the folder holds no VAE.
    """
    return _folder_of(model.vae, "vae", "vae", vae_source(model))


def load_replaced_parts(
    model: ModelConfig, source: Path | str, index: dict[str, Any], components: Collection[str] | None
) -> dict[str, Any]:
    """The networks in place of the pipeline's own, by their components' names; nothing when none is asked for.

    Args:
        model: Names them.
        source: Of the pipeline: a folder, or a hub id.
        index: Of the pipeline.
        components: Wanted; None is all.

    Raises:
        ConfigError: When one is another model's.
        MissingWeightsError: When one is not there.
        DamagedWeightsError: When one is not whole.
    """
    found = {}
    denoiser = next((name for name in DENOISERS if name in index), None)
    for what, component, folder, fixed in (
        ("denoiser", denoiser, denoiser_folder(model), ("_class_name", *_DENOISER_SHAPE)),
        ("vae", "vae", vae_folder(model), _LATENT_SHAPE),
    ):
        if folder is None or component not in index or (components is not None and component not in components):
            continue
        own = {"_class_name": index[component][1]}
        own |= read_model_json(source, model.revision, f"{component}/config.json")
        found[component] = _load(what, folder, own, fixed, model)
    return found


def _load(what: str, folder: Path, own: dict[str, Any], fixed: tuple[str, ...], model: ModelConfig) -> Any:
    import diffusers
    import torch

    from popalign_core.models.weights_check import PartFolder, load_module

    part = PartFolder(f"model.{what}", folder, "restore its files")
    config = part.read_settings()
    class_name = config.get("_class_name", own["_class_name"]) if what == "vae" else own["_class_name"]
    kind = getattr(diffusers, str(class_name), None)
    if kind is None:
        raise part.refusal(f"diffusers has no class {class_name!r}")
    if what == "vae" and class_name == own["_class_name"]:
        # a file without a setting means the class's default
        defaults = {name: parameter.default for name, parameter in _parameters(kind).items()}
        own, config = defaults | own, defaults | config
        fixed += _LATENT_SCALE
    wrong = [
        f"{name} {config.get(name)}, not {own[name]}" for name in fixed if name in own and config.get(name) != own[name]
    ]
    if wrong:
        raise ConfigError(
            f"model.{what} {folder} does not fit {model.name}: its config.json has {'; '.join(wrong)}; "
            f"give a {what} that was trained {'from' if what == 'denoiser' else 'for'} this model"
        )
    return load_module(kind, part, getattr(torch, model.dtype))


def _parameters(kind: Any) -> Any:
    from inspect import signature

    return signature(kind.__init__).parameters


def read_model_json(source: Path | str, revision: str | None, name: str) -> dict[str, Any]:
    """A file of a folder, or of a hub id in the local cache; empty where there is none.

    Raises:
        DamagedWeightsError: When it is no JSON object.
    """
    from huggingface_hub import try_to_load_from_cache

    path = source / name if isinstance(source, Path) else try_to_load_from_cache(source, name, revision=revision)
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return {}  # from_pretrained says what is missing
    try:
        document = read_json(Path(path).read_bytes())
    except ValueError as error:
        raise DamagedWeightsError(f"{path} is not JSON ({error}); get the model's files again") from error
    if not isinstance(document, dict):
        raise DamagedWeightsError(f"{path} is no JSON object but {document!r:.60}; get the model's files again")
    return document


def _folder_of(place: str | None, what: str, inside: str, source: Source | None) -> Path | None:
    if place is None:
        return None
    folder = Path(place)
    if not (folder / "config.json").is_file():
        fix = (
            f"give a folder with config.json and safetensors, as `hf download OWNER/NAME --include '{inside}/*' "
            f"--local-dir DIR` leaves in DIR/{inside}"
        )
        if source is not None:
            fix = how_to_get(source)
        raise MissingWeightsError(f"model.{what} {place!r} holds no {what} (no config.json); {fix}")
    return folder
