"""The safety checker against diffusers' own call, the watermark read back, the words that nobody reads."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, cosine_distance
from diffusers.pipelines.stable_diffusion_xl.watermark import WATERMARK_BITS
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig

from popalign_core.errors import ConfigError, MissingWeightsError
from popalign_core.sampling.safety import (
    SafetyChecker,
    load_safety_checker,
    lost_words,
    safety_hash,
    unsafe_images,
    watermark,
)

Pixels = NDArray[np.uint8]
WIDTH = 16
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": WIDTH,
}
# Word for word what lies beside the public checkpoint, at its size here.
PREPROCESSOR = {
    "crop_size": 32,
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 32,
}


@pytest.fixture(scope="module")
def pictures() -> Pixels:
    """40 pictures of 48 x 40 px, more than one batch: soft blobs, so that they differ by more than noise."""
    coarse = torch.rand((40, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse, (40, 48), mode="bilinear")
    pixels: Pixels = (fine * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    return pixels


def inputs(checker: SafetyChecker, pictures: Pixels) -> torch.Tensor:
    """As the stock pipeline makes them, from PIL pictures."""
    values: torch.Tensor = checker.processor([Image.fromarray(p) for p in pictures], return_tensors="pt")[
        "pixel_values"
    ]
    return values


@pytest.fixture(scope="module")
def folder(pictures: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint with the public one's names; thresholds where about a third of the pictures lie above."""
    path = tmp_path_factory.mktemp("checker")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = StableDiffusionSafetyChecker(CLIPConfig(vision_config=VISION, projection_dim=WIDTH))
        model.concept_embeds.data = torch.randn(17, WIDTH)
        model.special_care_embeds.data = torch.randn(3, WIDTH)
    (path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    model.eval().save_pretrained(path)
    with torch.no_grad():
        values = inputs(load_safety_checker(str(path)), pictures)
        embeds = model.visual_projection(model.vision_model(values)[1])
    concepts, care = cosine_distance(embeds, model.concept_embeds), cosine_distance(embeds, model.special_care_embeds)
    model.concept_embeds_weights.data = concepts.quantile(0.97, dim=0)
    model.special_care_embeds_weights.data = care.quantile(0.9, dim=0)
    model.save_pretrained(path)
    weights = load_file(path / "model.safetensors")
    renamed = {name.replace("vision_model.", "vision_model.vision_model."): weights[name] for name in weights}
    save_file(renamed, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_the_verdicts_are_diffusers_own(folder: Path, pictures: Pixels) -> None:
    checker, before = load_safety_checker(str(folder)), pictures.copy()
    # as a pipeline would load it, and one picture at a time
    theirs = StableDiffusionSafetyChecker.from_pretrained(folder).eval()
    expected = []
    for picture in pictures:
        _, flagged = theirs(images=[np.zeros((1, 1, 3))], clip_input=inputs(checker, picture[None]))
        expected += flagged
    verdicts = unsafe_images(checker, pictures)
    assert verdicts.dtype == np.bool_
    assert verdicts.tolist() == expected
    assert 5 < sum(expected) < 35
    assert np.array_equal(pictures, before)
    assert unsafe_images(checker, pictures[:0]).tolist() == []


def test_concepts_that_ask_for_special_care_lower_the_threshold(folder: Path, pictures: Pixels) -> None:
    """By 0.01, as diffusers does: the thresholds just above every picture flag those alone that need care."""
    checker = load_safety_checker(str(folder))
    model = checker.model
    with torch.no_grad():
        embeds = model.visual_projection(model.vision_model(inputs(checker, pictures))[1])
        care = cosine_distance(embeds, model.special_care_embeds) - model.special_care_embeds_weights
        concepts = cosine_distance(embeds, model.concept_embeds)
        model.concept_embeds_weights.data = torch.full_like(model.concept_embeds_weights, 2.0)
        model.concept_embeds_weights.data[0] = concepts[:, 0].max() + 0.005
    needs_care, is_near = (care > 5e-4).any(dim=1), concepts[:, 0] > concepts[:, 0].max() - 0.004
    assert unsafe_images(checker, pictures).tolist() == (needs_care & is_near).tolist()
    model.special_care_embeds_weights.data -= 2.0
    assert unsafe_images(checker, pictures).tolist() == is_near.tolist()
    assert is_near.sum() > 0


def test_hash_follows_the_weights(folder: Path, tmp_path: Path) -> None:
    names = ("config.json", "model.safetensors", "preprocessor_config.json")
    for name in names:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    lines = (f"{name}\0{hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n" for name in names)
    assert safety_hash(str(folder)) == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert safety_hash(str(tmp_path)) == safety_hash(str(folder))
    (tmp_path / "config.json").write_text("{}")
    assert safety_hash(str(tmp_path)) != safety_hash(str(folder))


@pytest.mark.parametrize("use", [load_safety_checker, safety_hash])
def test_a_missing_checker_says_how_to_get_it(use: Callable[[str], object], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    problem = rf"{tmp_path} has no model\.safetensors, preprocessor_config\.json; run `hf download "
    with pytest.raises(
        MissingWeightsError, match=f"{problem}CompVis/stable-diffusion-safety-checker --local-dir {tmp_path}`"
    ):
        use(str(tmp_path))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def _drop_the_thresholds(path: Path) -> None:
    weights = load_file(path)
    del weights["concept_embeds_weights"]
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "problem"),
    [(_truncate, "cannot load the safety checker"), (_drop_the_thresholds, "lacks concept_embeds_weights")],
)
def test_a_damaged_checker(damage: Callable[[Path], None], problem: str, folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damage(tmp_path / "model.safetensors")
    with pytest.raises(MissingWeightsError, match=f"{problem}.*hf download CompVis"):
        load_safety_checker(str(tmp_path))


def foliage(size: int) -> Pixels:
    """Two pictures with fine grain: in smooth ones the rounding to 8 bits takes some of the watermark's bits."""
    coarse = torch.rand((2, 3, size // 2, size // 2), generator=torch.Generator().manual_seed(1))
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0.1, 0.9)
    pixels: Pixels = (fine * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    return pixels


def test_the_watermark_is_read_back() -> None:
    from imwatermark import WatermarkDecoder

    pixels = foliage(512)
    before, marked = pixels.copy(), watermark(pixels)
    decoder = WatermarkDecoder("bits", len(WATERMARK_BITS))
    for picture, plain in zip(marked, pixels, strict=True):
        assert [int(bit) for bit in decoder.decode(picture[:, :, ::-1], "dwtDct")] == WATERMARK_BITS
        assert [int(bit) for bit in decoder.decode(plain[:, :, ::-1], "dwtDct")] != WATERMARK_BITS
    difference = np.abs(marked.astype(int) - pixels)
    assert (marked.shape, marked.dtype) == (pixels.shape, np.uint8)
    assert 0 < difference.mean() < 10  # of 255
    assert np.array_equal(pixels, before)


def test_a_watermark_needs_room_and_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="255 x 255 px is too small for the watermark, which needs 256 px"):
        watermark(foliage(255))
    monkeypatch.setitem(sys.modules, "imwatermark", None)
    with pytest.raises(ConfigError, match=r"`pip install --no-deps invisible-watermark==0\.2\.0 PyWavelets`"):
        watermark(foliage(256))


@pytest.mark.parametrize(
    ("family", "text", "lost"),
    [
        # CLIP's stand-ins read 14 letters between the ends of the text, T5's 255 letters and word beginnings
        ("sd15", "", ""),
        ("sd15", "abcdefg Hijklmn ", ""),
        ("sd15", "Abcdefg  hijklmn Opq,  RST ", "Opq,  RST"),
        ("sdxl", "abcdefg hijklmn opq", "opq"),
        ("sdxl", "abcdefg hijkl Mnopq rst", "Mnopq rst"),  # a word that is cut
        ("sdxl", "x" * 15, "x" * 15),
        ("sd3-without-t5", "abcdefg hijklmn opq", "opq"),
        ("sd3", "abcdefg hijklmn opq", ""),
        ("sd3", " ".join("a" * 127), ""),
        ("sd3", " ".join("a" * 127) + " b C", "C"),
    ],
)
def test_lost_words(family: str, text: str, lost: str, load_family: Callable[[str], Any]) -> None:
    assert lost_words(load_family(family), text) == lost


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3"])
def test_what_is_lost_changes_nothing(family: str, load_family: Callable[[str], Any]) -> None:
    """The pipeline itself says so: another ending, the same embeddings."""
    from popalign_core.sampling.engine import embed_prompts

    pipeline = load_family(family)
    read = "abcdefg hijklmn" if family != "sd3" else " ".join("a" * 127) + " b"
    texts = [f"{read} opq", f"{read} xyz", read]
    assert [lost_words(pipeline, text) for text in texts] == ["opq", "xyz", ""]
    embeds = embed_prompts(pipeline, texts, 3).prompt_embeds
    assert torch.equal(embeds[0], embeds[1])
    assert torch.equal(embeds[0], embeds[2])


def test_hashing_needs_no_torch() -> None:
    code = "import sys, popalign_core.sampling.safety; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
