"""What a training leaves, an adapter or a denoiser, and how it is put into the model that it was trained from."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from popalign_core.config import ModelConfig
from popalign_core.documents import read_json
from popalign_core.errors import DamagedWeightsError

TRAINED_FILE = "trained.json"
"""What was trained, and from what, by hash and key: no path is in it."""
LORA_FOLDER = "lora"
"""Where an adapter lies, in artifacts and in folders of runs."""
_FORMAT = 1


@dataclass(frozen=True)
class TrainingRecord:
    """What a training was, in a small file beside its weights.

    Attributes:
        what: `lora`, or which of the denoiser's own weights: `all` or `conditioning`.
        component: Name of the denoiser in a pipeline.
        base: `model_hash` of the base model; of a training that starts from a trained one, that one's base.
        start: Key of the training that it started from; None for the base model.
    """

    what: str
    component: str
    base: str
    start: str | None

    @property
    def is_lora(self) -> bool:
        """Whether an adapter was trained."""
        return self.what == "lora"

    def to_json(self) -> str:
        """The text of the file: the same for the same training, wherever it is run."""
        return json.dumps({"format": _FORMAT} | asdict(self), indent=1, sort_keys=True) + "\n"


def read_training_record(file: Path) -> TrainingRecord:
    """The record in a file.

    Raises:
        DamagedWeightsError: When it is not one, or of a format that this version does not know.
    """
    try:
        document = read_json(file.read_bytes())
        if document.pop("format") == _FORMAT:
            return TrainingRecord(**document)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedWeightsError(f"{file} is no record of a training ({error!r:.200}); train again") from error
    raise DamagedWeightsError(f"{file} is of a format that this version does not know; use the version that wrote it")


@dataclass(frozen=True)
class TrainedPart:
    """What one training changes of a pipeline.

    Attributes:
        component: Name of the denoiser in a pipeline.
        path: The file of a LoRA, fused into the denoiser; or a folder with config.json and safetensors, which takes
            the denoiser's place.
    """

    component: str
    path: Path

    @property
    def is_lora(self) -> bool:
        """Whether it is fused in."""
        return self.path.is_file()


@dataclass(frozen=True)
class TrainedModel:
    """A base model and what trainings made of it, one after the other.

    Attributes:
        base: The base model, where it lies on this machine.
        parts: What they left, the first training's first.
    """

    base: ModelConfig
    parts: tuple[TrainedPart, ...]

    @property
    def parts_needed(self) -> tuple[TrainedPart, ...]:
        """From the last denoiser on: what came before it is in it, or was replaced."""
        whole = [number for number, part in enumerate(self.parts) if not part.is_lora]
        return self.parts[whole[-1] :] if whole else self.parts

    def beneath(
        self, model: ModelConfig, components: Collection[str] | None
    ) -> tuple[ModelConfig, Collection[str] | None]:
        """What is loaded first: the base model, in the dtype and storage of `model`.

        Args:
            model: Says how weights are kept.
            components: Wanted of the pipeline. A denoiser that is replaced is not even read; None, all, is left as is.
        """
        model = self.base.model_copy(update={"dtype": model.dtype, "storage": model.storage})
        needed = self.parts_needed
        if components is not None and needed and not needed[0].is_lora:
            components = [name for name in components if name != needed[0].component]
        return model, components

    def put_into(self, pipeline: Any, model: ModelConfig, components: Collection[str] | None) -> None:
        """Put the trained weights into the base model's pipeline, in place.

        Args:
            pipeline: The base model's, as `beneath` says.
            model: Says the dtype.
            components: Wanted; without the denoiser there is nothing to do.

        Raises:
            ConfigError: When an adapter is another model's.
            DamagedWeightsError: When weights are not whole.
        """
        for part in self.parts_needed:
            if components is not None and part.component not in components:
                continue
            if part.is_lora:
                from popalign_core.models.lora import fuse_lora

                fuse_lora(pipeline, part.path, 1.0)
            else:
                pipeline.register_modules(**{part.component: _load_denoiser(part, model)})


def _load_denoiser(part: TrainedPart, model: ModelConfig) -> Any:
    import diffusers
    import torch

    from popalign_core.models.weights_check import PartFolder, load_module

    folder = PartFolder("the trained denoiser", part.path, "see `popalign verify`, and train again")
    name = folder.read_settings().get("_class_name")
    kind = getattr(diffusers, str(name), None)
    if kind is None:
        raise folder.refusal(f"diffusers has no class {name!r}")
    return load_module(kind, folder, getattr(torch, model.dtype))
