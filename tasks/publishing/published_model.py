"""The model in a run's folder: on this machine a pipeline that diffusers loads, in an object store what was trained."""

import json
from pathlib import Path

from popalign_core.config import ModelConfig
from popalign_core.errors import PopAlignError
from popalign_core.models.linked_files import BASE_NOTE, BaseNote, link_file, read_note, share_file
from popalign_core.models.loading import model_hash
from popalign_core.models.model_files import find_pipeline_folder
from popalign_core.models.trained_weights import LORA_FOLDER
from storage.store import ArtifactRef, RunFolder, Store
from tasks.common.trained_models import find_trained, read_training

MODEL_FOLDER = "model"
INDEX = "trained-model.json"
"""In an object store, where there are no links: what to put together, which `popalign export model` does."""


def publish_model(store: Store, train: ArtifactRef, model: ModelConfig, folder: RunFolder) -> None:
    """Write model/, and lora/ where an adapter was trained; an earlier run's does not stay beside the new model.

    On this machine model/ loads with `from_pretrained`: what training left alone is links to the base model's files,
    a trained denoiser shares those of the artifact, and what an adapter was merged into is written once.

    Args:
        store: Where the training is.
        train: Its artifact.
        model: Of the run's configuration.
        folder: Of the run.

    Raises:
        MissingWeightsError: When the base model is not there any more.
        StoreError: When the folder cannot be written.
    """
    record = read_training(store, train)
    if folder.local_path is None:
        _publish_index(store, train, model, folder)
    elif not _is_current(folder.local_path / MODEL_FOLDER, train):
        _publish_links(store, train, model, folder)
    folder.remove_tree(LORA_FOLDER)
    if record is not None and record.is_lora:
        folder.copy_tree(store.localize(train, LORA_FOLDER), LORA_FOLDER)


def _publish_links(store: Store, train: ArtifactRef, model: ModelConfig, folder: RunFolder) -> None:
    from popalign_core.models.whole_model import write_whole_model

    trained = find_trained(store, train, model)
    note = BaseNote(trained.base, model_hash(trained.base), train.key)
    with folder.new_tree(MODEL_FOLDER) as partial:
        write_whole_model(partial, trained, model.dtype, link_file, share_file)
        (partial / BASE_NOTE).write_text(note.to_toml(), encoding="utf-8")


def _is_current(place: Path, train: ArtifactRef) -> bool:
    """Whether the same training's model lies there whole already: to merge an adapter again would take minutes."""
    note = read_note(place)
    if note is None or note.trained != train.key:
        return False
    try:
        return find_pipeline_folder(ModelConfig(name=str(place))) == place
    except PopAlignError:
        return False


def _publish_index(store: Store, train: ArtifactRef, model: ModelConfig, folder: RunFolder) -> None:
    record = read_training(store, train)
    assert record is not None  # no run trains by a version before
    folder.remove_tree(MODEL_FOLDER)
    if not record.is_lora:
        folder.copy_tree(store.localize(train, record.component), f"{MODEL_FOLDER}/{record.component}")
    document = {
        "trained": train.key,
        "base": model.model_dump(mode="json", exclude_none=True),
        "record": json.loads(record.to_json()),
        "whole": f"popalign export model {folder.name} PATH --root {store.root}",
    }
    folder.write_text(f"{MODEL_FOLDER}/{INDEX}", json.dumps(document, indent=1, sort_keys=True) + "\n")
