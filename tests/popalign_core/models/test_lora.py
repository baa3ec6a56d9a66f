"""LoRA files in the formats there are, fused into the model families, and the ways in which they do not fit."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from popalign_core.config import ModelConfig, TrainingConfig, parse_config
from popalign_core.errors import ConfigError, DamagedWeightsError, MissingWeightsError
from popalign_core.models.denoisers import find_denoiser
from popalign_core.models.loading import load_pipeline, model_hash
from popalign_core.models.lora import fuse_lora
from popalign_core.training.model_folder import save_lora
from popalign_core.training.trainable_weights import choose_weights

CPU = torch.device("cpu")
Layers = dict[tuple[str, str], tuple[Tensor, Tensor]]

TO_K = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
UNET = (TO_K, "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj", "down_blocks.1.resnets.0.conv1")
# As in the files: transformers 5 has dropped the first part for one of its two classes.
TEXT = ("text_model.encoder.layers.0.self_attn.out_proj", "text_model.encoder.layers.1.self_attn.out_proj")
PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "sdxl": {"unet": UNET, "text_encoder": TEXT, "text_encoder_2": TEXT},
    "sd15": {"unet": UNET, "text_encoder": TEXT},
    "sd3": {
        "transformer": ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.add_k_proj"),
        "text_encoder": TEXT,
        "text_encoder_2": TEXT,
    },
    "flux-dev": {
        "transformer": ("transformer_blocks.1.attn.add_k_proj", "single_transformer_blocks.0.attn.to_q"),
        "text_encoder": TEXT,
    },
}


def weight(pipeline: Any, part: str, layer: str) -> Tensor:
    module = getattr(pipeline, part)
    name = layer if hasattr(module, "text_model") else layer.removeprefix("text_model.")
    found: Tensor = module.get_submodule(name).weight
    return found.detach().clone()


def draw_layers(pipeline: Any, parts: dict[str, tuple[str, ...]]) -> Layers:
    """A and B of each layer; ranks 2, 3, 4 in turn."""
    generator, layers = torch.Generator().manual_seed(0), {}
    for part, names in parts.items():
        for rank, name in enumerate(names, start=2):
            shape = weight(pipeline, part, name).shape
            a = torch.randn((rank, *shape[1:]), generator=generator)
            layers[part, name] = a, torch.randn((shape[0], rank, *[1] * (len(shape) - 2)), generator=generator)
    return layers


def product(a: Tensor, b: Tensor) -> Tensor:
    """B A, a convolution's kernel as rows of A."""
    return (b.flatten(1) @ a.flatten(1)).unflatten(1, a.shape[1:])


def write_diffusers(layers: Layers, path: Path) -> Path:
    content = {}
    for (part, name), (a, b) in layers.items():
        content |= {f"{part}.{name}.lora_A.weight": a, f"{part}.{name}.lora_B.weight": b}
    save_file(content, path)
    return path


def write_kohya(layers: Layers, path: Path, alphas: dict[tuple[str, str], float]) -> Path:
    has_two = any(part == "text_encoder_2" for part, _ in layers)
    prefixes = {"unet": "unet", "text_encoder": "te1" if has_two else "te", "text_encoder_2": "te2"}
    content = {}
    for (part, name), (a, b) in layers.items():
        key = f"lora_{prefixes[part]}_{name.replace('.', '_')}"
        content |= {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b}
        content[f"{key}.alpha"] = torch.tensor(alphas[part, name])
    save_file(content, path)
    return path


