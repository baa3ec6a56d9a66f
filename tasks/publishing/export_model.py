"""The model of a run for other programs: a folder that diffusers loads, or one file; nothing in it is a link."""

import shutil
import uuid
from pathlib import Path

from popalign_core.config import ModelConfig, PipelineConfig, RuntimeConfig
from popalign_core.errors import ConfigError, InputError
from popalign_core.models.linked_files import copy_file, link_file, share_file
from popalign_core.models.model_files import find_pipeline_folder
from popalign_core.models.trained_weights import LORA_FOLDER, TrainedModel
from storage.file_modes import take_umask
from storage.roots import storage_errors
from storage.store import ArtifactRef, Store
from tasks.common.stage_object import open_store
from tasks.common.trained_models import find_trained
from tasks.publishing.published_model import MODEL_FOLDER
from tasks.stages.train import CARD, train_model


def export_model(run: str, path: Path, *, merge: bool, runtime: RuntimeConfig) -> bool:
    """Write the model of a run into a new folder that needs no other: with `lora/` beside the base model that an
    adapter was trained on, or merged.

    Args:
        run: Name of a run that trained, or the key of a training.
        path: Of the folder; must not be there, or be empty.
        merge: Whether an adapter is merged into the denoiser; what was trained whole is in its place anyway.
        runtime: Which store.

    Returns:
        Whether the folder has an adapter beside the model, which is the base model without it.

    Raises:
        InputError: When there is no such run, it trained nothing, or there is something at `path`.
        MissingWeightsError: When the base model is not there.
        StoreError: When the training is gone, or the folder cannot be written.
    """
    from popalign_core.models.whole_model import write_whole_model
    from storage.formats.export_folder import new_folder

    store = open_store(runtime)
    ref, model, card = find_run_model(store, run)
    with new_folder(path) as folder:
        trained = find_trained(store, ref, model)
        is_apart = not merge and bool(trained.parts) and trained.parts[-1].is_lora
        whole = TrainedModel(trained.base, trained.parts[:-1]) if is_apart else trained
        write_whole_model(folder, whole, model.dtype, copy_file)
        if is_apart:
            (folder / LORA_FOLDER).mkdir()
            copy_file(trained.parts[-1].path, folder / LORA_FOLDER / trained.parts[-1].path.name)
        (folder / CARD).write_text(card, encoding="utf-8")
        take_umask(folder)
    return is_apart


def export_single_file(run: str, path: Path, *, runtime: RuntimeConfig) -> None:
    """Write the model of a run as one file under the original names of its weights, an adapter merged.

    Args:
        run: As of `export_model`.
        path: Of the file; must not be there, and end in .safetensors.
        runtime: Which store.

    Raises:
        InputError: When there is no such run, it trained nothing, or there is something at `path`.
        ConfigError: When the path ends otherwise, or the model is of a family that has no such form.
        MissingWeightsError: When the base model is not there.
        StoreError: When the training is gone, or the file cannot be written.
    """
    from popalign_core.models.single_file_export import check_single_file, write_single_file
    from popalign_core.models.whole_model import write_whole_model
    from storage.formats.export_folder import new_folder

    if path.suffix != ".safetensors":
        raise ConfigError(f"{path} does not end in .safetensors, as the file of --single-file must; give such a path")
    if path.exists():
        raise InputError(f"{path} already exists; choose another file, or delete it")
    store = open_store(runtime)
    ref, model, _ = find_run_model(store, run)
    trained = find_trained(store, ref, model)
    base = find_pipeline_folder(trained.base)
    if trained.base.denoiser is None:
        check_single_file(base)  # before an adapter is merged, which takes minutes
    work = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with new_folder(work) as folder, storage_errors(f"write {path}"):
            (folder / MODEL_FOLDER).mkdir()
            write_whole_model(folder / MODEL_FOLDER, trained, model.dtype, link_file, share_file)
            write_single_file(folder / MODEL_FOLDER, folder / path.name)
            take_umask(folder)
        with storage_errors(f"write {path}"):
            (work / path.name).rename(path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def find_run_model(store: Store, run: str) -> tuple[ArtifactRef, ModelConfig, str]:
    """The training of a run, the model of its configuration, and its card.

    Raises:
        InputError: When there is no such run, or it trained nothing.
        StoreError: When its record is damaged.
    """
    name = f"{train_model.name}-v"
    key = run.removeprefix(f"{train_model.name}/")
    if key.startswith(name) and store.is_published(ref := ArtifactRef(train_model.name, key)):
        return ref, ModelConfig(), _read_card(store, ref)
    folder = store.run_folder(run)
    meta = (folder.read_record() or {}).get("meta", {})
    trained = meta.get("nodes", {}).get(train_model.name)
    if trained is None:
        raise InputError(
            f"{store.root} has no run {run!r} that trained a model; give the name of a folder in runs/, or the key of "
            "a training as `popalign plan` lists it"
        )
    ref = ArtifactRef(*trained.split("/", 1))
    model = PipelineConfig.model_validate(meta["config"]).model
    return ref, model, folder.read_text(f"{MODEL_FOLDER}/{CARD}") or _read_card(store, ref)


def _read_card(store: Store, ref: ArtifactRef) -> str:
    file = CARD if CARD in store.manifest(ref).files else f"{MODEL_FOLDER}/{CARD}"
    return store.localize(ref, file).read_text(encoding="utf-8")
