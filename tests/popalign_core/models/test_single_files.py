"""One checkpoint as folder, in shards, in the hub's cache and as a single file: the same weights and the same hash."""

import json
import os
import shutil
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from popalign_core.config import ModelConfig
from popalign_core.errors import ConfigError, DamagedWeightsError, MissingWeightsError, StoreError
from popalign_core.models.loading import load_pipeline, model_hash
from popalign_core.models.model_files import find_pipeline_folder
from popalign_core.models.model_sources import pipeline_source
from popalign_core.models.single_file_export import write_single_file
from popalign_core.models.single_files import expanded_folder
from tests.support.tiny_models import make_original_sdxl, make_sd15

CPU = torch.device("cpu")
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POPALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def folder(make_once: Callable[..., Path]) -> Path:
    return make_once("original-sdxl", lambda place: make_original_sdxl().save_pretrained(place))


def as_single_file(path: Path, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
    folder = path.with_suffix(".parts")
    make_original_sdxl().save_pretrained(folder)
    write_single_file(folder, path)
    shutil.rmtree(folder)
    if change is not None:
        weights = load_file(path)
        change(weights)
        save_file(weights, path)
    return path


def halve_all(weights: dict[str, Any]) -> None:
    weights.update({name: weight.half() for name, weight in weights.items()})


def halve(weights: dict[str, Any]) -> None:
    """All but the VAE, which SDXL's loader keeps in float32."""
    weights.update({name: w.half() for name, w in weights.items() if not name.startswith("first_stage_model.")})


def as_cached(folder: Path, repository: str, place: Path, revision: str = COMMIT) -> None:
    """As `huggingface_hub` leaves a repository in its cache."""
    root = place / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, root / "snapshots" / COMMIT)
    (root / "refs").mkdir()
    (root / "refs" / revision).write_text(COMMIT)


def weights_of(model: ModelConfig) -> dict[str, torch.Tensor]:
    pipeline = load_pipeline(model, device=CPU)
    return {f"{part}.{name}": w for part in PARTS for name, w in getattr(pipeline, part).state_dict().items()}


def test_every_form_has_the_same_weights_and_hash(
    folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = tmp_path / "shards"
    load_pipeline(ModelConfig(name=str(folder)), device=CPU).save_pretrained(shards, max_shard_size="100kB")
    assert len(list((shards / "unet").glob("*.safetensors"))) > 1
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    as_cached(folder, "owner/model", tmp_path / "hub")
    file = as_single_file(tmp_path / "single.safetensors")
    models = [
        ModelConfig(name=str(folder)),
        ModelConfig(name=str(shards)),
        ModelConfig(name="owner/model", revision=COMMIT),
        ModelConfig(name=str(file), config=str(folder)),
    ]
    expected = weights_of(models[0])
    for model in models[1:]:
        found = weights_of(model)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert len({model_hash(model) for model in models}) == 1


def test_half_precision_is_another_model(folder: Path, cache: Path, tmp_path: Path) -> None:
    make_original_sdxl().to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    file = as_single_file(tmp_path / "half.safetensors", halve_all)
    variant = ModelConfig(name=str(tmp_path / "half"))
    single = ModelConfig(name=str(file), config=str(folder))
    assert model_hash(variant) == model_hash(single) != model_hash(ModelConfig(name=str(folder)))
    expected = weights_of(ModelConfig(name=str(folder)))
    for name, weight in weights_of(single).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-2, atol=1e-3)


def test_each_part_keeps_its_own_precision(folder: Path, cache: Path, tmp_path: Path) -> None:
    """SDXL's VAE often stays in float32 in a file of float16."""

    place = expanded_folder(
        ModelConfig(name=str(as_single_file(tmp_path / "x.safetensors", halve)), config=str(folder))
    )
    kept = {part: set(load_file(next((place / part).glob("*.safetensors"))).values()) for part in PARTS}
    assert {part: {w.dtype for w in weights} for part, weights in kept.items()} == {
        **{part: {torch.float16} for part in PARTS},
        "vae": {torch.float32},
    }


