"""Image processors by their files: what transformers makes of an image is made here, or the file is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from popalign_core.errors import DamagedWeightsError
from popalign_core.models.image_processors import ImagePreprocessing, LibraryPreprocessing, load_preprocessing
from popalign_core.models.weights_check import PartFolder

MEAN, STD = (0.485, 0.456, 0.406), (0.478, 0.473, 0.474)
CLIP = {
    "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32}, "image_mean": list(MEAN), "image_std": list(STD),
    "rescale_factor": 1 / 255, "resample": 3,
}  # fmt: skip
PLAIN = {"size": {"height": 32, "width": 32}, "image_mean": list(MEAN), "image_std": list(STD), "resample": 2}
Pixels = np.ndarray


def part_with(
    folder: Path, document: Any, model_type: str | None = None, name: str = "preprocessor_config.json"
) -> Any:
    (folder / name).write_text(json.dumps(document))
    if model_type:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return PartFolder("the model", folder, "get it again")


@pytest.fixture
def image() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8)


def resized(image: Pixels, height: int, width: int, resample: int = 2) -> Pixels:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling(resample)), np.float64)


def normalised(pixels: Pixels) -> Pixels:
    values: Pixels = (pixels / 255 - np.array(MEAN)) / np.array(STD)
    return values


def as_efficientnet(image: Pixels) -> Pixels:
    """With include_top divided by the deviation once more."""
    values: Pixels = normalised(resized(image, 32, 32)) / np.array(STD)
    return values


def as_efficientnet_with_offset(image: Pixels) -> Pixels:
    values: Pixels = (resized(image, 32, 32) / 127.5 - 1 - np.array(MEAN)) / np.array(STD)
    return values


def as_convnext(image: Pixels) -> Pixels:
    """Shorter side 32 / 0.8 = 40, which it has; the longer stays 48; then 32 x 32 of the middle."""
    return normalised(image[8:40, 4:36].astype(np.float64))


def as_vit(image: Pixels) -> Pixels:
    return normalised(resized(image, 32, 32))


def as_mobilenet(image: Pixels) -> Pixels:
    """Shorter side 40 -> 36, longer int(36 * 48 / 40) = 43, then the middle 32 x 32."""
    return normalised(resized(image, 43, 36)[5:37, 2:34])


EFFICIENTNET = {"image_processor_type": "EfficientNetImageProcessor"} | PLAIN


@pytest.mark.parametrize(
    ("document", "model_type", "expected"),
    [
        pytest.param(EFFICIENTNET | {"include_top": True}, None, as_efficientnet, id="include_top"),
        pytest.param(
            EFFICIENTNET | {"include_top": False, "rescale_offset": True, "rescale_factor": 1 / 127.5},
            None,
            as_efficientnet_with_offset,
            id="rescale_offset",
        ),
        pytest.param(PLAIN | {"size": {"shortest_edge": 32}, "crop_pct": 0.8}, "convnext", as_convnext, id="crop_pct"),
        pytest.param(PLAIN | {"size": 32, "feature_extractor_type": "ViTFeatureExtractor"}, None, as_vit, id="old ViT"),
        pytest.param(PLAIN | {"image_processor_type": "ViTImageProcessorFast"}, None, as_vit, id="fast class"),
        pytest.param(PLAIN | {"device": None, "disable_grouping": None}, "swin", as_vit, id="empty keys"),
        pytest.param(
            PLAIN | {"size": {"shortest_edge": 36}, "crop_size": 32, "do_center_crop": True},
            "mobilenet_v2",
            as_mobilenet,
            id="shortest_edge and crop",
        ),
    ],
)
def test_an_image_processor_does_what_its_model_is_used_to(
    document: dict[str, Any],
    model_type: str | None,
    expected: Callable[[Pixels], Pixels],
    image: Pixels,
    tmp_path: Path,
) -> None:
    loaded = load_preprocessing(part_with(tmp_path, document, model_type))
    found = loaded.apply_all([image, image[:, ::-1]])
    np.testing.assert_allclose(found[0].permute(1, 2, 0), expected(image), atol=1e-5)
    assert isinstance(loaded, LibraryPreprocessing)
    assert found.dtype == torch.float32


def test_the_shared_file_of_transformers_5(image: Pixels, tmp_path: Path) -> None:
    part = part_with(
        tmp_path,
        {"image_processor": PLAIN | {"image_processor_type": "ViTImageProcessor"}},
        name="processor_config.json",
    )
    np.testing.assert_allclose(
        load_preprocessing(part).apply_all([image])[0].permute(1, 2, 0), as_vit(image), atol=1e-5
    )


@pytest.mark.parametrize("change", [{}, {"size": 32, "crop_size": 24}, {"resample": 0}, {"do_normalize": False}])
@pytest.mark.parametrize("sides", [(48, 40), (33, 95), (32, 32), (20, 31)])
def test_clips_own_steps_equal_transformers(change: dict[str, Any], sides: tuple[int, int], tmp_path: Path) -> None:
    ours = load_preprocessing(part_with(tmp_path, CLIP | change))
    theirs = CLIPImageProcessorPil.from_pretrained(tmp_path)
    pixels = np.random.default_rng(1).integers(0, 256, (*sides, 3), np.uint8)
    assert isinstance(ours, ImagePreprocessing)
    expected = theirs(pixels, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    torch.testing.assert_close(ours.apply_all([pixels]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "change",
    [
        {"crop_size": {"height": 40, "width": 40}},
        {"size": {"height": 32, "width": 32}, "do_center_crop": False},
        {"do_resize": False},
        {"do_rescale": False},
        {"image_mean": None},
        {"do_pad": True, "pad_size": {"height": 40, "width": 40}},
    ],
)
def test_a_clip_with_other_steps_is_left_to_transformers(change: dict[str, Any], image: Pixels, tmp_path: Path) -> None:
    document = {key: value for key, value in (CLIP | change).items() if value is not None}
    ours = load_preprocessing(part_with(tmp_path, document))
    assert isinstance(ours, LibraryPreprocessing)
    theirs = CLIPImageProcessorPil.from_pretrained(tmp_path)
    expected = theirs(image, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    assert torch.equal(ours.apply_all([image]), expected)


@pytest.mark.parametrize(
    ("document", "model_type", "problem"),
    [
        (PLAIN | {"crop_pct": 0.9}, "vit", "has 'crop_pct', which transformers' ViTImageProcessorPil does not read"),
        (CLIP | {"sharpen": 2}, None, "has 'sharpen', which transformers' CLIPImageProcessorPil does not read"),
        (PLAIN | {"image_processor_type": "OurImageProcessor"}, None, "its image processor: Unrecognized"),
        (PLAIN | {"auto_map": {"AutoImageProcessor": "a.B"}}, None, "its image processor: "),
        (PLAIN | {"image_mean": [0.5, 0.5]}, "vit", "ViTImageProcessorPil does not run: mean must have 3 elements"),
        (PLAIN | {"image_std": [0, 1, 1]}, "vit", "divide by zero|not finite"),
        (PLAIN | {"resample": 77}, "vit", "does not run: Unknown resampling filter"),
        (PLAIN | {"resample": "cubic"}, "vit", r"has resample 'cubic', not the number of one of PIL's filters"),
        (PLAIN | {"resample": [3]}, "vit", r"has resample \[3\], not the number"),
        (CLIP | {"resample": 3.0}, None, "has resample 3.0, not the number"),
        (PLAIN | {"do_resize": "false"}, "vit", "has do_resize 'false', not true or false"),
        (CLIP | {"do_normalize": 0}, None, "has do_normalize 0, not true or false"),
        (CLIP | {"do_convert_rgb": "no"}, None, "has do_convert_rgb 'no', not true or false"),
        (PLAIN | {"size": {"wide": 3}}, "vit", "image processor"),
        (PLAIN | {"size": {"longest_edge": 32}}, "mobilenet_v1", "image processor"),
        (CLIP | {"do_center_crop": False}, None, r"makes \[\[1, 3, 48, 32\], \[1, 3, 32, 40\]\] of two images"),
        (CLIP | {"image_mean": "grey"}, None, "does not run"),
        (CLIP | {"image_std": [0, 1, 1]}, None, "divide by zero|not finite"),
        (CLIP | {"image_processor_type": ["CLIPImageProcessor"]}, None, "its image processor"),
        (CLIP | {"size": {"shortest_edge": -4}}, None, "does not run"),
        ({"image_processor_type": "SamImageProcessor", "pad_size": 5}, None, "image processor"),
        ({}, "vit", "has no settings"),
        ([1], "vit", "has no settings"),
    ],
)
def test_what_is_not_understood_is_refused(document: Any, model_type: str | None, problem: str, tmp_path: Path) -> None:
    with pytest.raises(DamagedWeightsError, match=problem):
        load_preprocessing(part_with(tmp_path, document, model_type))


def test_a_shared_file_without_an_image_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedWeightsError, match="has no image_processor"):
        load_preprocessing(part_with(tmp_path, {"processor_class": "CLIPProcessor"}, name="processor_config.json"))
