"""What this machine is known to do in how many seconds: a small file in the user's cache folder.

Nothing in it is part of an artifact's key. Where it cannot be read or written it is as if there were none.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.documents import read_json
from popalign_core.machine import cache_folder, describe_machine
from popalign_core.models.loading import model_hash
from storage.keys import canonical_json
from storage.roots import write_atomic

_log = logging.getLogger(__name__)

FILE = "speeds.json"
_FORMAT = 1
_MOST_ENTRIES = 500
"""Of a kind; the oldest go first."""
Kind = Literal["rates", "layouts"]

_AMOUNTS = ("prompts", "preferences", "evaluation")
_SAMPLER_SPEEDS = ("channels_last", "compile", "fuse_qkv", "offload")
_TRAINER_SPEEDS = ("n_processes", "accelerate_config", "micro_pairs", "gradient_checkpointing", "compile")
_SAME_SPEED = (
    *("n_steps", "n_warmup_steps", "checkpoint_every", "seed", "probe", "beta", "alpha", "learning_rate"),
    *("learning_rate_schedule", "kl_weight", "retention", "max_grad_norm", "weight_decay", "max_error_ratio"),
    *("on_divergence", "empty_caption_rate", "normaliser_decay", "min_timestep", "rounds", "population"),
)
"""Settings of a training that change no step's seconds."""


@dataclass(frozen=True)
class Rate:
    """How fast a stage is.

    Attributes:
        first_s: Seconds around the work, of a process's first: imports, loading, publishing.
        again_s: The same of a later one.
        unit_s: Seconds an image or a training step; 0 of stages that count neither.
        unit_bytes: What it leaves in the store for each image.
        fixed_bytes: What it leaves in the store, whatever the number.
    """

    first_s: float | None = None
    again_s: float | None = None
    unit_s: float = 0.0
    unit_bytes: float = 0.0
    fixed_bytes: float = 0.0


def stage_speed(stage: str, config: PipelineConfig, runtime: RuntimeConfig) -> dict[str, Any]:
    """All that decides how fast a stage is: machine, model, size of image and batch.

    Args:
        stage: Its name.
        config: The step's own.
        runtime: Of this machine.

    Raises:
        PopAlignError: When a model that it names is not there.
    """
    found: dict[str, Any] = {"stage": stage, "machine": describe_machine(runtime.device, runtime.n_threads)}
    if stage not in ("sample", "attributes", "scores", "train"):
        # cheap, and by how much there is of everything
        return found | {name: getattr(config, name).model_dump(mode="json") for name in _AMOUNTS}
    size = [config.sampling.width, config.sampling.height]
    found |= {"size": size, "batch_size": runtime.batch_size, "workers": [runtime.runner, runtime.n_workers]}
    if stage == "attributes":
        return found | {"attributes": config.attributes.model_dump(mode="json", include={"classifier", "classifiers"})}
    if stage == "scores":
        return found | {"scorers": config.evaluation.model_dump(mode="json", include={"scorers"})}
    model = {"hash": model_hash(config.model), "dtype": config.model.dtype, "storage": config.model.storage}
    if stage == "sample":
        settings = config.sampling.model_dump(mode="json", exclude={"seed"})
        return found | {"model": model, "sampling": settings, "runtime": _picked(runtime, _SAMPLER_SPEEDS)}
    del found["workers"], found["batch_size"]
    settings = config.training.model_dump(mode="json", exclude=set(_SAME_SPEED))
    retains = config.training.retention > 0
    return found | {
        "model": model,
        "training": settings | {"retains": retains},
        "runtime": _picked(runtime, _TRAINER_SPEEDS),
    }


def _picked(runtime: RuntimeConfig, names: tuple[str, ...]) -> dict[str, Any]:
    return runtime.model_dump(mode="json", include=set(names))


def find_rate(speed: Mapping[str, Any]) -> Rate | None:
    """The kept rate of what `stage_speed` describes; None where there is none."""
    found = find_kept("rates", speed)
    try:
        return None if found is None else Rate(**found)
    except TypeError:
        return None


def keep_rate(speed: Mapping[str, Any], rate: Rate) -> None:
    """Keep a rate; the newest counts."""
    keep_value("rates", speed, asdict(rate))


def find_kept(kind: Kind, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is kept about something; None where nothing is."""
    entry = read_kept()[kind].get(_name(about))
    return dict(entry["value"]) if entry else None


def keep_value(kind: Kind, about: Mapping[str, Any], value: Mapping[str, Any]) -> None:
    """Keep a value about something in place of an older one. A folder that cannot be written keeps none."""
    from filelock import FileLock, Timeout

    path = kept_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=10):
            document = read_kept()
            entries, name = document[kind], _name(about)
            entries.pop(name, None)
            entries[name] = {"about": about, "value": value}
            for old in list(entries)[:-_MOST_ENTRIES]:
                del entries[old]
            write_atomic(path, canonical_json({"format": _FORMAT, **_listed(document)}).encode())
    except (OSError, Timeout) as error:
        _log.info("speeds are not kept in %s: %s", path, error)


def read_kept() -> dict[str, dict[str, Any]]:
    """All that is kept, by kind and name; empty where the file is missing, damaged or of another format."""
    nothing: dict[str, dict[str, Any]] = {"rates": {}, "layouts": {}}
    try:
        document = read_json(kept_file().read_bytes())
        if document["format"] != _FORMAT:
            return nothing
        return {
            kind: {_name(entry["about"]): {"about": entry["about"], "value": dict(entry["value"])} for entry in entries}
            for kind, entries in ((kind, document[kind]) for kind in nothing)
        }
    except (OSError, ValueError, TypeError, KeyError):
        return nothing


def kept_file() -> Path:
    """Where it lies."""
    return cache_folder() / FILE


def _listed(document: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """As lists, whose order says which entry is the oldest."""
    return {kind: list(entries.values()) for kind, entries in document.items()}


def _name(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(about).encode()).hexdigest()[:32]
