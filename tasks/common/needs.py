"""What stages need of this machine: files, classes, packages, devices, keys. All of it is known before the first image.

One table for all: a run refuses what is missing, and `popalign doctor` shows it. Imports no torch, but to look for a
device that is named.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from popalign_core.attributes.deepface_files import DETECTOR_WEIGHTS, HEAD_WEIGHTS, deepface_source, require_weights
from popalign_core.attributes.known_classes import check_classes, classes_read, shared_classes
from popalign_core.config import (
    AttributesConfig,
    Axis,
    EvaluationConfig,
    ModelConfig,
    NetworkConfig,
    OpenClipConfig,
    PeopleConfig,
    PromptsConfig,
    RuntimeConfig,
    ZeroShotConfig,
)
from popalign_core.errors import ConfigError, MissingWeightsError
from popalign_core.evaluation.quality.scorer_files import public_source, require, weights_of
from popalign_core.models.model_sources import denoiser_source, lora_source, pipeline_source, vae_source
from popalign_core.models.weights_check import weight_files
from popalign_core.portraits import weights_folder
from popalign_core.sources import Source, how_to_get
from tasks.common.prompt_lists import FIELDS, read_list

_PAID_SERVICE = "https://api.openai.com"
"""Other services may do without a key, as servers on this machine do."""
_RUNNER_PACKAGES = {"ray": "prefect_ray", "dask": "prefect_dask"}
_DETECTOR_PACKAGES = {"fastmtcnn": ("facenet_pytorch", "facenet-pytorch")}
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Need:
    """One thing that a stage cannot do without.

    Attributes:
        what: In words, with the name or the path that is meant: equal words are one need.
        find: Says where it is, or raises the project's error, which says how to get it.
        is_optional: Whether the stage does without it: measures of a scorer that is not there are "not measured".
        source: Where its files come from, as `popalign fetch` gets them; None where nobody but the user knows.
    """

    what: str
    find: Callable[[], object] = field(compare=False)
    is_optional: bool = False
    source: Source | None = field(default=None, compare=False)


def prompt_needs(prompts: PromptsConfig) -> Iterator[Need]:
    """The prompt lists, and the key of the language model."""
    names = [name for each in FIELDS for name in getattr(prompts, each)]
    for name in dict.fromkeys((*names, *(benchmark.list for benchmark in prompts.benchmarks.values()))):
        yield Need(f"prompt list {name}", partial(_find_list, name))
    if prompts.source == "llm" and (llm := prompts.llm) is not None and llm.base_url.startswith(_PAID_SERVICE):
        yield Need(f"key in ${llm.api_key_env}", partial(_find_key, llm.api_key_env))


def machine_needs(runtime: RuntimeConfig) -> Iterator[Need]:
    """The device, and what its workers run in."""
    yield Need(f"device {runtime.device}", partial(_find_device, runtime.device))
    if package := _RUNNER_PACKAGES.get(runtime.runner):
        fix = f"pip install 'popalign[{runtime.runner}]', or set runtime.runner to processes"
        yield Need(f"package {package}", partial(_find_package, package, f"runtime.runner {runtime.runner!r}", fix))


def model_needs(model: ModelConfig) -> Iterator[Need]:
    """The base model's pipeline, and what is put in its place or fused into it."""
    from popalign_core.models.model_files import (
        find_denoiser_folder,
        find_lora_file,
        find_pipeline_folder,
        find_vae_folder,
    )

    yield Need(f"model {model.name}", partial(find_pipeline_folder, model), source=pipeline_source(model))
    if model.denoiser is not None:
        found = partial(find_denoiser_folder, model)
        yield Need(f"denoiser {model.denoiser}", found, source=denoiser_source(model))
    if model.vae is not None:
        yield Need(f"VAE {model.vae}", partial(find_vae_folder, model), source=vae_source(model))
    for lora in model.all_loras:
        yield Need(f"LoRA {lora.path}", partial(find_lora_file, lora.path), source=lora_source(lora.path))


def classifier_needs(settings: AttributesConfig, axes: tuple[Axis, ...]) -> Iterator[Need]:
    """Each classifier's files, the detector's, and every class of the axes.

    Args:
        settings: Who reads.
        axes: What is to be read.
    """
    for name in settings.names:
        if name == "portraits":
            yield Need("classifier portraits", lambda: _find_network(weights_folder() / "classifier", "portraits"))
        elif name == "deepface":
            for axis in ("gender", "race", *(["age"] if settings.age_bands else [])):
                file, url = HEAD_WEIGHTS[axis]
                yield _deepface_need(f"DeepFace {file}", file, url)
        else:
            yield from _described_needs(name, settings.classifiers[name])
    if _detects_faces(settings, axes):
        yield from _detector_needs(settings.detector_backend)
    said = "+".join(settings.names)
    classes = ", ".join(f"{axis.name} ({', '.join(axis.classes)})" for axis in axes)
    yield Need(f"classifier {said} for {classes}", partial(_find_classes, settings, axes))


