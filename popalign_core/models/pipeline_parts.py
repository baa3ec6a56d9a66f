"""A pipeline's parts read one by one, each checked: networks, tokenizers, and the noise schedule of its scheduler."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from popalign_core.errors import DamagedWeightsError
from popalign_core.models.config_fit import is_number
from popalign_core.models.weights_check import UNREADABLE, PartFolder, check_end, load_module, load_tokenizer

# Schedulers whose noise is that of the betas in their configuration; the samplers here start from these.
_OF_BETAS = frozenset(
    f"{name}Scheduler"
    for name in (
        *("DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "PNDM", "LMSDiscrete", "EulerDiscrete"),
        *("EulerAncestralDiscrete", "HeunDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep", "DPMSolverSDE"),
        *("KDPM2Discrete", "KDPM2AncestralDiscrete", "DEISMultistep", "UniPCMultistep", "LCM", "TCD", "SASolver"),
    )
)
_OF_FLOWS = frozenset(f"FlowMatch{name}Scheduler" for name in ("EulerDiscrete", "HeunDiscrete", "LCM"))
_BETA_SETTINGS = ("beta_start", "beta_end", "beta_schedule")
_FLOW_SETTINGS = ("shift",)
_SHIFT_SETTINGS = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
# What all samplers know; what stands first is what a file without the setting means.
_KNOWN_WORDS = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "timestep_type": ("discrete",),
    "final_sigmas_type": ("zero", "sigma_min"),
    "interpolation_type": ("linear", "log_linear"),
}
# Some pipelines do without these when they are given embeddings or latents, but here none is.
_NEEDED = ("text_encoder", "tokenizer", "unet", "transformer", "vae", "scheduler")
_SCHEDULE_FILE = "scheduler_config.json"
_FLOW_PIPELINES = ("StableDiffusion3", "Flux")


def check_index(index: dict[str, Any], root: PartFolder, wanted: Collection[str] | None) -> None:
    """Whether a `model_index.json` names a pipeline of diffusers, and the parts of it that are wanted.

    Args:
        index: The file's content.
        root: The pipeline's folder.
        wanted: Names of parts; None is all.

    Raises:
        DamagedWeightsError: When it does not.
    """
    import diffusers

    name = index.get("_class_name")
    found: object = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise root.refusal(f"model_index.json has the pipeline {name!r}, which diffusers does not know")
    kind: Any = found
    expected, _ = kind._get_signature_keys(kind)
    for part, entry in index.items():
        if isinstance(entry, list) and not _is_entry(entry, may_be_none=True):
            raise _no_entry(root, part, entry)
    for part in sorted(expected):
        is_optional = part in kind._optional_components and not part.startswith(_NEEDED)
        if (part not in index and is_optional) or (wanted is not None and part not in wanted):
            continue
        if not _is_entry(index.get(part), may_be_none=is_optional or part.endswith("_3")):
            raise _no_entry(root, part, index.get(part))


def _is_entry(entry: object, *, may_be_none: bool) -> bool:
    words = entry if isinstance(entry, list) and len(entry) == 2 else [0]
    return all(isinstance(word, str) or (word is None and may_be_none) for word in words)


def _no_entry(root: PartFolder, part: str, entry: object) -> DamagedWeightsError:
    return root.refusal(f"model_index.json has {entry!r} as {part}, not its library and class")


def load_pipeline_parts(
    index: dict[str, Any], root: PartFolder, *, dtype: Any, wanted: Collection[str] | None, given: Collection[str]
) -> dict[str, Any]:
    """The networks, tokenizers and the scheduler of a pipeline's folder; what else it has is left to diffusers.

    Args:
        index: Of the pipeline, as `check_index` lets it pass.
        root: The pipeline's folder.
        dtype: torch's, of the networks.
        wanted: Names of parts; None is all.
        given: Parts that come from elsewhere.

    Returns:
        By name.

    Raises:
        DamagedWeightsError: When one of them is not whole.
    """
    from torch import nn

    found: dict[str, Any] = {}
    # text encoders come before their tokenizers
    for name in sorted(name for name, entry in index.items() if isinstance(entry, list) and entry[0] is not None):
        if name in given or (wanted is not None and name not in wanted):
            continue
        part = PartFolder(f"{name} of {root.what}", root.path / name, root.fix)
        kind = _class_of(index[name], part)
        if name == "scheduler":
            found[name] = _load_scheduler(kind, part, str(index["_class_name"]).startswith(_FLOW_PIPELINES))
        elif name.startswith("tokenizer"):
            encoder = name.replace("tokenizer", "text_encoder")
            found[name] = _load_words(kind, part, found.get(encoder))
            if encoder in found:
                of_encoder = PartFolder(f"{encoder} of {root.what}", root.path / encoder, root.fix)
                check_end(found[encoder], found[name], of_encoder)
        elif issubclass(kind, nn.Module):
            found[name] = load_module(kind, part, dtype)
    return found


def _load_words(kind: Any, part: PartFolder, encoder: Any) -> Any:
    if encoder is None:
        return load_tokenizer(kind, part)
    return load_tokenizer(
        kind, part, len(encoder.get_input_embeddings().weight), getattr(encoder.config, "max_position_embeddings", None)
    )


def _class_of(entry: list[str], part: PartFolder) -> Any:
    import diffusers
    import transformers

    library, name = entry
    home = {"diffusers": diffusers, "transformers": transformers}.get(library)
    home = home or getattr(diffusers.pipelines, library, None)
    kind = None if home is None else getattr(home, name, None)
    if not isinstance(kind, type) or not hasattr(kind, "from_pretrained"):
        raise part.refusal(f"model_index.json has the class {name!r} of {library!r}, which is not known here")
    if not part.path.is_dir():
        raise part.refusal("there is no such folder")
    return kind


def _load_scheduler(kind: Any, part: PartFolder, is_flow: bool) -> Any:
    """A scheduler whose noise levels the samplers here can use.

    Raises:
        DamagedWeightsError: When it is of another kind, or a setting is missing or unknown.
    """
    settings, name = part.read_settings(_SCHEDULE_FILE), kind.__name__
    if name not in (_OF_FLOWS if is_flow else _OF_FLOWS | _OF_BETAS):
        sort = "a flow" if is_flow else "betas"
        other = replace(part, fix=f"give a model whose noise levels are those of {sort}")
        raise other.refusal(f"the samplers here know no noise levels as those of {name} for this model")
    if problem := _wrong_setting(name, settings):
        raise part.refusal(f"{_SCHEDULE_FILE} {problem}")
    try:
        return kind.from_pretrained(str(part.path), local_files_only=True)
    except UNREADABLE as error:
        raise part.refusal(error) from error


def _wrong_setting(name: str, settings: dict[str, Any]) -> str | None:
    """What is wrong with a scheduler's settings, of those that the samplers read; None if nothing is."""
    is_flow, betas = name in _OF_FLOWS, settings.get("trained_betas")
    if (class_name := settings.get("_class_name", name)) != name:
        return f"is of {class_name}, but model_index.json has {name}"
    needed: tuple[str, ...] = _FLOW_SETTINGS if is_flow else () if betas is not None else _BETA_SETTINGS
    if is_flow and settings.get("use_dynamic_shifting"):
        needed += _SHIFT_SETTINGS
    needed = ("num_train_timesteps", *needed)
    if lacking := [setting for setting in needed if settings.get(setting) is None]:
        return f"lacks {lacking[0]}"
    for setting in needed:
        value = settings[setting]
        if setting != "beta_schedule" and not (is_number(value) and value > 0):
            return f"has {setting} {value!r}, which is no positive number"
    if "max_image_seq_len" in needed and settings["base_image_seq_len"] == settings["max_image_seq_len"]:
        return f"has base_image_seq_len and max_image_seq_len {settings['max_image_seq_len']}: they must differ"
    if not isinstance(settings["num_train_timesteps"], int):
        return f"has num_train_timesteps {settings['num_train_timesteps']!r}, which is not an integer"
    return None if is_flow else _wrong_betas(settings, betas)


