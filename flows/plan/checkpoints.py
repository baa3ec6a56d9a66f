"""Finds checkpoints that were never evaluated and puts them on the leaderboard, with Prefect tasks or without."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from flows.plan.execution import Call, run_plan
from flows.plan.planning import Plan, plan_keys, plan_run
from flows.plan.steps import PROMPT_STEPS, Step, evaluation_steps
from popalign_core.config import ModelConfig, PipelineConfig, RuntimeConfig
from popalign_core.errors import ConfigError, MissingWeightsError, PopAlignError
from popalign_core.models.loading import model_hash
from popalign_core.models.local_models import local_folder
from popalign_core.models.single_files import SUFFIX, is_single_file
from storage.store import ArtifactRef, Store
from tasks.common.reservations import reserve_made
from tasks.common.stage_object import open_store
from tasks.common.trained_models import trained_hash, training_chain
from tasks.publishing.leaderboard import append_leaderboard, read_leaderboard
from tasks.stages.round_inputs import STATE_FILE
from tasks.stages.train import train_model

_log = logging.getLogger(__name__)

SYSTEM = "checkpoint"
"""What every checkpoint is called in its metrics table: equal weights share one evaluation, whatever their names."""


@dataclass(frozen=True)
class CandidateModel:
    """A diffusers pipeline folder, what a single file became, or a training in the store.

    Attributes:
        name: What the leaderboard calls it.
        folder: Where it lies; of a training, what it trained.
        model_hash: Of its weights.
        trained: The artifact of a training, whose evaluation images may be there already.
    """

    name: str
    folder: Path
    model_hash: str
    trained: ArtifactRef | None = None


def find_checkpoints(watch: str | None, runtime: RuntimeConfig, config: str | None = None) -> list[CandidateModel]:
    """Every pipeline folder and every single file below `watch`; without `watch`, the trained models in the store, of
    trainings in rounds the last ones.

    A single file that cannot be read, such as a LoRA or one that is still being copied, is logged and left out.

    Args:
        watch: The folder.
        runtime: Which store.
        config: As `model.config`: where single files get their configurations.

    Raises:
        ConfigError: When `watch` is no folder.
    """
    if watch is None:
        store = open_store(runtime)
        trained = sorted(
            (ref for ref in store.list_artifacts() if ref.stage == train_model.name and not _is_followed(store, ref)),
            key=lambda ref: ref.key,
        )
        return [trained_model(ref.key, ref, store) for ref in trained]
    root = Path(watch)
    if not root.is_dir():
        raise ConfigError(
            f"the watch folder {watch!r} does not exist; create it, or give one that contains diffusers folders"
        )
    folders = sorted(path.parent for path in root.rglob("model_index.json"))
    found = [_checkpoint(folder.relative_to(root).as_posix(), folder) for folder in folders]
    files = [path for path in sorted(root.rglob(f"*{SUFFIX}")) if not any(path.is_relative_to(f) for f in folders)]
    for path in files:
        try:
            found.append(_checkpoint(path.relative_to(root).as_posix(), _folder(str(path), config)))
        except PopAlignError as error:
            _log.warning("left out: %s", error)
    return found


def _is_followed(store: Store, ref: ArtifactRef) -> bool:
    """Whether it is a round of training that another one goes on from."""
    return STATE_FILE in store.manifest(ref).files


def trained_model(name: str, ref: ArtifactRef, store: Store) -> CandidateModel:
    """The model of a training in the store, under a name."""
    return CandidateModel(name, store.localize(ref), trained_hash(store, ref), ref)


def named_checkpoints(models: Iterable[str], config: str | None = None) -> list[CandidateModel]:
    """Checkpoints by folder or single file, or by the name of a model that ships with the package.

    Raises:
        MissingWeightsError: For a name that is no folder, a hub id among them, or a folder that holds no pipeline.
    """
    return [_checkpoint(model, _folder(model, config)) for model in dict.fromkeys(models)]


def evaluation_protocol(config: PipelineConfig, runtime: RuntimeConfig) -> str:
    """What a leaderboard row depends on, apart from the weights: prompts, sampling, classifier, metrics, versions."""
    return plan_keys(config, runtime, _steps("any"), given={"any": ArtifactRef("model", "any")})[-1].ref.key


def new_checkpoints(found: Iterable[CandidateModel], protocol: str, root: str) -> list[CandidateModel]:
    """Those whose weights a store's leaderboard does not have under this protocol, each weights once."""
    board = read_leaderboard(root)
    known = set(board.loc[board["protocol"] == protocol, "model_hash"])
    fresh = {checkpoint.model_hash: checkpoint for checkpoint in reversed(list(found))}
    return [checkpoint for checkpoint in reversed(fresh.values()) if checkpoint.model_hash not in known]