def test_is_made_once_and_nothing_half_made_stays(folder: Path, cache: Path, tmp_path: Path) -> None:
    model = ModelConfig(name=str(as_single_file(tmp_path / "x.safetensors")), config=str(folder))
    place = expanded_folder(model)
    before = (place / "model_index.json").stat().st_ino
    moved = shutil.copy(tmp_path / "x.safetensors", tmp_path / "elsewhere.safetensors")
    assert expanded_folder(ModelConfig(name=str(moved), config=str(folder))) == place
    assert (place / "model_index.json").stat().st_ino == before
    assert [path.name for path in place.parent.iterdir()] == [place.name]
    assert find_pipeline_folder(model) == place


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("model.diffusion_model.output_blocks.0.0", "lacks|Cannot copy out of meta"),
        ("conditioner.embedders.1.model.transformer.resblocks.1.", "lacks .* weights of the text_encoder_2"),
        ("first_stage_model.", "AutoencoderKL"),
    ],
)
def test_a_file_that_lacks_weights_is_refused(
    lost: str, message: str, folder: Path, cache: Path, tmp_path: Path
) -> None:
    def lose(weights: dict[str, Any]) -> None:
        for name in [name for name in weights if name.startswith(lost)]:
            del weights[name]

    model = ModelConfig(name=str(as_single_file(tmp_path / "x.safetensors", lose)), config=str(folder))
    with pytest.raises(DamagedWeightsError, match=message):
        expanded_folder(model)
    assert not list((cache / "models").iterdir())


def test_a_layer_too_many_is_anothers_configuration(folder: Path, cache: Path, tmp_path: Path) -> None:
    def add(weights: dict[str, Any]) -> None:
        name = "model.diffusion_model.input_blocks.1.0.in_layers.2.more"
        weights[name] = torch.zeros(3)

    model = ModelConfig(name=str(as_single_file(tmp_path / "x.safetensors", add)), config=str(folder))
    with pytest.raises(DamagedWeightsError, match=r"weights of the unet, its configuration has|in_layers"):
        expanded_folder(model)


def test_a_file_cut_off_is_refused(folder: Path, cache: Path, tmp_path: Path) -> None:
    file = as_single_file(tmp_path / "x.safetensors")
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(DamagedWeightsError, match="damaged or incomplete"):
        model_hash(ModelConfig(name=str(file), config=str(folder)))


