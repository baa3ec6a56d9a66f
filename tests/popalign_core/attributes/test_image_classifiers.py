"""Image classifiers with labels: a transformers folder and an ONNX file, both written by the test."""

import json
import math

import numpy as np
import pytest
import torch
from onnx_files import write_colour_network

from popalign_core.attributes.image_classifiers import LabelClassifier, load_onnx, load_transformers
from popalign_core.config import NetworkConfig
from popalign_core.errors import DamagedWeightsError, InputError, MissingWeightsError

RED, GREEN = (np.zeros((20, 30, 3), np.uint8) for _ in range(2))
RED[:, :, 0] = 255
GREEN[:, :, 1] = 255
GENDER = {"gender": {"Male": "male", "Female": "female"}}


def onnx_settings(tmp_path, axes=GENDER, labels=("Male", "Female"), **more):
    fields = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)} | {k: v for k, v in more.items() if k != "batch"}
    weights = np.zeros((3, len(labels)))
    weights[0, 0], weights[1, 1] = 2.0, 3.0  # the first label is red, the second green
    path = write_colour_network(tmp_path / "net.onnx", weights, [0.0] * len(labels), (8, 8), batch=more.get("batch"))
    return NetworkConfig(kind="onnx", path=str(path), axes=axes, labels=labels, **fields)


def onnx_classifier(tmp_path, **more):
    settings = onnx_settings(tmp_path, **more)
    return LabelClassifier("colours", "1", settings, load_onnx(settings, "cpu"))


@pytest.mark.parametrize("batch", [None, 2])
def test_an_onnx_file_is_run_on_pictures_of_any_size(tmp_path, batch):
    classifier = onnx_classifier(tmp_path, batch=batch)
    found = classifier.classify([RED, GREEN[:7, :5], RED])
    # mean colours (1, 0, 0) and (0, 1, 0): logits (2, 0) and (0, 3)
    male = [math.exp(2) / (math.exp(2) + 1), 1 / (1 + math.exp(3)), math.exp(2) / (math.exp(2) + 1)]
    assert [one["gender"]["male"] for one in found] == pytest.approx(male, abs=1e-5)
    assert [sum(one["gender"].values()) for one in found] == pytest.approx([1, 1, 1])
    assert classifier.axes == {"gender": ("male", "female")}
    assert classifier.classify([]) == []


def test_mean_and_deviation_are_taken_from_the_configuration(tmp_path):
    classifier = onnx_classifier(tmp_path, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    # red is (2, -2, -2) then: logits (4, -6)
    assert classifier.classify([RED])[0]["gender"]["female"] == pytest.approx(1 / (1 + math.exp(10)), rel=1e-3)


def test_outputs_that_are_no_probabilities_are_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"outputs \[2.0, 0.0\] for 'gender' are not a distribution; set softmax = true"
    ):
        onnx_classifier(tmp_path, softmax=False).classify([RED])


def test_an_onnx_file_must_fit(tmp_path):
    with pytest.raises(InputError, match=r"has outputs \[1, 2\] of an image, but there are 3 labels"):
        load_onnx(onnx_settings(tmp_path).model_copy(update={"labels": ("a", "b", "c")}), "cpu")
    (tmp_path / "bad.onnx").write_bytes(b"<html>404</html>")
    with pytest.raises(InputError, match=r"bad.onnx cannot be read as ONNX"):
        load_onnx(onnx_settings(tmp_path).model_copy(update={"path": str(tmp_path / "bad.onnx")}), "cpu")
    with pytest.raises(MissingWeightsError, match=r"there is no ONNX file at .*gone.onnx"):
        load_onnx(onnx_settings(tmp_path).model_copy(update={"path": str(tmp_path / "gone.onnx")}), "cpu")


def test_an_onnx_file_in_half_precision_is_run(tmp_path):
    weights = np.array([[2.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
    path = write_colour_network(tmp_path / "half.onnx", weights, [0.0, 0.0], (8, 8), dtype="float16")
    settings = onnx_settings(tmp_path).model_copy(update={"path": str(path)})
    found = LabelClassifier("colours", "1", settings, load_onnx(settings, "cpu")).classify([RED])
    assert found[0]["gender"]["male"] == pytest.approx(math.exp(2) / (math.exp(2) + 1), abs=1e-3)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"further_inputs": ["mask"]}, r"does not run on an image \(.*mask"),
        ({"is_flat": False}, r"has outputs \[1, 3, 1, 1\] of an image, but there are 3 labels"),
    ],
)
def test_an_onnx_file_that_does_something_else_is_refused_when_it_is_loaded(options, reason, tmp_path):
    path = write_colour_network(tmp_path / "other.onnx", np.ones((3, 3)), [0.0] * 3, (8, 8), **options)
    settings = onnx_settings(tmp_path).model_copy(update={"path": str(path), "labels": ("a", "b", "c")})
    with pytest.raises(InputError, match=reason):
        load_onnx(settings, "cpu")


