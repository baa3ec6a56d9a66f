"""Stage `train`: population DPO on the sampler's own latents; a killed run goes on from its last checkpoint."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import StoreError
from storage.roots import storage_errors
from storage.store import Build, Store
from tasks.common.needs import Need, classifier_needs, machine_needs, model_needs
from tasks.common.stage_object import Inputs, Progress, Stage, set_threads
from tasks.common.trained_models import keep_base, read_training
from tasks.stages.round_inputs import STATE_FILE, TrainingRefs
from tasks.stages.train_view import TrainView

if TYPE_CHECKING:
    from popalign_core.models.trained_weights import TrainingRecord

CARD = "README.md"
"""The card in an artifact, which knows neither the base model's name nor figures."""
_SCHEDULER_FILE = "scheduler_config.json"


def check_settings(view: TrainView, runtime: RuntimeConfig) -> None:
    """Refuse settings that training would refuse, before a run samples the images that it trains on.

    Raises:
        ConfigError: Naming the setting.
    """
    from popalign_core.models.local_models import local_folder
    from popalign_core.models.weights_check import PartFolder
    from popalign_core.training.settings_check import check_timesteps, check_trackers, count_micro_batches

    count_micro_batches(view.training, runtime, runtime.n_processes)
    check_trackers(runtime)
    if runtime.accelerate_config:
        from tasks.stages.train_launch import accelerate_file

        accelerate_file(runtime.accelerate_config)
    folder = None if view.has_start else local_folder(view.model)
    if folder is not None and (folder / "scheduler" / _SCHEDULER_FILE).is_file():
        scheduler = PartFolder("the scheduler", folder / "scheduler", "get the model's files again")
        n_timesteps = scheduler.read_settings(_SCHEDULER_FILE).get("num_train_timesteps", 1000)
        if not isinstance(n_timesteps, int):
            raise scheduler.refusal(f"{_SCHEDULER_FILE} has num_train_timesteps {n_timesteps!r}")
        check_timesteps(view.training, n_timesteps)


def _fill(view: TrainView, inputs: Inputs, build: Build, runtime: RuntimeConfig, on_progress: Progress) -> None:
    """Write what was trained, `lora/` or the denoiser in `unet/` or `transformer/`, with `trained.json`, which says by
    hash what it belongs to, and a card; table `training_log`; `state.safetensors`, where another round goes on from
    this one. The weights of a round are all that rounds have changed of the base model. TensorBoard's files, which hold
    times, lie outside: `logs/KEY/` below a local root.

    Inputs are `preferences` (with table `retained`), `sample` (latents and embeddings of the images), `prompts` (their
    texts, for the probe's CLIP score), `attributes` (their classes, for the objectives that need them) and `start` (a
    trained model that is start and reference, in place of the base model); of a round `round_sample` and
    `round_attributes` (what the policy sampled for it) and, but for the first, `before` (the round before).

    Raises:
        InputError: When there are no preferences, or they do not fit model and objective.
        StoreError: When the trackers cannot write where they are to.
        TrainingError: When training diverges.
        PreemptedError: On SIGTERM, after a checkpoint was written.
    """
    from popalign_core.training.final_weights import last_checkpoint
    from popalign_core.training.model_card import model_card
    from popalign_core.training.model_folder import save_trained
    from popalign_core.training.round_state import save_round_state
    from tasks.stages.train_inputs import run_training
    from tasks.stages.train_launch import launch_training

    store, refs = inputs.store, TrainingRefs(**inputs)
    log_folder = find_log_folder(store, runtime) / build.ref.key
    set_threads(runtime)
    if not view.has_start:
        keep_base(store, view.model)
    if runtime.trackers:
        with storage_errors(f"make the log folder {log_folder}, which runtime.log_folder moves"):
            log_folder.mkdir(parents=True, exist_ok=True)
    work = build.work / "checkpoints"
    if runtime.n_processes > 1 or runtime.accelerate_config:
        denoiser, log = launch_training(refs, view, runtime, work, on_progress, log_folder)
    else:
        denoiser, log = run_training(store, refs, view, runtime, work, on_progress, log_folder=log_folder)
    record = _describe(denoiser, view, refs, store)
    save_trained(denoiser.to("cpu"), record, build.folder)
    if view.is_followed and (end := last_checkpoint(work)) is not None:
        save_round_state(end, build.folder / STATE_FILE)
    # by its content: where the model lies is no part of the key, and must not be in the artifact either
    card = model_card(f"the weights `{record.base}`", view.training, view.axes, refs.keys(), log)
    (build.folder / CARD).write_text(card, encoding="utf-8")
    build.write_table("training_log", pd.DataFrame(log, columns=["step", "name", "value"]))


def _describe(denoiser: Any, view: TrainView, refs: TrainingRefs, store: Store) -> "TrainingRecord":
    """What the training was, and what its weights belong to."""
    from popalign_core.models.denoisers import family_of
    from popalign_core.models.loading import model_hash
    from popalign_core.models.trained_weights import TrainingRecord

    before = None if refs.start is None else read_training(store, refs.start)
    if refs.start is not None and before is None:
        raise StoreError(f"{refs.start} is of a version before 4, from which no training starts; train it again")
    return TrainingRecord(
        what="lora" if view.training.lora_rank else view.training.trained_weights,
        component=family_of(denoiser).component,
        base=before.base if before else model_hash(view.model),
        start=refs.start.key if refs.start else None,
    )


def find_log_folder(store: Store, runtime: RuntimeConfig) -> Path:
    """Where trackers write: on this machine, whatever the store's root is."""
    if runtime.log_folder is not None:
        return Path(runtime.log_folder)
    return Path(store.root) / "logs" if "://" not in store.root else Path("logs")


def _needs(config: PipelineConfig, runtime: RuntimeConfig) -> Iterator[Need]:
    yield from model_needs(config.model)
    yield from machine_needs(runtime)
    if config.training.probe is not None:
        yield from classifier_needs(config.attributes, config.identity_axes)


train_model = Stage(
    "train",
    "4",
    TrainView.of,
    _fill,
    inputs=("preferences", "sample"),
    optional=("prompts", "attributes", "start", "round_*", "before"),
    check=check_settings,
    needs=_needs,
)
