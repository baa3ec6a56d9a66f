"""A pipeline's parts read one by one, each checked: networks, tokenizers, and the noise schedule of its scheduler."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from popalign_core.models.weights_check import PartFolder, load_module, load_tokenizer

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
_BETA_SETTINGS = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")
_FLOW_SETTINGS = ("shift", "num_train_timesteps")
_SHIFT_SETTINGS = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")  # those that all samplers know
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_FLOW_PIPELINES = ("StableDiffusion3", "Flux")


def check_index(index: dict[str, Any], root: PartFolder, given: Collection[str]) -> None:
    """Whether a `model_index.json` names a pipeline of diffusers, and all the parts that this one has.

    Args:
        index: The file's content.
        root: The pipeline's folder.
        given: Parts that come from elsewhere.

    Raises:
        DamagedWeightsError: When it does not.
    """
    import diffusers

    name = index.get("_class_name")
    kind: Any = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
        raise root.refusal(f"model_index.json has the pipeline {name!r}, which diffusers does not know")
    expected, _ = kind._get_signature_keys(kind)
    for part in sorted(set(expected) - set(given)):
        entry, is_optional = index.get(part), part in kind._optional_components or part.endswith("_3")
        if part not in index and part in kind._optional_components:
            continue
        words = entry if isinstance(entry, list) and len(entry) == 2 else [0]
        if not all(isinstance(word, str) or (word is None and is_optional) for word in words):
            raise root.refusal(f"model_index.json has {entry!r} as {part}, not its library and class")


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
            found[name] = _load_words(kind, part, found.get(name.replace("tokenizer", "text_encoder")))
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
    """A scheduler on whose noise levels the samplers here can draw.

    Raises:
        DamagedWeightsError: When it is of another kind, or a setting is missing or unknown.
    """
    settings = part.read_settings("scheduler_config.json")
    _check_schedule(kind.__name__, settings, part, is_flow)
    try:
        return kind.from_pretrained(str(part.path), local_files_only=True)
    except (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise part.refusal(str(error) or type(error).__name__) from error


def _check_schedule(name: str, settings: dict[str, Any], part: PartFolder, is_flow: bool) -> None:
    file = "scheduler_config.json"
    if name not in (_OF_FLOWS if is_flow else _OF_FLOWS | _OF_BETAS):
        sort = "a flow" if is_flow else "betas"
        raise part.refusal(f"its noise levels are those of {name}, but the samplers here draw from those of {sort}")
    said = settings.get("_class_name", name)
    if said != name:
        raise part.refusal(f"{file} is of {said}, but model_index.json has {name}")
    needed: tuple[str, ...] = _FLOW_SETTINGS if name in _OF_FLOWS else _BETA_SETTINGS
    if settings.get("trained_betas") is not None:
        needed = ("num_train_timesteps",)
    if settings.get("use_dynamic_shifting"):
        needed += _SHIFT_SETTINGS if name in _OF_FLOWS else ()
    if lacking := [setting for setting in needed if settings.get(setting) is None]:
        raise part.refusal(f"{file} lacks {lacking[0]}")
    if wrong := [setting for setting in needed if setting != "beta_schedule" and not _is_number(settings[setting])]:
        raise part.refusal(f"{file} has {wrong[0]} {settings[wrong[0]]!r}, which is no positive number")
    if name in _OF_FLOWS:
        return
    for setting, known in (("beta_schedule", _BETA_SCHEDULES), ("prediction_type", _PREDICTIONS)):
        if settings.get(setting, known[0]) not in known:
            raise part.refusal(f"{file} has {setting} {settings[setting]!r}; known are {', '.join(known)}")
    if settings.get("use_flow_sigmas") or settings.get("timestep_type", "discrete") != "discrete":
        odd = "use_flow_sigmas" if settings.get("use_flow_sigmas") else "timestep_type"
        raise part.refusal(f"{file} has {odd} {settings[odd]!r}: its noise levels are not those of its betas")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def snapshot(source: Path | str, revision: str | None, name: str) -> Path | None:
    """The folder of a pipeline, or that of a hub id in the local cache by one of its files; None without one."""
    from huggingface_hub import try_to_load_from_cache

    if isinstance(source, Path):
        return source
    file = try_to_load_from_cache(source, name, revision=revision)
    return Path(file).parent if isinstance(file, str) else None