def scorer_needs(evaluation: EvaluationConfig) -> Iterator[Need]:
    """Each scorer's files; a run goes on without them, but not without the package of one whose files are there."""
    for name, settings in evaluation.scorers.items():
        for path in weights_of(settings):
            what, source = f"scorer {name}, {path}", public_source(path, "scorers")
            yield Need(what, partial(require, path), is_optional=True, source=source)
        if isinstance(settings, OpenClipConfig) and Path(settings.path).exists():
            yield _open_clip(f"evaluation.scorers.{name}")


def _described_needs(name: str, settings: ZeroShotConfig | NetworkConfig | PeopleConfig) -> Iterator[Need]:
    path, what = Path(settings.path), f"classifier {name}, {settings.path}"
    if settings.kind in ("image-classifier", "clip"):
        source = public_source(path, "classifiers") if settings.kind == "clip" else None
        yield Need(what, partial(_find_network, path, name), source=source)
        return
    yield Need(what, partial(_find_file, path))
    if settings.kind == "open-clip":
        yield _open_clip(f"attributes.classifiers.{name}")
    if settings.kind == "onnx":
        asked_by = f"attributes.classifiers.{name}"
        yield Need("package onnxruntime", partial(_find_package, "onnxruntime", asked_by, "pip install onnxruntime"))


def _detects_faces(settings: AttributesConfig, axes: tuple[Axis, ...]) -> bool:
    """The embedded classifier knows where a face is; axes of the whole image need none."""
    of_image = {axis.name for axis in axes if axis.of == "picture"}
    finders = [
        name
        for name in settings.names
        if name != "portraits" and not isinstance(settings.classifiers.get(name), PeopleConfig)
    ]
    return any(name == "deepface" or set(classes_read(name, settings)) - of_image for name in finders)


def _detector_needs(backend: str) -> Iterator[Need]:
    for file, url in DETECTOR_WEIGHTS.get(backend, ()):
        yield _deepface_need(f"face detector {backend}, {file}", file, url)
    if backend in _DETECTOR_PACKAGES:
        package, distribution = _DETECTOR_PACKAGES[backend]
        fix = f"pip install {distribution}, or use 'opencv'"
        asked_by = f"attributes.detector_backend {backend!r}"
        yield Need(f"package {distribution}", partial(_find_package, package, asked_by, fix))


def _deepface_need(what: str, file: str, url: str) -> Need:
    return Need(what, partial(require_weights, file, url), source=deepface_source(file, url))


def _open_clip(asked_by: str) -> Need:
    fix = "pip install 'popalign[clip]'"
    return Need("package open_clip_torch", partial(_find_package, "open_clip", asked_by, fix))


def _find_list(name: str) -> str:
    return read_list(name).name


def _find_key(variable: str) -> str:
    if not os.environ.get(variable, "").strip():
        raise ConfigError(
            f"${variable} holds no key, and {_PAID_SERVICE} answers nobody without one; export it, or name another "
            "variable in prompts.llm.api_key_env"
        )
    return f"${variable}"


def _find_device(name: str) -> str:
    if name in ("auto", "cpu"):
        return name
    from popalign_core.models.loading import resolve_device

    return str(resolve_device(name))


def _find_package(package: str, asked_by: str, fix: str) -> str:
    if find_spec(package) is None:
        raise ConfigError(f"{asked_by} needs the package {package}, which is not installed; {fix}")
    return package


def require_classifier(path: Path) -> Path:
    """The file or folder of a classifier.

    Raises:
        MissingWeightsError: When there is nothing.
    """
    if not (path.is_dir() or path.is_file()):
        source = public_source(path, "classifiers")
        how = how_to_get(source) if source else "give the classifier's file or folder in its `path`"
        raise MissingWeightsError(f"there is nothing at {path}; {how}")
    return path


def _find_file(path: Path) -> Path:
    if not require_classifier(path).is_file():
        raise MissingWeightsError(f"{path} is a folder; give the classifier's file in its `path`")
    return path


def _find_network(folder: Path, name: str) -> Path:
    """A folder as transformers saves a network and what prepares its images."""
    require_classifier(folder)
    processor = (folder / _PROCESSOR_FILES[0]).is_file() or (folder / _PROCESSOR_FILES[1]).is_file()
    lacking = [
        file
        for file, is_there in (
            ("config.json", (folder / "config.json").is_file()),
            ("model.safetensors", bool(weight_files(folder))),
            (_PROCESSOR_FILES[0], processor or name == "portraits"),
        )
        if not is_there
    ]
    if lacking:
        raise MissingWeightsError(
            f"the folder {folder} of classifier {name!r} has no {', '.join(lacking)}; give a folder with all its files"
        )
    return folder


def _find_classes(settings: AttributesConfig, axes: tuple[Axis, ...]) -> str:
    said = "+".join(settings.names)
    known = {name: classes_read(name, settings) for name in settings.names}
    check_classes(said, shared_classes(known), axes)
    return said
