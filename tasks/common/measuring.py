"""Who measures: the classifiers and scorers a configuration can name, and what identifies each in a key."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popalign_core.config import (
    AttributesConfig,
    Axis,
    ClipScoreConfig,
    EvaluationConfig,
    ModelConfig,
    PipelineConfig,
    SamplingConfig,
    ScorerConfig,
)
from popalign_core.config.evaluation import CLIP_SCORE
from popalign_core.evaluation.quality.scorer_files import weights_of
from popalign_core.models.file_hashes import hash_file, hash_folder
from popalign_core.models.loading import reads_guidance
from popalign_core.models.local_models import local_folder
from popalign_core.models.single_files import is_single_file
from popalign_core.portraits import weights_folder
from tasks.common.needs import require_classifier
from tasks.common.stage_object import drop_fields, keep_fields

if TYPE_CHECKING:
    from popalign_core.attributes.classifier_interface import AttributeClassifier
    from popalign_core.evaluation.quality.scorer_factory import Judges

_PREPROCESSING = 2
"""Goes up when the same folder of an image classifier is given other pixels."""


@dataclass(frozen=True)
class Classifier:
    """A classifier that ships, or is a dependency, by its name in `AttributesConfig`.

    Attributes:
        identity: What stands for its weights in a key; cheap, imports no torch.
        load: From the configuration and a device's name.
    """

    identity: Callable[[], str]
    load: Callable[[AttributesConfig, str], "AttributeClassifier"]


def folder_digest(folder: Path) -> str:
    """sha256 over the names and bytes of a folder's files, wherever it lies."""
    return hash_folder(folder, suffixes=None)


def base_model(model: ModelConfig) -> ModelConfig:
    """A configured model as views hold it: what lies in a folder has no revision, and `config` is for single files.

    Raises:
        PopAlignError: As `sampling.models.local_folder`.
    """
    if is_single_file(model.name):
        return model
    return drop_fields(model, "config") if local_folder(model) is None else drop_fields(model, "revision", "config")


def unhashed_base() -> dict[str, str]:
    """Fields of a view's model that its key does not depend on, where a training stands for the model."""
    fields = set(ModelConfig.model_fields) - {"dtype", "storage"}
    return {f"model.{name}": "the training says by hash which model it must be" for name in sorted(fields)}


def sampling_told(config: PipelineConfig) -> SamplingConfig:
    """What a model is told of the sampling when it trains: the size, and the guidance scale where it reads that."""
    fields = ("width", "height", "guidance_scale") if reads_guidance(config.model) else ("width", "height")
    return keep_fields(config.sampling, *fields)


def content_digest(path: Path) -> str:
    """sha256 of a file's bytes, or `folder_digest`.

    Raises:
        MissingWeightsError: When there is nothing.
    """
    require_classifier(path)
    return folder_digest(path) if path.is_dir() else hash_file(path)


def classifier_identity(config: AttributesConfig) -> Any:
    """What identifies the classifiers in a key: weights and labels by their content, never by their path."""
    found = [_identity(name, config) for name in config.names]
    return found[0] if isinstance(config.classifier, str) else found


def load_attribute_classifier(
    config: AttributesConfig, device: str, axes: Sequence[Axis] = ()
) -> "AttributeClassifier":
    """The configured classifier. All but the shipped one work in a process of their own.

    Args:
        config: Which classifiers.
        device: Where networks go.
        axes: Those among them of the whole image are read off that.

    Raises:
        MissingWeightsError: When a file is absent.
        ConfigError: When a package is.
        InputError: When a file is not what it should be.
    """
    if config.classifier in CLASSIFIERS:
        return CLASSIFIERS[str(config.classifier)].load(config, device)
    from popalign_core.attributes.classifier_factory import build_classifier

    contents = {name: content_digest(Path(config.classifiers[name].path)) for name in _described(config)}
    of_image = frozenset(axis.name for axis in axes if axis.of == "picture")
    return _isolate(partial(build_classifier, config, contents=contents, of_image=of_image), device)