@pytest.mark.parametrize("scale", [1.0, 0.5, -1.0])
@pytest.mark.parametrize("family", PARTS)
def test_adds_scale_times_b_a(
    family: str, scale: float, load_family: Callable[[str], Any], family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    base = load_family(family)
    layers = draw_layers(base, PARTS[family])
    file = write_diffusers(layers, tmp_path / "lora.safetensors")
    model = ModelConfig(name=str(family_folder(family)), lora=str(file), lora_scale=scale)
    fused = load_pipeline(model, device=CPU)
    for (part, name), (a, b) in layers.items():
        expected = weight(base, part, name) + scale * product(a, b)
        torch.testing.assert_close(weight(fused, part, name), expected)
    for part, names in PARTS[family].items():
        before, after = getattr(base, part).state_dict(), getattr(fused, part).state_dict()
        # nothing of the adapter stays behind, and nothing else has changed
        assert before.keys() == after.keys()
        assert sum(not torch.equal(before[key], after[key]) for key in before) == len(names)


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
def test_kohyas_alphas_differ_by_layer(family: str, load_family: Callable[[str], Any], tmp_path: Path) -> None:
    base, fused = load_family(family), load_family(family)
    layers = draw_layers(base, PARTS[family])
    alphas = {layer: 1.0 + number for number, layer in enumerate(layers)}
    fuse_lora(fused, write_kohya(layers, tmp_path / "lora.safetensors", alphas), 0.5)
    for (part, name), (a, b) in layers.items():
        expected = weight(base, part, name) + 0.5 * alphas[part, name] / len(a) * product(a, b)
        torch.testing.assert_close(weight(fused, part, name), expected)


def test_kohyas_sdxl_names_follow_stabilitys_blocks(load_family: Callable[[str], Any], tmp_path: Path) -> None:
    base, fused = load_family("sdxl"), load_family("sdxl")
    layers = draw_layers(base, {"unet": (TO_K,)})
    a, b = layers["unet", TO_K]
    # one resnet and one downsampler a block: the second block's first layer is input 3
    stability = TO_K.replace("down_blocks.1.attentions.0", "input_blocks.3.1")
    file = write_kohya({("unet", stability): (a, b)}, tmp_path / "lora.safetensors", {("unet", stability): 2.0})
    fuse_lora(fused, file, 1.0)
    torch.testing.assert_close(weight(fused, "unet", TO_K), weight(base, "unet", TO_K) + product(a, b))


def test_kohyas_flux_names_follow_black_forests_blocks(load_family: Callable[[str], Any], tmp_path: Path) -> None:
    base, fused = load_family("flux-dev"), load_family("flux-dev")
    generator = torch.Generator().manual_seed(0)
    # queries, keys and values are one layer there
    a, b = torch.randn((2, 32), generator=generator), torch.randn((96, 2), generator=generator)
    theirs = ("unet", "double_blocks_0_img_attn_qkv")
    fuse_lora(fused, write_kohya({theirs: (a, b)}, tmp_path / "lora.safetensors", {theirs: 3.0}), 1.0)
    for name, part in zip(("to_q", "to_k", "to_v"), b.chunk(3), strict=True):
        layer = ("transformer", f"transformer_blocks.0.attn.{name}")
        torch.testing.assert_close(weight(fused, *layer), weight(base, *layer) + 3 / 2 * product(a, part))


@pytest.mark.parametrize(("family", "form"), [("sdxl", "diffusers"), ("sdxl", "kohya"), ("flux-dev", "diffusers")])
@pytest.mark.parametrize(
    "wanted", [("unet", "transformer", "scheduler"), ("text_encoder", "text_encoder_2", "tokenizer")]
)
def test_parts_that_are_left_out_are_no_hindrance(
    wanted: tuple[str, ...], family: str, form: str, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = str(family_folder(family))
    base = load_pipeline(ModelConfig(name=folder), device=CPU)
    layers = draw_layers(base, PARTS[family])
    file = tmp_path / "lora.safetensors"
    if form == "kohya":
        write_kohya(layers, file, {(part, name): float(len(ab[0])) for (part, name), ab in layers.items()})
    else:
        write_diffusers(layers, file)
    fused = load_pipeline(ModelConfig(name=folder, lora=str(file)), device=CPU, components=wanted)
    there = [layer for layer in layers if layer[0] in wanted]
    assert {part for part in PARTS[family] if getattr(fused, part) is not None} == {part for part, _ in there}
    for part, name in there:
        expected = weight(base, part, name) + product(*layers[part, name])
        torch.testing.assert_close(weight(fused, part, name), expected)


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux-dev"])
def test_reads_what_training_writes(
    family: str, load_family: Callable[[str], Any], family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    trained = load_family(family)
    denoiser = find_denoiser(trained)
    choose_weights(denoiser, TrainingConfig(lora_rank=3))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in denoiser.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    save_lora(denoiser, tmp_path / "lora")
    # the entries of the metadata stand in an order of chance in what safetensors writes
    for again in range(8):
        save_lora(denoiser, tmp_path / f"again-{again}")
    files = [path.read_bytes() for path in tmp_path.glob("*/pytorch_lora_weights.safetensors")]
    assert (len(files), len(set(files))) == (9, 1)
    denoiser.fuse_lora()
    denoiser.unload_lora()
    model = ModelConfig(name=str(family_folder(family)), lora=str(tmp_path / "lora"))
    loaded = find_denoiser(load_pipeline(model, device=CPU))
    for key, expected in denoiser.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], expected), key


@pytest.mark.parametrize("end", ["", ".default", ".default_0"])
def test_alpha_of_diffusers_metadata_counts(end: str, load_family: Callable[[str], Any], tmp_path: Path) -> None:
    base, fused = load_family("sdxl"), load_family("sdxl")
    layers = draw_layers(base, {"unet": (TO_K,)})
    file = write_diffusers(layers, tmp_path / "lora.safetensors")
    adapter = {"unet.r": 2, "unet.lora_alpha": 8, "unet.target_modules": [TO_K]}
    metadata = {"lora_adapter_metadata": json.dumps(adapter), "format": "pt"}
    save_file(_changed(load_file(file), ".weight", f"{end}.weight"), file, metadata=metadata)
    fuse_lora(fused, file, 1.0)
    expected = weight(base, "unet", TO_K) + 8 / 2 * product(*layers["unet", TO_K])
    torch.testing.assert_close(weight(fused, "unet", TO_K), expected)


@pytest.mark.parametrize("metadata", ["[8]", "8", '"r"', "{'r': 8}"])
def test_metadata_that_are_no_object(metadata: str, tiny_pipeline: Any, tmp_path: Path) -> None:
    file = write_diffusers(draw_layers(tiny_pipeline, {"unet": UNET}), tmp_path / "lora.safetensors")
    save_file(load_file(file), file, metadata={"lora_adapter_metadata": metadata})
    with pytest.raises(ConfigError, match=r"an object|property name"):
        fuse_lora(tiny_pipeline, file, 1.0)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_lora_in_float8(dtype: torch.dtype, load_family: Callable[[str], Any], tmp_path: Path) -> None:
    """As trainers of FLUX.1 save them to halve the file."""
    base, fused = load_family("sd15"), load_family("sd15")
    layers = {key: (a.to(dtype), b.to(dtype)) for key, (a, b) in draw_layers(base, {"unet": UNET}).items()}
    fuse_lora(fused, write_kohya(layers, tmp_path / "lora.safetensors", dict.fromkeys(layers, 2.0)), 1.0)
    for (part, name), (a, b) in layers.items():
        expected = weight(base, part, name) + 2 / len(a) * product(a.float(), b.float())
        torch.testing.assert_close(weight(fused, part, name), expected)


@pytest.mark.parametrize("alpha", [torch.tensor(0.0), torch.tensor(-1), torch.ones(2)])
def test_alphas_that_make_no_sense(alpha: Tensor, tiny_pipeline: Any, tmp_path: Path) -> None:
    layers = draw_layers(tiny_pipeline, {"unet": (TO_K,)})
    file = write_kohya(layers, tmp_path / "lora.safetensors", {("unet", TO_K): 1.0})
    save_file({name: alpha if name.endswith(".alpha") else w for name, w in load_file(file).items()}, file)
    with pytest.raises(ConfigError, match=r"to_k\.alpha is .*; an alpha is one number above 0"):
        fuse_lora(tiny_pipeline, file, 1.0)


@pytest.mark.parametrize("ends", [("lora_A", "lora_B"), ("lora_A.default", "lora_B.default"), ("lora_down", "lora_up")])
@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux-dev"])
def test_alphas_beside_dotted_names(
    family: str, ends: tuple[str, str], load_family: Callable[[str], Any], tmp_path: Path
) -> None:
    """Of public FLUX LoRAs; a layer without an alpha is as strong as its rank."""
    base, fused = load_family(family), load_family(family)
    part, names = next(iter(PARTS[family].items()))
    layers, content = draw_layers(base, {part: names}), {}
    for (_, name), (a, b) in layers.items():
        content |= {f"{part}.{name}.{ends[0]}.weight": a, f"{part}.{name}.{ends[1]}.weight": b}
    content[f"{part}.{names[0]}.alpha"] = torch.tensor([8.0])
    save_file(content, tmp_path / "lora.safetensors")
    fuse_lora(fused, tmp_path / "lora.safetensors", 1.0)
    for (_, name), (a, b) in layers.items():
        share = 8 / len(a) if name == names[0] else 1
        expected = weight(base, part, name) + share * product(a, b)
        torch.testing.assert_close(weight(fused, part, name), expected)


def write_adapter(module: Any, folder: Path, names: tuple[str, ...], **options: Any) -> dict[str, Tensor]:
    """With peft itself; what it adds to each layer's weights."""
    settings = peft.LoraConfig(target_modules=list(names), **options)
    adapted = peft.get_peft_model(module, settings)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(folder)
    layers = {name: adapted.base_model.model.get_submodule(name) for name in names}
    return {name: layer.get_delta_weight("default").detach() for name, layer in layers.items()}


ADAPTERS: dict[str, dict[str, Any]] = {
    "one scale": {"r": 3, "lora_alpha": 6},
    "patterns": {"r": 4, "lora_alpha": 4, "rank_pattern": {"to_k": 2}, "alpha_pattern": {"to_k": 5, "conv1": 1}},
    "rank-stabilised": {"r": 4, "lora_alpha": 4, "use_rslora": True},
}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_folder_of_peft(
    adapter: str, load_family: Callable[[str], Any], family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    base = load_family("sdxl")
    added = write_adapter(load_family("sdxl").unet, tmp_path / "adapter", UNET, **ADAPTERS[adapter])
    name = str(family_folder("sdxl"))
    for path in (tmp_path / "adapter", tmp_path / "adapter" / "adapter_model.safetensors"):
        fused = load_pipeline(ModelConfig(name=name, lora=str(path), lora_scale=0.5), device=CPU)
        for layer, delta in added.items():
            torch.testing.assert_close(weight(fused, "unet", layer), weight(base, "unet", layer) + 0.5 * delta)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft reads it
def test_an_adapter_of_a_text_encoder(load_family: Callable[[str], Any], tmp_path: Path) -> None:
    base, fused, adapted = (load_family("sdxl") for _ in range(3))
    name = next(name for name, _ in adapted.text_encoder.named_modules() if name.endswith("layers.0.self_attn.k_proj"))
    added = write_adapter(adapted.text_encoder, tmp_path, (name,), r=2, lora_alpha=3)
    document = json.loads((tmp_path / "adapter_config.json").read_text())
    assert document["auto_mapping"]["base_model_class"] == "CLIPTextModel"
    fuse_lora(fused, tmp_path / "adapter_model.safetensors", 1.0)
    before = base.text_encoder.get_submodule(name).weight
    torch.testing.assert_close(fused.text_encoder.get_submodule(name).weight, before + added[name])


def test_the_hash_follows_an_adapters_settings(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    model = ModelConfig(name=str(tiny_pipeline_folder), lora=str(tmp_path))
    save_file({"weight": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    hashes = {model_hash(model)}
    for alpha in (1, 2):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha}))
        hashes.add(model_hash(model))
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("change", "error", "problem"),
    [
        ({"use_dora": True}, ConfigError, "has use_dora True, which is not supported"),
        ({"bias": "lora_only"}, ConfigError, "has bias 'lora_only'"),
        ({"peft_type": "IA3"}, ConfigError, "has peft_type 'IA3', not LORA"),
        ({"init_lora_weights": "pissa_niter_16"}, ConfigError, "which changed the base"),
        ({"r": 5}, ConfigError, "has rank 3, adapter_config.json says 5"),
        ({"lora_alpha": None}, DamagedWeightsError, "has lora_alpha None, not a number above 0"),
        ({"alpha_pattern": {"(": 2}}, DamagedWeightsError, r"has '\(' in alpha_pattern"),
        ({"rank_pattern": [2]}, DamagedWeightsError, r"has rank_pattern \[2\], not an object"),
    ],
)
def test_an_adapter_that_cannot_be_fused(
    change: dict[str, Any], error: type[Exception], problem: str, load_family: Callable[[str], Any], tmp_path: Path
) -> None:
    write_adapter(load_family("sdxl").unet, tmp_path, UNET[:1], r=3, lora_alpha=6)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | change))
    with pytest.raises(error, match=problem):
        fuse_lora(load_family("sdxl"), tmp_path / "adapter_model.safetensors", 1.0)


