"""A model in a single .safetensors file: made into a folder of diffusers' layout once, and read from there.

The names of the file's tensors tell its family. What it does not hold, configurations and tokenizers, comes from
`model.config`, or from the family's public repository, as `popalign fetch` gets it.
"""

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popalign_core.config import ModelConfig
from popalign_core.documents import read_json
from popalign_core.errors import ConfigError, DamagedWeightsError, MissingWeightsError, StoreError
from popalign_core.machine import cache_folder
from popalign_core.models.file_hashes import hash_file
from popalign_core.models.pipeline_parts import check_index, snapshot
from popalign_core.models.weights_check import UNREADABLE, PartFolder
from popalign_core.models.weights_digest import DENOISERS, pipeline_digest
from popalign_core.sources import HubFiles, how_to_get

if TYPE_CHECKING:
    import torch

SUFFIX = ".safetensors"
_PICKLED = (".ckpt", ".pt", ".pth", ".bin")
_NETWORKS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae")
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
_INDEX = "model_index.json"
_TYPES = {"F8_E4M3": "float16", "F8_E5M2": "float16", "F16": "float16", "BF16": "bfloat16", "F32": "float32"}
"""Of numbers in safetensors -> in torch, the smallest first; what is in float8 is exact in float16, and loads in it."""
_PARTIAL = ".partial-"
_STALE_S = 86_400.0
"""Seconds after which what a killed process left half-made is deleted."""
_VELOCITY_MARK, _ZERO_SNR_MARK = "v_pred", "ztsnr"
"""Empty tensors by which a fine-tune says how it was trained, as ComfyUI and other programs read them."""

Names = Mapping[str, tuple[int, ...]]
"""Tensor -> shape."""


def is_single_file(name: str) -> bool:
    """Whether a model's name means a file.

    Raises:
        ConfigError: When it is a pickle, which is not read: loading one runs what it holds.
    """
    path = Path(name)
    if path.suffix in _PICKLED and path.is_file():
        raise ConfigError(f"model {name!r} is a pickle, which can run code when it is read; convert it to .safetensors")
    return path.suffix == SUFFIX and path.is_file()


def config_source(model: ModelConfig) -> HubFiles | None:
    """The repository of a single file's configurations and tokenizers; None where they lie in a folder.

    Raises:
        ConfigError: When the file's family is not known.
        DamagedWeightsError: When the file is not whole.
    """
    if model.config is not None and Path(model.config).is_dir():
        return None
    repository = model.config or _family_repository(Path(model.name), _shapes(Path(model.name)))
    revision = model.revision or "main"
    return HubFiles(repository, "pipeline", "model", revision, replaced=(*_NETWORKS, *_UNUSED))


def expanded_folder(model: ModelConfig) -> Path:
    """The folder that a single file became, in the cache folder; made when it is first asked for.

    It can be deleted at any time. Raises:
        ConfigError: When the family is not known, or the configurations are another model's.
        MissingWeightsError: When the configurations are not here; says how to get them.
        DamagedWeightsError: When the file is not whole, or lacks weights.
    """
    file = Path(model.name)
    names = _shapes(file)
    configs = _config_folder(model)
    digest = sha256(f"{hash_file(file)}\0{pipeline_digest(configs, without=_NETWORKS)}".encode()).hexdigest()
    return _make_once(digest, file, _INDEX, lambda folder: _expand(file, names, configs, folder))


def expanded_denoiser(file: Path, pipeline: Path, component: str) -> Path:
    """The folder that a UNet or transformer alone in a single file became; made when it is first asked for.

    Args:
        file: Under the original names or diffusers' own.
        pipeline: Folder of the model whose denoiser it replaces, which has the configuration.
        component: Name of the denoiser there.

    Raises:
        DamagedWeightsError: When the file is not whole, or does not fit the configuration.
        StoreError: When the cache folder has no room.
    """
    names, settings = _shapes(file), pipeline / component / "config.json"
    digest = sha256(f"{hash_file(file)}\0{hash_file(settings)}".encode()).hexdigest()

    def make(folder: Path) -> None:
        import diffusers

        part = PartFolder("the single file", file, f"give a {component} that was trained from this model")
        kind: Any = getattr(diffusers, str(PartFolder(component, settings.parent, "").read_settings()["_class_name"]))
        dtypes = _float_types(file)
        options = {"subfolder": component, "local_files_only": True, "torch_dtype": _loaded_type(dtypes)}
        try:
            module = kind.from_single_file(str(file), config=str(pipeline), **options)
        except _unreadable() as error:
            raise part.refusal(error) from error
        _check_whole(component, module, names, part)
        shutil.copy(settings, folder / settings.name)
        _save(module, dtypes, folder)

    return _make_once(digest, file, "config.json", make)