def _wrong_betas(settings: dict[str, Any], betas: object) -> str | None:
    n_steps, offset = settings["num_train_timesteps"], settings.get("steps_offset", 0)
    if betas is not None and not (isinstance(betas, list) and len(betas) == n_steps):
        return f"has trained_betas that are no list of num_train_timesteps {n_steps}"
    if betas is None and not settings["beta_start"] <= settings["beta_end"] < 1:
        return f"has beta_end {settings['beta_end']!r}, which is not between beta_start and 1"
    if not isinstance(offset, int) or not 0 <= offset < n_steps:
        return f"has steps_offset {offset!r}, which is no number of steps"
    for setting, known in _KNOWN_WORDS.items():
        value = settings.get(setting, known[0])
        if value not in known and not (setting == "beta_schedule" and betas is not None):
            return f"has {setting} {value!r}; known are {', '.join(known)}"
    if settings.get("use_flow_sigmas"):
        return "has use_flow_sigmas: its noise levels are not those of its betas"
    return None


def snapshot(source: Path | str, revision: str | None, name: str) -> Path | None:
    """The folder of a pipeline, or that of a hub id in the local cache by one of its files; None without one."""
    from huggingface_hub import try_to_load_from_cache

    if isinstance(source, Path):
        return source
    file = try_to_load_from_cache(source, name, revision=revision)
    return Path(file).parent if isinstance(file, str) else None