def test_without_configurations_the_message_names_fetch(
    folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model = ModelConfig(name=str(as_single_file(tmp_path / "x.safetensors")))
    with pytest.raises(MissingWeightsError, match=r"stable-diffusion-xl-base-1\.0 are not .* run `popalign fetch`"):
        model_hash(model)
    source = pipeline_source(model)
    assert source is not None
    assert source.repo == "stabilityai/stable-diffusion-xl-base-1.0"
    assert {"unet", "vae", "text_encoder", "text_encoder_2"} <= set(source.replaced)
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    as_cached(bare, source.repo, tmp_path / "hub", revision="main")
    assert model_hash(model) == model_hash(ModelConfig(name=str(folder)))
    # configurations alone are no model
    with_revision = ModelConfig(name=source.repo, revision=COMMIT)
    assert model_hash(with_revision) == f"{source.repo}@{COMMIT}"


def test_marks_of_velocity_and_zero_snr(folder: Path, cache: Path, tmp_path: Path) -> None:
    def mark(weights: dict[str, Any]) -> None:
        weights.update({"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)})

    model = ModelConfig(name=str(as_single_file(tmp_path / "x.safetensors", mark)), config=str(folder))
    settings = json.loads((expanded_folder(model) / "scheduler" / "scheduler_config.json").read_text())
    assert settings["prediction_type"] == "v_prediction"
    assert settings["rescale_betas_zero_snr"] is True
    assert settings["timestep_spacing"] == "trailing"
    assert model_hash(model) != model_hash(ModelConfig(name=str(folder)))


def test_sd15_without_its_safety_checker(cache: Path, tmp_path: Path) -> None:
    pipeline = make_sd15()
    pipeline.save_pretrained(tmp_path / "folder")
    write_single_file(tmp_path / "folder", tmp_path / "x.safetensors")
    index = json.loads((tmp_path / "folder" / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    (tmp_path / "folder" / "model_index.json").write_text(json.dumps(index))
    model = ModelConfig(name=str(tmp_path / "x.safetensors"), config=str(tmp_path / "folder"))
    loaded = load_pipeline(model, device=CPU)
    for name, expected in pipeline.unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], expected)


def test_what_is_no_whole_model(cache: Path, tmp_path: Path) -> None:
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(ConfigError, match=r"not a complete model .* a LoRA as model\.lora"):
        model_hash(ModelConfig(name=str(tmp_path / "lora.safetensors")))
    (tmp_path / "old.ckpt").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"is a pickle, .* convert it to \.safetensors"):
        model_hash(ModelConfig(name=str(tmp_path / "old.ckpt")))


@pytest.mark.parametrize("is_readable", [True, False])
def test_a_kept_hash_is_read_only_while_the_file_is_the_same(is_readable: bool, cache: Path, folder: Path) -> None:
    from popalign_core.models import file_hashes

    model = ModelConfig(name=str(folder))
    file_hashes._MADE.clear()
    first = model_hash(model)
    kept = list((cache / "hashes").iterdir())
    assert kept
    if not is_readable:
        for path in kept:
            path.write_text("nonsense")
    file_hashes._MADE.clear()
    assert model_hash(model) == first


def test_a_denoiser_alone_in_a_file(folder: Path, cache: Path, tmp_path: Path) -> None:
    """As FLUX fine-tunes come, and some of SDXL."""

    def keep_unet(weights: dict[str, Any]) -> None:
        for name in [name for name in weights if not name.startswith("model.diffusion_model.")]:
            del weights[name]
        weights.update({name: weight + 1 for name, weight in weights.items()})

    file = as_single_file(tmp_path / "unet-alone.safetensors", keep_unet)
    with pytest.raises(ConfigError, match=r"not a complete model .* as model\.denoiser"):
        model_hash(ModelConfig(name=str(file)))
    model = ModelConfig(name=str(folder), denoiser=str(file))
    found, own = weights_of(model), weights_of(ModelConfig(name=str(folder)))
    for name, weight in own.items():
        assert torch.equal(found[name], weight + 1 if name.startswith("unet.") else weight), name
    changed = load_pipeline(model, device=CPU).unet
    changed.save_pretrained(tmp_path / "unet")
    for path in (tmp_path / "unet").glob("*.json"):
        shutil.copy(folder / "unet" / path.name, path)
    assert model_hash(model) == model_hash(ModelConfig(name=str(folder), denoiser=str(tmp_path / "unet")))


def test_float8_loads_as_what_it_holds(folder: Path, cache: Path, tmp_path: Path) -> None:
    def squeeze(weights: dict[str, Any]) -> None:
        weights.update({name: weight.to(torch.float8_e4m3fn) for name, weight in weights.items()})

    file = as_single_file(tmp_path / "x.safetensors", squeeze)
    place = expanded_folder(ModelConfig(name=str(file), config=str(folder)))
    name = "model.diffusion_model.input_blocks.0.0.weight"
    kept = load_file(place / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
    assert kept.dtype == torch.float16
    assert torch.equal(kept, load_file(file)[name].half())


def test_no_room_is_told_before_it_is_made(
    folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelConfig(name=str(as_single_file(tmp_path / "x.safetensors")), config=str(folder))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, 1000))
    with pytest.raises(StoreError, match="make room, or set POPALIGN_CACHE"):
        expanded_folder(model)


def test_what_a_killed_process_left_is_deleted_after_a_day(folder: Path, cache: Path, tmp_path: Path) -> None:
    for name, age_s in (("old", 90_000), ("new", 60)):
        left = cache / "models" / f".partial-{name}"
        left.mkdir(parents=True)
        os.utime(left, (time.time() - age_s,) * 2)
    place = expanded_folder(ModelConfig(name=str(as_single_file(tmp_path / "x.safetensors")), config=str(folder)))
    assert {path.name for path in place.parent.iterdir()} == {place.name, ".partial-new"}