@pytest.mark.parametrize(
    ("axes", "reason"),
    [
        ({"gender": {"Male": "male"}}, r"\['Female'\] are in no axis; map each"),
        ({"gender": {"Male": "m", "Female": "f", "X": "x"}}, r"\['X'\] are not labels of the network"),
        (GENDER | {"sex": {"Male": "m"}}, r"\['Male'\] are in two axes"),
    ],
)
def test_every_label_has_one_place(tmp_path, axes, reason):
    with pytest.raises(InputError, match=reason):
        onnx_classifier(tmp_path, axes=axes)


FAIRFACE = ("White", "Black", "East Asian", "Southeast Asian", "Male", "Female")
AXES = {
    "race": {"White": "white", "Black": "black", "East Asian": "asian", "Southeast Asian": "asian"},
    "gender": {"Male": "male", "Female": "female"},
}


def write_vit(folder, processor, bias=None):
    """A transformers folder with FairFace's labels; with a bias, its outputs are that for every picture."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8,
        id2label=dict(enumerate(FAIRFACE)), label2id={name: i for i, name in enumerate(FAIRFACE)},
    )  # fmt: skip
    torch.manual_seed(0)
    model = ViTForImageClassification(config).eval()
    torch.nn.init.normal_(model.classifier.weight)
    if bias is not None:
        torch.nn.init.zeros_(model.classifier.weight)
        model.classifier.bias.data = torch.tensor(bias)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


SQUASH = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}


def classifier_of(folder, axes=AXES):
    settings = NetworkConfig(kind="image-classifier", path=str(folder), axes=axes)
    return LabelClassifier("fairface", "1", settings, load_transformers(settings, "cpu"))


def test_labels_of_an_axis_compete_with_each_other_and_add_up_to_classes(tmp_path):
    """Hand-worked: shares .1 .2 .3 .4 among four races and .25 .75 among two genders, in one row of outputs."""
    bias = [math.log(x) for x in (0.1, 0.2, 0.3, 0.4)] + [5 + math.log(x) for x in (0.25, 0.75)]
    write_vit(tmp_path, SQUASH, bias)
    found = classifier_of(tmp_path).classify([RED, GREEN])
    assert found[0] == found[1]
    assert found[0]["race"] == pytest.approx({"white": 0.1, "black": 0.2, "asian": 0.7}, abs=1e-6)
    assert found[0]["gender"] == pytest.approx({"male": 0.25, "female": 0.75}, abs=1e-6)
    assert classifier_of(tmp_path).axes == {"race": ("white", "black", "asian"), "gender": ("male", "female")}


def test_a_transformers_folder_sees_the_picture_as_its_processor_says(tmp_path):
    model = write_vit(tmp_path, SQUASH)
    found = classifier_of(tmp_path).classify([RED, GREEN])
    # a picture of one colour is that colour in any size: (255 / 255 - 0.5) / 0.5 = 1, and -1
    values = -torch.ones(2, 3, 16, 16)
    values[0, 0], values[1, 1] = 1, 1
    expected = model(pixel_values=values).logits[:, 4:].softmax(1)[:, 0].tolist()
    assert [one["gender"]["male"] for one in found] == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-3


def test_a_processor_that_crops_crops(tmp_path):
    """Red in the middle third, green beside it: the crop sees red only, squashing sees both."""
    stripes = np.repeat(np.repeat([[[0, 255, 0], [255, 0, 0], [0, 255, 0]]], 32, axis=0), 32, axis=1).astype(np.uint8)
    crop = {"size": {"shortest_edge": 16}, "crop_size": {"height": 8, "width": 8}, "do_center_crop": True}
    write_vit(tmp_path / "crop", SQUASH | crop | {"size": {"shortest_edge": 16}, "crop_size": 16})
    write_vit(tmp_path / "squash", SQUASH)
    red = classifier_of(tmp_path / "crop").classify([RED, stripes])
    assert red[0]["gender"]["male"] == pytest.approx(red[1]["gender"]["male"], abs=0.05)
    squashed = classifier_of(tmp_path / "squash").classify([RED, stripes])
    assert abs(squashed[0]["gender"]["male"] - squashed[1]["gender"]["male"]) > 1e-3


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(MissingWeightsError, match=r"has no config.json; give a folder with all its files"):
        classifier_of(tmp_path)
    write_vit(tmp_path, SQUASH)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(DamagedWeightsError, match="is not JSON"):
        classifier_of(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"size": {"height": 24, "width": 24}},
        {"size": 8},
        {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16}, "crop_size": 8},
    ],
)
def test_a_processor_of_another_size_is_refused(change, tmp_path):
    """As where a model was fine-tuned at 384 px beside the processor of 224."""
    write_vit(tmp_path, SQUASH | change)
    with pytest.raises(
        DamagedWeightsError, match=r"does not take the \[1, 3, \d+, \d+\] of its image processor: Input"
    ):
        classifier_of(tmp_path)


@pytest.mark.parametrize("labels", [("Male", "Male"), ("Male", "Female", "Male")])
def test_a_label_of_several_outputs_is_refused(labels, tmp_path):
    """Only the first of them would be read."""
    axes = {"gender": {label: label for label in labels}}
    with pytest.raises(InputError, match=r"\['Male'\] are labels of several outputs"):
        onnx_classifier(tmp_path, labels=labels, axes=axes)
