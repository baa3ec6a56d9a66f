"""How large what a training leaves will be, by the headers of the base model's files. Imports no torch."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

from popalign_core.config import ModelConfig, TrainingConfig
from popalign_core.models.model_files import find_pipeline_folder, weights_stem
from popalign_core.models.replaced_parts import denoiser_folder
from popalign_core.models.weights_check import weight_files
from popalign_core.models.weights_digest import DENOISERS

Shapes = dict[str, tuple[int, ...]]
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_TRAINED_BYTES = 4
"""What trains, and an adapter, is float32 whatever the model is."""
_MOMENTS = {"adamw": 2.0, "adamw-8bit": 0.5, "adafactor": 0.1}
"""Numbers that the optimiser keeps for each weight."""
_ADAPTED = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Where adapters go by themselves, in whatever family."""


@dataclass(frozen=True)
class TrainingSize:
    """Bytes that a training takes.

    Attributes:
        artifact: Of what was trained, for good.
        merged: Of the denoiser that an adapter is merged into, in the folder of a run; 0 where the run shares it.
        checkpoints: While it trains: those that are kept, and one more that is being written.
        state: What a round leaves, besides, to the next one.
    """

    artifact: float
    merged: float
    checkpoints: float
    state: float

    def kept(self, *, is_followed: bool) -> float:
        """Bytes of the artifact, of a round that is followed by another with what that one needs."""
        return self.artifact + (self.state if is_followed else 0.0)


def training_size(model: ModelConfig, training: TrainingConfig, n_kept: int = 1) -> TrainingSize:
    """What a training of a model leaves.

    Args:
        model: The base model; one that is trained already has a denoiser of the same size.
        training: What is trained.
        n_kept: Checkpoints that are kept.

    Raises:
        MissingWeightsError: When a file of the model is not there.
        ConfigError: As `local_models.local_folder`.
    """
    shapes = _read_shapes(_denoiser_files(model))
    n_weights = sum(map(prod, shapes.values()))
    denoiser = float(n_weights * _BYTES[model.dtype])
    n_trained = _adapter_weights(shapes, training) if training.lora_rank else n_weights
    of_each = 1 + _MOMENTS.get(training.optimizer, 2.0) + (training.ema_decay > 0)
    state = n_trained * _TRAINED_BYTES * of_each
    checkpoints = (n_kept + 1) * state
    if training.lora_rank:
        return TrainingSize(float(n_trained * _TRAINED_BYTES), denoiser, checkpoints, state)
    return TrainingSize(denoiser, 0.0, checkpoints, state)


def _denoiser_files(model: ModelConfig) -> list[Path]:
    folder = denoiser_folder(model)
    if folder is None:
        whole = find_pipeline_folder(model)
        folder = next((whole / name for name in DENOISERS if (whole / name).is_dir()), whole)
    return [file for file in weight_files(folder, weights_stem("diffusers")) if file.suffix == ".safetensors"]


def _read_shapes(files: Iterable[Path]) -> Shapes:
    """Tensor -> shape: a file of safetensors begins with the length of a header, and the header."""
    shapes: Shapes = {}
    for file in files:
        with file.open("rb") as content:
            header = json.loads(content.read(int.from_bytes(content.read(8), "little")))
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return shapes


def _adapter_weights(shapes: Shapes, training: TrainingConfig) -> int:
    """Numbers of two matrices a layer, [rank, in] and [out, rank]."""
    targets = training.lora_targets or _ADAPTED
    ends = tuple(f"{target}.weight" for target in targets)
    chosen = (shape for name, shape in shapes.items() if name.endswith(ends) and len(shape) > 1)
    return sum(training.lora_rank * (shape[0] + prod(shape[1:])) for shape in chosen)
