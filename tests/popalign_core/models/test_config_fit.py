"""A configuration that is not the file's is refused before memory is taken for it, by every loader of weights."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from broken_models import Damage, load, settings
from diffusers import AutoencoderKL
from safety_checkers import save_checker

from popalign_core.attributes.image_classifiers import load_transformers
from popalign_core.attributes.zero_shot import load_space
from popalign_core.config import NetworkConfig, ZeroShotConfig
from popalign_core.errors import DamagedWeightsError
from popalign_core.models import config_fit
from popalign_core.models.clip import embed_texts, load_clip
from popalign_core.models.weights_check import PartFolder, check_end
from popalign_core.portraits import weights_folder
from popalign_core.sampling.safety import load_safety_checker

CopyFamily = Callable[[str], Path]
TEXT, UNET, VAE, SD3 = (f"{part}/config.json" for part in ("text_encoder", "unet", "vae", "transformer"))


@pytest.fixture
def copy_family(family_folder: Callable[[str], Path], tmp_path: Path) -> CopyFamily:
    """Copies one of `tiny_models.MODELS`, to be changed."""
    return lambda name: shutil.copytree(family_folder(name), tmp_path / name)


@pytest.mark.parametrize(
    ("family", "path", "changes", "problem"),
    [
        ("sdxl", TEXT, {"hidden_size": 10**6}, "with hidden_size 1000000, describes .* 8000346000128 weights"),
        ("sdxl", TEXT, {"hidden_size": 10**12}, "network of more weights than can be counted, but the file has 19392"),
        ("sdxl", TEXT, {"intermediate_size": 10**7}, "with intermediate_size 10000000, describes"),
        ("sdxl", TEXT, {"vocab_size": 10**7}, "with vocab_size 10000000, describes"),
        ("sdxl", TEXT, {"max_position_embeddings": 10**7}, "with max_position_embeddings 10000000, describes"),
        ("sdxl", "text_encoder_2/config.json", {"projection_dim": 10**7}, "with projection_dim 10000000, describes"),
        ("sdxl", UNET, {"block_out_channels": [32, 10240]}, "with block_out_channels 10240, describes"),
        ("sdxl", UNET, {"cross_attention_dim": 10**6}, "with cross_attention_dim 1000000, describes"),
        ("sdxl", VAE, {"latent_channels": 10**6}, "with latent_channels 1000000, describes"),
        ("sd3", SD3, {"pos_embed_max_size": 10**5}, "with pos_embed_max_size 100000, describes"),
        ("sd3", "text_encoder_3/config.json", {"d_ff": 10**7}, "with d_ff 10000000, describes"),
        ("sdxl", TEXT, {"num_hidden_layers": 10**7}, "has num_hidden_layers 10000000, but the weights are 36 tensors"),
        ("sdxl", UNET, {"layers_per_block": [10**7] * 2}, "has layers_per_block 10000000, but"),
        ("sdxl", UNET, {"transformer_layers_per_block": 10**7}, "has transformer_layers_per_block 10000000, but"),
        ("sdxl", VAE, {"num_decoder_blocks": [10**6] * 4}, "has num_decoder_blocks 1000000, but"),
    ],
)  # fmt: skip
def test_absurd_sizes_are_refused_by_name(
    family: str, path: str, changes: dict[str, Any], problem: str, copy_family: CopyFamily
) -> None:
    folder, part = copy_family(family), path.partition("/")[0]
    settings(path, **changes)(folder)
    with pytest.raises(DamagedWeightsError, match=f"cannot load {part} of .*{problem}.*; restore its files"):
        load(folder, part)


def _in_tower(tower: str, **changes: Any) -> Damage:
    def change(folder: Path) -> None:
        document = json.loads((folder / "config.json").read_text())
        document[tower] |= changes
        (folder / "config.json").write_text(json.dumps(document))

    return change


def _zero_shot(folder: Path) -> Any:
    return load_space(ZeroShotConfig(kind="clip", path=str(folder), axes={"g": {"m": "a man", "w": "a woman"}}), "cpu")


def _classifier(folder: Path) -> Any:
    return load_transformers(NetworkConfig(kind="image-classifier", path=str(folder), axes={"g": {"a": "a"}}), "cpu")


def _save_vit(folder: Path) -> None:
    config = transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=16)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 16, "width": 16}}))


@pytest.mark.parametrize(
    ("use", "damage", "problem"),
    [
        (load_clip, _in_tower("text_config", vocab_size=10**8), "the CLIP .* with vocab_size 100000000, describes"),
        (load_clip, _in_tower("vision_config", num_hidden_layers=10**7), "the CLIP .* has num_hidden_layers 10000000"),
        (_zero_shot, _in_tower("vision_config", image_size=10**6), "the CLIP .* with image_size 1000000, describes"),
        (_classifier, settings("config.json", intermediate_size=10**8), "classifier .* with intermediate_size 1000000"),
        (_classifier, settings("config.json", num_hidden_layers=10**7), "classifier .* has num_hidden_layers"),
        (load_safety_checker, _in_tower("vision_config", hidden_size=10**6), "checker .* with hidden_size 1000000, de"),
    ],
)
def test_other_loaders_refuse_them_too(use: Callable[[Any], Any], damage: Damage, problem: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if use is _classifier:
        _save_vit(folder)
    elif use is load_safety_checker:
        save_checker(folder, np.zeros((2, 32, 32, 3), np.uint8))
    else:
        shutil.copytree(weights_folder() / "clip", folder)
    use(folder)
    damage(folder)
    with pytest.raises(DamagedWeightsError, match=problem):
        use(folder)


def _save_heads(model: Any, folder: Path, **more: Any) -> tuple[Path, dict[str, Any]]:
    """The configuration, and a file of that network's size that holds nothing."""
    model.save_config(folder) if hasattr(model, "save_config") else model.config.save_pretrained(folder)
    at, heads = 0, {}
    for name, weight in model.state_dict().items():
        heads[name] = {"dtype": "F16", "shape": list(weight.shape), "data_offsets": [at, at := at + 2 * weight.numel()]}
    text = json.dumps(heads).encode()
    with (folder / "weights.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return folder / "weights.safetensors", json.loads((folder / "config.json").read_text()) | more


@pytest.mark.parametrize("name", ["clip", "text encoder", "text encoder of a CLIP's configuration", "vae"])
def test_published_sizes_fit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outline is made where a number is no side of a tensor: a VAE's `sample_size`, a tower that is not there."""
    outlined = []
    count = config_fit._count_weights
    monkeypatch.setattr(config_fit, "_count_weights", lambda *all_: outlined.append(name) or count(*all_))
    more: dict[str, Any] = {"eos_token_id": 49407}
    with torch.device("meta"):
        if name == "vae":
            kind: Any = AutoencoderKL
            model = kind(block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
                         up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, sample_size=1024)  # fmt: skip
        elif name == "clip":
            kind = transformers.CLIPModel
            model = kind(transformers.CLIPConfig())
        else:
            kind = transformers.CLIPTextModelWithProjection
            model = kind(transformers.CLIPTextConfig())
            if "CLIP" in name:
                more = {"vision_config": {"hidden_size": 1664, "num_hidden_layers": 48}}
    file, document = _save_heads(model, tmp_path, **more)
    assert config_fit.misfit(kind, tmp_path, document, [file]) is None
    assert outlined == ([name] if "vae" in name or "CLIP" in name else [])


class _Words(SimpleNamespace):
    eos_token_id = 49407


@pytest.mark.parametrize("end", [2, 49407, None])
@pytest.mark.parametrize("kind", [transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection])
def test_published_ends_of_texts_pool_at_the_end(kind: Any, end: int | None) -> None:
    """2 is that of `openai/clip-vit-*` and of all Stable Diffusion, 49407 of what newer transformers save."""
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, eos_token_id=end
    )
    encoder = kind(config).eval()
    check_end(encoder, _Words(), PartFolder("it", Path(), "get it again"))
    found = encoder(torch.tensor([[49406, 320, 49407, 0, 0]]))
    pooled = found.text_embeds if hasattr(found, "text_embeds") else found.pooler_output
    projected = getattr(encoder, "text_projection", torch.nn.Identity())(found.last_hidden_state)
    torch.testing.assert_close(pooled, projected[:, 2])


@pytest.mark.parametrize("end", [7, 99, 0, -1, [7]])
def test_another_end_of_texts_is_refused(end: Any, copy_family: CopyFamily, tmp_path: Path) -> None:
    folder = copy_family("sdxl")
    settings("text_encoder_2/config.json", eos_token_id=end)(folder)
    with pytest.raises(DamagedWeightsError, match=r"cannot load text_encoder_2 of .* has eos_token_id .* has 53; rest"):
        load(folder, "text_encoder_2", "tokenizer_2")
    clip = shutil.copytree(weights_folder() / "clip", tmp_path / "clip")
    _in_tower("text_config", eos_token_id=end)(clip)
    with pytest.raises(DamagedWeightsError, match=r"cannot load the CLIP in .* has eos_token_id"):
        load_clip(clip)


def test_a_clip_without_an_end_has_its_tokenizers(tmp_path: Path) -> None:
    clip = shutil.copytree(weights_folder() / "clip", tmp_path / "clip")
    expected = embed_texts(load_clip(clip), ["a judge"])
    _in_tower("text_config", eos_token_id=None)(clip)
    assert torch.equal(embed_texts(load_clip(clip), ["a judge"]), expected)