def _described(config: AttributesConfig) -> list[str]:
    return [name for name in config.names if name in config.classifiers]


def _identity(name: str, config: AttributesConfig) -> Any:
    if name in CLASSIFIERS:
        return CLASSIFIERS[name].identity()
    settings = config.classifiers[name]
    identity = settings.model_dump(mode="json", exclude={"path"}) | {"content": content_digest(Path(settings.path))}
    return identity | ({"preprocessing": _PREPROCESSING} if settings.kind == "image-classifier" else {})


def _isolate(load: "Callable[[str], AttributeClassifier]", device: str) -> "AttributeClassifier":
    """What `load` makes for a device, in a process that sees no GPU but that: detectors and ONNX take the first one."""
    import torch

    from popalign_core.attributes.classifier_process import IsolatedClassifier

    kind, _, number = device.partition(":")
    if kind != "cuda" or not number:
        return IsolatedClassifier(partial(load, device), torch.get_num_threads())
    return IsolatedClassifier(partial(load, kind), torch.get_num_threads(), int(number))


def _load_portraits(config: AttributesConfig, device: str) -> "AttributeClassifier":
    from popalign_core.attributes.portraits_classifier import PortraitsFaceClassifier

    return PortraitsFaceClassifier(device)


def _load_deepface(config: AttributesConfig, device: str) -> "AttributeClassifier":
    from popalign_core.attributes.deepface import DeepFaceClassifier

    return _isolate(partial(DeepFaceClassifier, config), device)


CLASSIFIERS: dict[str, Classifier] = {
    "portraits": Classifier(lambda: folder_digest(weights_folder() / "classifier"), _load_portraits),
    # Its weights files are fixed by the package; hashing 1 GB for every plan would not pay.
    "deepface": Classifier(lambda: f"deepface-{metadata.version('deepface')}", _load_deepface),
}


def clip_folder() -> Path:
    """The CLIP model behind CLIP score and subject accuracy, where the configuration names no other."""
    return weights_folder() / "clip"


def scorer_identities(config: EvaluationConfig) -> dict[str, Any]:
    """What identifies the scorers in a key: weights by their content, never by their path; null for absent ones."""
    if not config.scorers:
        return {"clip": folder_digest(clip_folder())}
    contents = _scorer_contents(config.scorers)
    paths = {"path", "clip", "tokenizer", "processor"}
    return {
        name: settings.model_dump(mode="json", exclude=paths) | {"content": contents.get(name)}
        for name, settings in config.scorers.items()
    }


def load_judges(config: EvaluationConfig, device: str) -> "Judges":
    """Who scores, each loaded once.

    Raises:
        ConfigError: When a package is absent.
        InputError: When a file is not what it should be.
    """
    from popalign_core.evaluation.quality.scorer_factory import build_judges

    scorers = config.scorers or {CLIP_SCORE: ClipScoreConfig(kind="clip")}
    return build_judges(scorers, clip_folder(), device, _scorer_contents(scorers))


def _scorer_contents(scorers: Mapping[str, ScorerConfig]) -> dict[str, str]:
    """Name -> sha256 of all that a scorer reads; without those of which something is not there."""
    contents = {}
    for name, settings in scorers.items():
        paths = list(weights_of(settings)) or [clip_folder()]
        if all(path.exists() for path in paths):
            contents[name] = hashlib.sha256("".join(map(_weights_digest, paths)).encode()).hexdigest()
    return contents


def _weights_digest(path: Path) -> str:
    """Checkpoints have gigabytes and every plan asks, so a file is read again only when its size or time changed."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(file.as_posix(), file.stat()) for file in files if file.is_file()]
    return _digest_unchanged(path, tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))


@lru_cache(maxsize=64)
def _digest_unchanged(path: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    return hash_folder(path) if path.is_dir() else hash_file(path)