def evaluate_checkpoints(
    checkpoints: Iterable[CandidateModel], config: PipelineConfig, runtime: RuntimeConfig, *, call: Call
) -> pd.DataFrame:
    """Evaluate those that are new, and append each to the leaderboard as soon as it is done.

    Args:
        checkpoints: Candidates; those already on the leaderboard are left alone.
        config: Prompts, sampling, classifier and metrics; its model gives the dtype only.
        runtime: Store, device, batch size.
        call: How a stage is called.

    Returns:
        The rows added; none when nothing is new.

    Raises:
        PopAlignError: After all were tried, the error of the first that failed, with the checkpoint's name.
    """
    protocol, added, failures = evaluation_protocol(config, runtime), [], list[PopAlignError]()
    for checkpoint in new_checkpoints(checkpoints, protocol, runtime.root):
        try:
            planned = _plan_evaluation(checkpoint, config, runtime)
            reserve_made([*planned.refs.values(), *_started_from(checkpoint, runtime)], runtime, "evaluate")
            refs = run_plan(planned, runtime, call)
        except PopAlignError as error:
            error.add_note(f"checkpoint {checkpoint.name} in {checkpoint.folder}")
            failures.append(error)
            continue
        metrics = open_store(runtime).read_table(refs[f"evaluate:{SYSTEM}"], "metrics")
        identity = {"checkpoint": checkpoint.name, "model_hash": checkpoint.model_hash, "protocol": protocol}
        rows = pd.DataFrame(identity, index=metrics.index).join(metrics)
        append_leaderboard(runtime.root, rows)
        added.append(rows)
    if failures:
        raise failures[0]
    return pd.concat(added, ignore_index=True) if added else read_leaderboard(runtime.root).head(0)


def _plan_evaluation(checkpoint: CandidateModel, config: PipelineConfig, runtime: RuntimeConfig) -> Plan:
    """What is left to do for one; what the run of a trained model has sampled by the same configuration is a hit."""
    if checkpoint.trained is not None:
        return plan_run(config, runtime, _steps("train"), given={"train": checkpoint.trained})
    model = ModelConfig(name=str(checkpoint.folder), dtype=config.model.dtype, storage=config.model.storage)
    return plan_run(config.model_copy(update={"model": model}), runtime, _steps())


def _started_from(checkpoint: CandidateModel, runtime: RuntimeConfig) -> list[ArtifactRef]:
    """The trainings that one started from, without which it cannot be loaded."""
    return [] if checkpoint.trained is None else training_chain(open_store(runtime), checkpoint.trained)


def _steps(model: str | None = None) -> tuple[Step, ...]:
    return (*PROMPT_STEPS, *evaluation_steps(SYSTEM, model=model))


def _folder(model: str, config: str | None) -> Path:
    """Where a model lies. A hub id is turned away: nothing here says which revision of it is meant."""
    is_local = model == "portraits" or Path(model).is_dir() or is_single_file(model)
    folder = local_folder(ModelConfig(name=model, config=config)) if is_local else None
    if folder is None:
        raise MissingWeightsError(
            f"model {model!r} is not a folder or a .safetensors file; give one, 'portraits' or, to `popalign check`, a "
            "run's name"
        )
    return folder


def _checkpoint(name: str, folder: Path) -> CandidateModel:
    return CandidateModel(name, folder, model_hash(ModelConfig(name=str(folder))))
