"""The models of trainings in the store: an artifact has what was trained alone, and its base model lies elsewhere."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import ValidationError

from popalign_core.config import ModelConfig
from popalign_core.errors import ConfigError, MissingWeightsError, PopAlignError, StoreError
from popalign_core.models.file_hashes import hash_file, hash_folder
from popalign_core.models.loading import LORA_FILE, model_hash
from popalign_core.models.local_models import local_folder
from popalign_core.models.model_files import find_pipeline_folder
from popalign_core.models.single_files import is_single_file
from popalign_core.models.trained_weights import (
    TRAINED_FILE,
    TrainedModel,
    TrainedPart,
    TrainingRecord,
    read_training_record,
)
from storage.store import ArtifactRef, Store

_WHOLE = "model"
"""Folder with a whole pipeline, in artifacts of versions before 4."""
_NOT_OF_WEIGHTS = {"dtype", "storage"}
_PATHS = ("denoiser", "vae", "lora")


def read_training(store: Store, ref: ArtifactRef) -> TrainingRecord | None:
    """What a training was; None for an artifact of a version before 4, which holds a whole model.

    Raises:
        StoreError: When there is no such artifact, or it is damaged.
    """
    if TRAINED_FILE not in store.manifest(ref).files:
        return None
    return read_training_record(store.localize(ref, TRAINED_FILE))


def training_chain(store: Store, ref: ArtifactRef) -> list[ArtifactRef]:
    """A training and those that it started from, the first one first.

    Raises:
        StoreError: When one of them is not in the store any more, or is damaged.
    """
    chain, record = [ref], read_training(store, ref)
    while record is not None and record.start is not None:
        start = ArtifactRef(ref.stage, record.start)
        if not store.is_published(start):
            raise StoreError(
                f"{chain[0]} started from {start}, which {store.root} no longer has; run again what made it"
            )
        chain.insert(0, start)
        record = read_training(store, start)
    return chain


def find_trained(store: Store, ref: ArtifactRef, model: ModelConfig) -> TrainedModel:
    """The model of a training: its base where it lies on this machine, and what was trained, checksums compared.

    Args:
        store: Where the training is.
        ref: Its artifact.
        model: Of the configuration: the base model, as a rule. Else the store's records are asked.

    Raises:
        MissingWeightsError: When the base model is not there; says which, and how to get it.
        ConfigError: When there is only one with other weights.
        StoreError: When an artifact is gone or damaged.
    """
    record = read_training(store, ref)
    if record is None:
        return TrainedModel(ModelConfig(name=str(store.localize(ref, _WHOLE))), ())
    parts = tuple(_find_parts(store, training_chain(store, ref)))
    return TrainedModel(find_base(store, record.base, model, what=str(ref)), parts)


def find_base(store: Store, wanted: str, model: ModelConfig, *, what: str) -> ModelConfig:
    """The base model with a hash.

    Args:
        store: Its records are asked after the configuration.
        wanted: `model_hash` of it.
        model: Of the configuration.
        what: Was trained from it, for the message.

    Raises:
        MissingWeightsError: When no model that is known to have had these weights is there.
        ConfigError: When what is there has others.
    """
    recorded = list(_recorded(store, wanted))
    others = list[str]()
    problems = list[PopAlignError]()
    for each in (model, *recorded):
        try:
            found = model_hash(each)
            if found == wanted:
                find_pipeline_folder(each)
                return each
            others.append(f"{each.name} has {_short(found)}")
        except PopAlignError as error:
            if each in recorded or not recorded:
                problems.append(error)
    name = f"{recorded[0].name} " if recorded else ""
    base = f"{what} was trained from the model {name}with the hash {_short(wanted)}"
    if problems:
        raise MissingWeightsError(
            f"{base}, which cannot be loaded: {problems[0]}. If it lies elsewhere, give it as model.name"
        ) from problems[0]
    raise ConfigError(
        f"{base}, but {'; '.join(others)}: give the model that it was trained from as model.name, or get it with "
        "`popalign fetch` and the configuration of that training"
    )


def keep_base(store: Store, model: ModelConfig) -> None:
    """Remember where a base model lies, for commands that are given a training alone.

    Raises:
        StoreError: When the store cannot be written.
    """
    document = model.model_dump(mode="json", exclude=_NOT_OF_WEIGHTS, exclude_none=True)
    paths = [name for name in _PATHS if name in document]
    # a hub id and "portraits" are no paths, whatever lies here under the same name
    paths += ["name"] if is_single_file(model.name) or (model.name != "portraits" and local_folder(model)) else []
    paths += ["config"] if model.config is not None and Path(model.config).is_dir() else []
    document |= {name: str(Path(document[name]).absolute()) for name in paths}
    if model.loras:
        document["loras"] = [{"path": str(Path(lora.path).absolute()), "scale": lora.scale} for lora in model.loras]
    store.model_records().add(model_hash(model), document)


def trained_hash(store: Store, ref: ArtifactRef) -> str:
    """What identifies the weights of a training, wherever its base model lies, and whether it does.

    Raises:
        StoreError: When an artifact is gone or damaged.
    """
    record = read_training(store, ref)
    if record is None:
        return model_hash(ModelConfig(name=str(store.localize(ref, _WHOLE))))
    parts = _find_parts(store, training_chain(store, ref))
    digests = [hash_file(part.path) if part.is_lora else hash_folder(part.path) for part in parts]
    return "+".join([record.base, *(f"trained:{digest}" for digest in digests)])


def _find_parts(store: Store, chain: Iterable[ArtifactRef]) -> Iterator[TrainedPart]:
    for ref in chain:
        record = read_training(store, ref)
        if record is None:
            raise StoreError(f"{ref} is of a version before 4, and holds no record of what was trained; train it again")
        path = store.localize(ref, f"lora/{LORA_FILE}" if record.is_lora else record.component)
        yield TrainedPart(record.component, path)


def _recorded(store: Store, wanted: str) -> Iterator[ModelConfig]:
    for document in store.model_records().find(wanted):
        try:
            yield ModelConfig.model_validate(document)
        except ValidationError:  # of another version of this program
            continue


def _short(found: str) -> str:
    """Enough of a hash to tell it from others."""
    return "+".join(part if "@" in part else part[:20] for part in found.split("+"))
