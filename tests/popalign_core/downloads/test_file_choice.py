"""Of a repository what is read: by names as the public ones have them."""

from pathlib import Path

import pytest

from popalign_core.downloads.file_choice import choose_files
from popalign_core.downloads.licenses import license_of
from popalign_core.errors import MissingWeightsError
from popalign_core.sources import HubFiles, WebFile

# As stabilityai/stable-diffusion-xl-base-1.0 has them, but for images.
SDXL = [
    ".gitattributes",
    "LICENSE.md",
    "README.md",
    "model_index.json",
    "01.png",
    "sd_xl_base_1.0.safetensors",
    "sd_xl_base_1.0_0.9vae.safetensors",
    "sd_xl_offset_example-lora_1.0.safetensors",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/flax_model.msgpack",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/model.onnx",
    "text_encoder/model.safetensors",
    "text_encoder/openvino_model.bin",
    "text_encoder/openvino_model.xml",
    "text_encoder_2/config.json",
    "text_encoder_2/flax_model.msgpack",
    "text_encoder_2/model.fp16.safetensors",
    "text_encoder_2/model.onnx",
    "text_encoder_2/model.onnx_data",
    "text_encoder_2/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "tokenizer_2/merges.txt",
    "tokenizer_2/special_tokens_map.json",
    "tokenizer_2/tokenizer_config.json",
    "tokenizer_2/vocab.json",
    "unet/config.json",
    "unet/diffusion_flax_model.msgpack",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/model.onnx",
    "unet/model.onnx_data",
    "unet/openvino_model.bin",
    "vae/config.json",
    "vae/diffusion_flax_model.msgpack",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "vae_1_0/config.json",
    "vae_1_0/diffusion_pytorch_model.safetensors",
    "vae_decoder/config.json",
    "vae_decoder/model.onnx",
    "vae_encoder/config.json",
    "vae_encoder/model.onnx",
]
SDXL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "image_encoder": [None, None],
}
SDXL_READ = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "tokenizer_2/merges.txt",
    "tokenizer_2/special_tokens_map.json",
    "tokenizer_2/tokenizer_config.json",
    "tokenizer_2/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
]
PIPELINE = HubFiles("stabilityai/stable-diffusion-xl-base-1.0", "pipeline", "model", "4621659")


def test_sdxl_in_one_precision() -> None:
    assert choose_files(PIPELINE, SDXL, SDXL_INDEX) == SDXL_READ


def test_of_a_replaced_denoiser_the_configuration_alone() -> None:
    source = HubFiles(PIPELINE.repo, "pipeline", "model", "4621659", replaced=("unet", "transformer"))
    expected = [name for name in SDXL_READ if name != "unet/diffusion_pytorch_model.safetensors"]
    assert choose_files(source, SDXL, SDXL_INDEX) == expected


def test_a_pipeline_with_half_precision_alone_and_shards() -> None:
    half = [name for name in SDXL if ".fp16." in name or not name.endswith(".safetensors")]
    half.remove("unet/diffusion_pytorch_model.fp16.safetensors")
    stem = "unet/diffusion_pytorch_model"
    shards = [f"{stem}.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index, other = f"{stem}.safetensors.index.fp16.json", f"{stem}-00001-of-00009.safetensors"
    chosen = choose_files(PIPELINE, [*half, *shards, index, other, f"{stem}.bin.index.json"], SDXL_INDEX)
    assert [name for name in chosen if name.startswith("unet/")] == ["unet/config.json", *shards, index]
    assert "vae/diffusion_pytorch_model.fp16.safetensors" in chosen


def test_a_safety_checker_comes_with_its_pipeline() -> None:
    names = [*SDXL, *(f"safety_checker/{name}" for name in ("config.json", "model.safetensors", "pytorch_model.bin"))]
    index = SDXL_INDEX | {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    added = set(choose_files(PIPELINE, names, index)) - set(SDXL_READ)
    assert added == {"safety_checker/config.json", "safety_checker/model.safetensors"}


def test_networks_tokenizers_and_files() -> None:
    names = ["README.md", "config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "tokenizer.json",
             "vocab.json", "merges.txt", "preprocessor_config.json", "LICENSE.txt", "model.safetensors.index.json",
             "onnx/config.json"]  # fmt: skip
    words = ["config.json", "merges.txt", "preprocessor_config.json", "tokenizer.json", "vocab.json"]
    clip = HubFiles("a/b", "network", "scorers")
    assert choose_files(clip, names, {}) == sorted([*words, "model.safetensors"])
    assert choose_files(HubFiles("a/b", "tokenizer", "scorers"), names, {}) == words
    assert choose_files(HubFiles("a/b", "file", "lora", inside="README.md"), names, {}) == ["README.md"]
    unet = HubFiles("a/b", "network", "denoiser", inside="unet")
    expected = ["unet/config.json", "unet/diffusion_pytorch_model.safetensors"]
    assert choose_files(unet, SDXL, {}) == expected


def test_pickles_are_not_taken() -> None:
    names = [name for name in SDXL if not (name.startswith("vae/") and name.endswith(".safetensors"))]
    with pytest.raises(MissingWeightsError, match="has no safetensors in vae/ that are read here; save it again"):
        choose_files(PIPELINE, [*names, "vae/diffusion_pytorch_model.bin"], SDXL_INDEX)
    with pytest.raises(MissingWeightsError, match=r"a/b@main has no file lora\.safetensors; get it elsewhere"):
        choose_files(HubFiles("a/b", "file", "lora", inside="lora.safetensors"), ["lora.bin"], {})


def test_licenses_are_named_or_not_known() -> None:
    assert license_of(PIPELINE).name == "CreativeML Open RAIL++-M"
    release = "https://github.com/serengil/deepface_models/releases/download/v1.0/"
    web = {name: license_of(WebFile(f"{release}{name}", Path(name), "classifiers")).name for name in
           ("race_model_single_batch.pth", "retinaface.pth")}  # fmt: skip
    assert web["retinaface.pth"] == "MIT"
    assert "non-commercial" in web["race_model_single_batch.pth"]
    unknown = license_of(HubFiles("a/b", "pipeline", "model"))
    assert (unknown.name, unknown.terms, unknown.url) == ("not known", "see URL", "https://huggingface.co/a/b")
    assert license_of(HubFiles("a/b", "pipeline", "model"), "mit").name == "mit by its card"
    assert license_of(WebFile("https://x.example/y", Path("y"), "scorers")).url == "https://x.example/y"
