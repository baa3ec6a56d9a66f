"""Stage `train`: population DPO on the sampler's own latents; a killed run goes on from its last checkpoint."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import ConfigError
from storage.roots import storage_errors
from storage.store import ArtifactRef, Build, Store
from tasks.stage import Progress, Request, no_progress, produce, set_threads
from tasks.training_inputs import TrainingRefs

STAGE = "train"
VERSION = "2"


def request(
    config: PipelineConfig,
    *,
    preferences: ArtifactRef,
    sample: ArtifactRef,
    prompts: ArtifactRef | None = None,
    attributes: ArtifactRef | None = None,
    start: ArtifactRef | None = None,
) -> Request:
    """What the key depends on; the base model enters with the sample, the axes' targets with the preferences.

    Raises:
        ConfigError: When the weights are kept in a way that cannot be trained, or the normaliser has nothing to look
            at: here, so that no run draws images first.
    """
    if config.model.storage is not None:
        raise ConfigError(
            f"model.storage is {config.model.storage!r}, which is for sampling alone; leave it out to train, and "
            "compare with a system that sets it, such as fp8"
        )
    if config.training.uses_anchors and not (config.prompts.retained_subjects or config.prompts.retained_lists):
        raise ConfigError(
            "training.normaliser is 'anchor', and there is no prompt to take it from; give prompts.retained_subjects "
            "or retained_lists, or choose batch, ema or zero"
        )
    refs = TrainingRefs(preferences, sample, prompts, attributes, start)
    payload: dict[str, Any] = {"training": config.training.model_dump(mode="json")}
    if config.training.objective == "cgm-relax":
        payload["class_priors"] = "by prompt"  # they were by set; the keys of all others stay
    return Request(STAGE, VERSION, payload, refs.keys())


def check_settings(config: PipelineConfig, runtime: RuntimeConfig) -> None:
    """Refuse settings that training would refuse, before a run draws the images that it trains on.

    Raises:
        ConfigError: Naming the setting.
    """
    from popalign_core.sampling.models import local_folder
    from popalign_core.training.settings import check_timesteps, check_trackers, count_micro_batches

    count_micro_batches(config.training, runtime, runtime.n_processes)
    check_trackers(runtime)
    if runtime.accelerate_config:
        from tasks.launch import accelerate_file

        accelerate_file(runtime.accelerate_config)
    folder = local_folder(config.model)
    if folder is not None and (scheduler := folder / "scheduler" / "scheduler_config.json").is_file():
        check_timesteps(config.training, json.loads(scheduler.read_text("utf-8")).get("num_train_timesteps", 1000))


def train_model(
    preferences: ArtifactRef,
    sample: ArtifactRef,
    prompts: ArtifactRef | None = None,
    attributes: ArtifactRef | None = None,
    start: ArtifactRef | None = None,
    *,
    config: PipelineConfig,
    runtime: RuntimeConfig,
    on_progress: Progress = no_progress,
) -> ArtifactRef:
    """Publish `model/`, a folder that diffusers loads, with its card; `lora/` when an adapter was trained; table
    `training_log`. TensorBoard's files, which hold times, lie outside: `logs/KEY/` below a local root.

    Args:
        preferences: Table `preferences`, and table `retained`.
        sample: Latents and embeddings of the images.
        prompts: Their texts, for the probe's CLIP score.
        attributes: Their classes, for the objectives that need them.
        start: A trained model that is start and reference, in place of the base model.
        config: Of the pipeline.
        runtime: Store, device, processes.
        on_progress: Told (step, n_steps).

    Raises:
        InputError: When there are no preferences, or they do not fit model and objective.
        StoreError: When the trackers cannot write where they are to.
        TrainingError: When training diverges.
        PreemptedError: On SIGTERM, after a checkpoint was written.
    """
    refs = TrainingRefs(preferences, sample, prompts, attributes, start)

    def fill(store: Store, build: Build, ref: ArtifactRef) -> None:
        log_folder = find_log_folder(store, runtime) / ref.key
        _train(store, build, refs, config, runtime, log_folder, on_progress)

    asked = request(config, preferences=preferences, sample=sample, prompts=prompts, attributes=attributes, start=start)
    return produce(asked, runtime, fill)


def _train(
    store: Store,
    build: Build,
    refs: TrainingRefs,
    config: PipelineConfig,
    runtime: RuntimeConfig,
    log_folder: Path,
    on_progress: Progress,
) -> None:
    import torch

    from popalign_core.denoisers import family_of
    from popalign_core.sampling.models import load_pipeline
    from popalign_core.training.card import model_card
    from popalign_core.training.output import save_lora, save_model
    from tasks.launch import launch_training
    from tasks.training_inputs import run_training

    set_threads(runtime)
    if runtime.trackers:
        with storage_errors(f"make the log folder {log_folder}, which runtime.log_folder moves"):
            log_folder.mkdir(parents=True, exist_ok=True)
    work = build.work / "checkpoints"
    if runtime.n_processes > 1 or runtime.accelerate_config:
        denoiser, log = launch_training(refs, config, runtime, work, on_progress, log_folder)
    else:
        denoiser, log = run_training(store, refs, config, runtime, work, on_progress, log_folder=log_folder)
    pipeline = load_pipeline(config.model, device=torch.device("cpu"), folder=refs.start_folder(store))
    pipeline.register_modules(**{family_of(denoiser).component: denoiser.to("cpu")})
    if config.training.lora_rank > 0:
        save_lora(pipeline, build.folder / "lora")
    save_model(pipeline, build.folder / "model")
    card = model_card(config, refs.keys(), log)
    (build.folder / "model" / "README.md").write_text(card, encoding="utf-8")
    build.write_table("training_log", pd.DataFrame(log, columns=["step", "name", "value"]))


def find_log_folder(store: Store, runtime: RuntimeConfig) -> Path:
    """Where trackers write: on this machine, whatever the store's root is."""
    if runtime.log_folder is not None:
        return Path(runtime.log_folder)
    return Path(store.root) / "logs" if "://" not in store.root else Path("logs")
