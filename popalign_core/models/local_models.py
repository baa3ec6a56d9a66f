"""Where a model lies on this machine, in whatever form it came. Imports torch only for a single file, once."""

from pathlib import Path

from popalign_core.config import ModelConfig
from popalign_core.errors import ConfigError, MissingWeightsError
from popalign_core.models.linked_files import check_links
from popalign_core.models.model_sources import HUB_ID
from popalign_core.models.single_files import expanded_folder, is_single_file

MODEL_INDEX = "model_index.json"


def local_folder(model: ModelConfig) -> Path | None:
    """The folder a model lies in, or became that came as a single file; None for a hub id.

    Raises:
        ConfigError: When the name is a hub id without revision, or neither a folder nor a hub id.
        MissingWeightsError: When the folder holds no diffusers pipeline.
    """
    if model.name == "portraits":
        from popalign_core.portraits import weights_folder

        return _checked(
            weights_folder() / "pipeline", "run `popalign portraits train --data DIR`, or restore the folder"
        )
    if Path(model.name).is_dir():
        return _checked(Path(model.name), "give a folder written by `save_pretrained`")
    if is_single_file(model.name):
        return expanded_folder(model)
    if HUB_ID.fullmatch(model.name) is None:
        raise MissingWeightsError(
            f"model {model.name!r} is no folder, no .safetensors file and no hub id; give a diffusers folder, "
            "a file that is there, or 'owner/name'"
        )
    if model.revision is None:
        raise ConfigError(
            f"model {model.name!r} is no folder here, and as a hub id it has no revision; correct the path, or give "
            "the commit as model.revision, so that the weights cannot change"
        )
    return None


def _checked(folder: Path, fix: str) -> Path:
    if not (folder / MODEL_INDEX).is_file():
        raise MissingWeightsError(f"{folder} holds no diffusers pipeline (no model_index.json); {fix}")
    check_links(folder)
    return folder