def test_an_adapter_without_its_settings(load_family: Callable[[str], Any], tmp_path: Path) -> None:
    pipeline = load_family("sdxl")
    write_adapter(load_family("sdxl").unet, tmp_path, UNET[:1], r=3, lora_alpha=6)
    (tmp_path / "adapter_config.json").rename(tmp_path / "settings.json")
    with pytest.raises(ConfigError, match=r"adapter_config\.json has; put that beside adapter_model\.safetensors"):
        fuse_lora(pipeline, tmp_path / "adapter_model.safetensors", 1.0)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(DamagedWeightsError, match=r"adapter_config\.json is not JSON"):
        fuse_lora(pipeline, tmp_path / "adapter_model.safetensors", 1.0)


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_half_precision(form: str, family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = ModelConfig(name=str(family_folder("sdxl")), dtype="bfloat16")
    base = load_pipeline(model, device=CPU)
    layers = {layer: (a.half(), b.half()) for layer, (a, b) in draw_layers(base, PARTS["sdxl"]).items()}
    file = tmp_path / "lora.safetensors"
    if form == "kohya":
        write_kohya(layers, file, dict.fromkeys(layers, 1.0))
    else:
        write_diffusers(layers, file)
    fused = load_pipeline(model.model_copy(update={"lora": str(file)}), device=CPU)
    for (part, name), (a, b) in layers.items():
        share = 1 / len(a) if form == "kohya" else 1
        expected = weight(base, part, name).float() + share * product(a.float(), b.float())
        assert weight(fused, part, name).dtype == torch.bfloat16
        torch.testing.assert_close(weight(fused, part, name).float(), expected, rtol=2e-2, atol=3e-2)


def test_hash_follows_bytes_and_scale(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    name, files = str(tiny_pipeline_folder), [tmp_path / "a.safetensors", tmp_path / "pytorch_lora_weights.safetensors"]
    plain = model_hash(ModelConfig(name=name))
    for file in files:
        save_file({"weight": torch.ones(1)}, file)
    first = model_hash(ModelConfig(name=name, lora=str(files[0])))
    # of the same bytes elsewhere, named as a file or as its folder
    assert {model_hash(ModelConfig(name=name, lora=str(path))) for path in (files[1], tmp_path)} == {first}
    assert first.startswith(f"{plain}+lora-2:")
    assert model_hash(ModelConfig(name=name, lora=str(files[0]), lora_scale=0.5)) not in (first, plain)
    save_file({"weight": torch.zeros(1)}, files[0])
    assert model_hash(ModelConfig(name=name, lora=str(files[0]))) not in (first, plain)


def test_a_missing_file_says_how_to_get_it(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    name = str(tiny_pipeline_folder)
    with pytest.raises(MissingWeightsError, match=r"'not/there\.safetensors'.*as training leaves in runs/NAME/lora"):
        model_hash(ModelConfig(name=name, lora="not/there.safetensors"))
    with pytest.raises(MissingWeightsError, match=r"there is no .*/pytorch_lora_weights\.safetensors; give a"):
        load_pipeline(ModelConfig(name=name, lora=str(tmp_path)), device=CPU)
    with pytest.raises(
        MissingWeightsError,
        match=r"hf download ByteDance/SDXL-Lightning sdxl_lightning_8step_lora\.safetensors --local-dir weights`",
    ):
        model_hash(ModelConfig(name=name, lora="weights/sdxl_lightning_8step_lora.safetensors"))


@pytest.mark.parametrize("damage", ["truncated", "not safetensors", "empty file"])
def test_a_damaged_file(damage: str, tiny_pipeline: Any, tmp_path: Path) -> None:
    file = write_diffusers(draw_layers(tiny_pipeline, {"unet": UNET}), tmp_path / "lora.safetensors")
    content = {"truncated": file.read_bytes()[:-8], "not safetensors": b"PK\x03\x04 a pickle", "empty file": b""}
    file.write_bytes(content[damage])
    with pytest.raises(
        MissingWeightsError, match=r"lora\.safetensors is not a complete safetensors file: .*; get it again"
    ):
        fuse_lora(tiny_pipeline, file, 1.0)


def _changed(weights: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {name.replace(old, new): weight.clone() for name, weight in weights.items()}


MISFITS: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "no weights": (lambda weights: {}, "it is empty"),
    "wider layers": (
        lambda weights: {n: w.repeat_interleave(2, dim=1 if "_A" in n else 0) for n, w in weights.items()},
        "size mismatch for down_blocks.1",
    ),
    "no such layer": (
        lambda weights: _changed(weights, "down_blocks.1", "down_blocks.7"),
        r"Target modules \{.*down_blocks\.7.*\} not found",
    ),
    "some layers more": (
        lambda weights: weights | _changed(weights, "down_blocks.1", "down_blocks.7"),
        "6 of its 12 tensors for unet have a place",
    ),
    "another family": (
        lambda weights: _changed(weights, "unet", "transformer"),
        "'transformer', which this pipeline does not have",
    ),
    "a whole checkpoint": (
        lambda weights: {"unet.conv_in.weight": torch.zeros(3, 3)},
        "unet.conv_in.weight is not of a LoRA",
    ),
    "a DoRA": (lambda weights: weights | {"unet.mid.dora_scale": torch.ones(1)}, "it is a DoRA"),
    "a LoKr": (
        lambda weights: {f"lora_unet_mid.{end}": torch.ones(1) for end in ("alpha", "lokr_w1", "lokr_w2")},
        "lora_unet_mid has no lora_down or lora_A: it is a LoKr",
    ),
    "not a number": (
        lambda weights: {name: weight * torch.nan for name, weight in weights.items()},
        "has values that are not finite",
    ),
    "half a layer": (
        lambda weights: {name: weight for name, weight in weights.items() if f"{TO_K}.lora_A" not in name},
        "it lacks 1 tensors for unet, such as .*to_k.lora_A",
    ),
    "names that diffusers drops": (
        lambda weights: _changed(weights, "lora_A.weight", "lora_A.other.weight"),
        "of its 6 tensors for unet have a place",
    ),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_lora_of_another_model(misfit: str, tiny_pipeline: Any, tmp_path: Path) -> None:
    change, reason = MISFITS[misfit]
    file = write_diffusers(draw_layers(tiny_pipeline, {"unet": UNET}), tmp_path / "lora.safetensors")
    save_file(change(load_file(file)), file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what peft only warns of is refused all the same
        with pytest.raises(ConfigError, match=rf"lora\.safetensors does not fit StableDiffusionXLPipeline: .*{reason}"):
            fuse_lora(tiny_pipeline, file, 1.0)


@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize(("part", "layers"), [("unet", UNET), ("text_encoder", TEXT)])
def test_a_layer_that_lacks_a_factor(
    part: str, layers: tuple[str, ...], side: str, tiny_pipeline: Any, tmp_path: Path
) -> None:
    """The other factor would be multiplied with whatever lies in memory."""
    file = write_diffusers(draw_layers(tiny_pipeline, {part: layers}), tmp_path / "lora.safetensors")
    weights = load_file(file)
    del weights[f"{part}.{layers[-1]}.lora_{side}.weight"]
    save_file(weights, file)
    with pytest.raises(ConfigError, match="does not fit StableDiffusionXLPipeline"):
        fuse_lora(tiny_pipeline, file, 1.0)


@pytest.mark.parametrize("side", ["A", "B"])
def test_an_adapter_whose_layer_lacks_a_factor(side: str, load_family: Callable[[str], Any], tmp_path: Path) -> None:
    write_adapter(load_family("sdxl").unet, tmp_path, UNET, r=3, lora_alpha=6)
    file = tmp_path / "adapter_model.safetensors"
    gone = next(name for name in load_file(file) if f"conv1.lora_{side}" in name)
    save_file({name: tensor for name, tensor in load_file(file).items() if name != gone}, file)
    with pytest.raises(ConfigError, match="does not fit StableDiffusionXLPipeline"):
        fuse_lora(load_family("sdxl"), file, 1.0)


@pytest.mark.parametrize(
    ("layer", "reason"), [("layers.9", "its layers are not this model's"), ("layers.0", "mismatched_sizes")]
)
def test_a_lora_of_another_text_encoder(layer: str, reason: str, tiny_pipeline: Any, tmp_path: Path) -> None:
    a, b = draw_layers(tiny_pipeline, {"text_encoder": TEXT[:1]})["text_encoder", TEXT[0]]
    wide = {("text_encoder", TEXT[0].replace("layers.0", layer)): (a, b.repeat(2, 1))}
    with pytest.raises(ConfigError, match=f"does not fit StableDiffusionXLPipeline: .*{reason}"):
        fuse_lora(tiny_pipeline, write_diffusers(wide, tmp_path / "lora.safetensors"), 1.0)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"lora": "x", "lora_scale": 0}, "lora_scale is 0, which fuses nothing"),
        ({"lora": "x", "lora_scale": float("nan")}, "model.lora_scale: Input should be a finite number"),
        ({"lora": "x", "lora_scale": float("inf")}, "model.lora_scale: Input should be a finite number"),
        ({"lora_scale": 0.5}, "lora_scale is 0.5, but there is no lora"),
        ({"lora": ""}, "model.lora: String should have at least 1 character"),
    ],
)
def test_scales_that_make_no_sense(settings: dict[str, Any], problem: str) -> None:
    document = {"model": settings, "axes": [{"name": "gender", "classes": ["male", "female"]}], "prompts": {}}
    with pytest.raises(ConfigError, match=problem):
        parse_config(document)