def _make_once(digest: str, file: Path, last: str, make: Callable[[Path], None]) -> Path:
    """A folder in the cache, whole or not at all.

    Args:
        digest: Of all that it is made of.
        file: Whose size it has.
        last: A file without which it is none.
        make: Fills an empty folder.
    """
    place = cache_folder() / "models" / digest[:32]
    if (place / last).is_file():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    for stale in place.parent.glob(f"{_PARTIAL}*"):
        if time.time() - stale.stat().st_mtime > _STALE_S:
            shutil.rmtree(stale, ignore_errors=True)
    _check_room(file, place.parent)
    partial = Path(tempfile.mkdtemp(dir=place.parent, prefix=_PARTIAL))
    try:
        make(partial)
        partial.chmod(0o777 & ~_umask())
        try:
            os.rename(partial, place)
        except OSError:  # another process made the same folder meanwhile: that one stays
            if not (place / last).is_file():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return place


def _config_folder(model: ModelConfig) -> Path:
    if (source := config_source(model)) is None:
        folder = Path(str(model.config))
        if not (folder / _INDEX).is_file():
            raise MissingWeightsError(
                f"model.config {model.config!r} holds no {_INDEX}; give a diffusers folder of the same family"
            )
        return folder
    found = snapshot(source.repo, source.revision, _INDEX)
    if found is None:
        raise MissingWeightsError(
            f"the file {model.name} holds no configurations and tokenizers, and those of {source.repo} are not in the "
            f"local hub cache; {how_to_get(source)}, or give a diffusers folder of the same family as model.config"
        )
    return found


