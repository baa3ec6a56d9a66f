"""A trained pipeline as a training leaves it, and as it is loaded again on its base."""

from pathlib import Path
from typing import Any

from popalign_core.config import ModelConfig
from popalign_core.models.denoisers import family_of, find_denoiser
from popalign_core.models.linked_files import link_file, share_file
from popalign_core.models.loading import LORA_FILE, model_hash
from popalign_core.models.trained_weights import LORA_FOLDER, TrainedModel, TrainedPart, TrainingRecord
from popalign_core.models.whole_model import write_whole_model
from popalign_core.training.model_folder import save_trained


def save_training(pipeline: Any, base: Path, folder: Path) -> TrainedModel:
    """Write what was trained to a folder; the model that it makes of its base."""
    denoiser = find_denoiser(pipeline)
    what, component = "lora" if getattr(denoiser, "peft_config", None) else "all", family_of(denoiser).component
    model = ModelConfig(name=str(base))
    folder.mkdir(parents=True, exist_ok=True)
    save_trained(denoiser, TrainingRecord(what, component, model_hash(model), None), folder)
    path = folder / LORA_FOLDER / LORA_FILE if what == "lora" else folder / component
    return TrainedModel(model, (TrainedPart(component, path),))


def write_linked(model: TrainedModel, folder: Path, dtype: str = "float32") -> Path:
    """The whole model in a new folder, as a run's folder on this machine has it."""
    folder.mkdir(parents=True)
    write_whole_model(folder, model, dtype, link_file, share_file)
    return folder
