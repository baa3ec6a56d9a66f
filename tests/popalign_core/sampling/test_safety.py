"""The safety checker against diffusers' own call, the words that nobody reads."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, cosine_distance
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from safety_checkers import checker_inputs, save_checker

from popalign_core.errors import DamagedWeightsError, MissingWeightsError
from popalign_core.sampling.safety import (
    load_safety_checker,
    safety_hash,
    unsafe_images,
)

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def pictures() -> Pixels:
    """40 pictures of 48 x 40 px, more than one batch: soft blobs, so that they differ by more than noise."""
    coarse = torch.rand((40, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse, (40, 48), mode="bilinear")
    pixels: Pixels = (fine * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    return pixels


@pytest.fixture(scope="module")
def folder(pictures: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checker(tmp_path_factory.mktemp("checker"), pictures)


def test_the_verdicts_are_diffusers_own(folder: Path, pictures: Pixels) -> None:
    checker, before = load_safety_checker(str(folder)), pictures.copy()
    # as a pipeline would load it, and one picture at a time
    theirs = StableDiffusionSafetyChecker.from_pretrained(folder).eval()
    expected = []
    for picture in pictures:
        _, flagged = theirs(images=[np.zeros((1, 1, 3))], clip_input=checker_inputs(checker, picture[None]))
        expected += flagged
    verdicts = unsafe_images(checker, pictures)
    assert verdicts.dtype == np.bool_
    assert verdicts.tolist() == expected
    assert 5 < sum(expected) < 35
    assert np.array_equal(pictures, before)
    assert unsafe_images(checker, pictures[:0]).tolist() == []


def test_an_image_processor_of_another_size_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"size": {"shortest_edge": 8}, "crop_size": 8}))
    with pytest.raises(
        DamagedWeightsError, match=r"the safety checker .* does not take the \[1, 3, 8, 8\] of its image"
    ):
        load_safety_checker(str(tmp_path))


def test_concepts_that_ask_for_special_care_lower_the_threshold(folder: Path, pictures: Pixels) -> None:
    """By 0.01, as diffusers does: the thresholds just above every picture flag those alone that need care."""
    checker = load_safety_checker(str(folder))
    model = checker.model
    with torch.no_grad():
        embeds = model.visual_projection(model.vision_model(checker_inputs(checker, pictures))[1])
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
    problem = rf"{tmp_path} has no model\.safetensors, preprocessor_config\.json; run `popalign fetch` .* `hf download "
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
    [
        (_truncate, "cannot load the safety checker"),
        (_drop_the_thresholds, "lacks 1 weights, such as concept_embeds_weights"),
    ],
)
def test_a_damaged_checker(damage: Callable[[Path], None], problem: str, folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    damage(tmp_path / "model.safetensors")
    with pytest.raises(MissingWeightsError, match=f"{problem}.*hf download CompVis"):
        load_safety_checker(str(tmp_path))


def test_hashing_needs_no_torch() -> None:
    code = "import sys, popalign_core.sampling.safety; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