def _shapes(file: Path) -> Names:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as content:
            return {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DamagedWeightsError(f"{file} is damaged or incomplete ({error}); get it again") from error


def _family_repository(file: Path, names: Names) -> str:
    """By what only one family has; diffusers tells them apart in the same way."""

    def has(pattern: str) -> bool:
        return any(re.search(pattern, name) for name in names)

    def n_blocks(stem: str) -> int:
        found = (re.search(rf"{stem}\.(\d+)\.", name) for name in names)
        return 1 + max((int(match[1]) for match in found if match), default=-1)

    families: tuple[tuple[Callable[[], bool], str], ...] = (
        (lambda: has(r"double_blocks\.") and has(r"guidance_in\."), "black-forest-labs/FLUX.1-dev"),
        (lambda: has(r"double_blocks\."), "black-forest-labs/FLUX.1-schnell"),
        (lambda: n_blocks("joint_blocks") > 30, "stabilityai/stable-diffusion-3.5-large"),
        (lambda: has(r"joint_blocks\..*attn2"), "stabilityai/stable-diffusion-3.5-medium"),
        (lambda: n_blocks("joint_blocks") > 0, "stabilityai/stable-diffusion-3-medium-diffusers"),
        (lambda: has(r"^conditioner\.embedders\.1\."), "stabilityai/stable-diffusion-xl-base-1.0"),
        (lambda: has(r"^cond_stage_model\.model\."), "stabilityai/stable-diffusion-2-1"),
        (lambda: has(r"^cond_stage_model\.transformer\."), "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    )
    for is_it, repository in families:
        if is_it():
            return repository
    raise ConfigError(
        f"{file} is not a complete model of SDXL, SD 1.x, 2.x, SD3 or FLUX "
        f"(first tensor {next(iter(names), 'none')!r}); "
        "give a complete checkpoint, a UNet or transformer alone as model.denoiser, a LoRA as model.lora"
    )


def _check_room(file: Path, place: Path) -> None:
    needed, free = file.stat().st_size, shutil.disk_usage(place).free
    if needed > free:
        raise StoreError(
            f"{file} becomes a folder of {needed / 1e9:.1f} GB in {place}, where {free / 1e9:.1f} GB are free; make "
            "room, or set POPALIGN_CACHE to a folder on another disk"
        )


def _expand(file: Path, names: Names, configs: Path, place: Path) -> None:
    """Weights from the file, in the precision that they have there; all else as it lies in `configs`."""
    from torch import nn

    part = PartFolder("the single file", file, "get it again, or give the folder of its own family as model.config")
    index = PartFolder("the configurations", configs, "get them again").read_settings(_INDEX)
    dtypes = _float_types(file)
    pipeline = _load(file, index, configs, part, _loaded_type(dtypes))
    for name, entry in index.items():
        if not isinstance(entry, list) or entry[0] is None or name in _UNUSED:
            continue
        module: Any = getattr(pipeline, name, None)
        folder = place / name
        shutil.copytree(configs / name, folder, ignore=_no_weights)
        is_network = isinstance(module, nn.Module)
        if not is_network:
            continue
        _check_whole(name, module, names, part)
        _save(module, dtypes, folder)
    left_out = {name for name in _UNUSED if name in index}
    _write_json(place / _INDEX, {name: entry for name, entry in index.items() if name not in left_out})
    _mark_schedule(place / "scheduler" / "scheduler_config.json", names)


def _load(file: Path, index: dict[str, Any], configs: Path, part: PartFolder, dtype: "torch.dtype") -> Any:
    import diffusers

    root = PartFolder("the configurations", configs, "give a diffusers folder of the same family as model.config")
    check_index(index, root, None)
    kind = getattr(diffusers, index["_class_name"])
    if not hasattr(kind, "from_single_file"):
        raise root.refusal(f"diffusers reads no single file as {kind.__name__}")
    left_out = {
        name: None for name, entry in index.items() if isinstance(entry, list) and (entry[0] is None or name in _UNUSED)
    }
    try:
        return kind.from_single_file(
            str(file), config=str(configs), local_files_only=True, torch_dtype=dtype, **left_out
        )
    except _unreadable() as error:
        raise part.refusal(error) from error


def _unreadable() -> tuple[type[Exception], ...]:
    """What the library raises for files that it cannot read; its own error is none of the usual ones."""
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    return (*UNREADABLE, SingleFileComponentError)


def _check_whole(name: str, module: Any, names: Names, part: PartFolder) -> None:
    """diffusers leaves weights that it does not find without memory, and drops those that it has no place for."""
    weights = module.state_dict()
    if lacking := [key for key, weight in weights.items() if weight.is_meta]:
        raise part.refusal(f"it lacks {len(lacking)} weights of the {name}, such as {lacking[0]}")
    if name not in DENOISERS:
        return
    mine = [shape for key, shape in names.items() if key.startswith("model.diffusion_model.")]
    n_given, n_taken = sum(map(prod, mine)), sum(weight.numel() for weight in weights.values())
    if mine and n_given != n_taken:
        raise part.refusal(f"it has {n_given:,} weights of the {name}, its configuration has {n_taken:,}")


def _save(module: Any, dtypes: "list[torch.dtype]", folder: Path) -> None:
    """In the smallest type of the file's that holds all of it; the folder's own config.json stays."""
    for dtype in dtypes:
        if all(_is_exact(weight, dtype) for weight in module.parameters()):
            module.to(dtype)
            break
    settings = folder / "config.json"
    kept = settings.read_bytes()
    module.save_pretrained(folder)
    settings.write_bytes(kept)


def _loaded_type(dtypes: "list[torch.dtype]") -> "torch.dtype":
    import torch

    return dtypes[0] if len(dtypes) == 1 else torch.float32


def _float_types(file: Path) -> "list[torch.dtype]":
    import torch
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as content:
        found = {content.get_slice(name).get_dtype() for name in content.keys()}  # noqa: SIM118
    known = dict.fromkeys(_TYPES[name] for name in _TYPES if name in found)
    return [getattr(torch, name) for name in known] or [torch.float32]


def _is_exact(weight: "torch.Tensor", dtype: "torch.dtype") -> bool:
    return weight.dtype == dtype or bool((weight.to(dtype).to(weight.dtype) == weight).all())


def _mark_schedule(path: Path, names: Names) -> None:
    changed: dict[str, Any] = {}
    if _VELOCITY_MARK in names:
        changed["prediction_type"] = "v_prediction"
    if _ZERO_SNR_MARK in names:
        # the last timestep has to be sampled, or zero SNR is trained for nothing (Lin et al. 2023, arXiv:2305.08891)
        changed |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if changed:
        _write_json(path, read_json(path.read_bytes()) | changed)


def _no_weights(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name.endswith((SUFFIX, *_PICKLED, ".msgpack", ".h5", ".onnx", ".index.json"))]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
