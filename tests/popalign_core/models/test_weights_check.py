"""What is not whole is refused by name: the tensors of every network, and the words of every tokenizer."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from broken_models import Damage, load, lost, rewrite, settings, text, weights_file, without
from safetensors.torch import load_file, save_file

from popalign_core.attributes.image_classifiers import load_transformers
from popalign_core.attributes.portraits_classifier import PortraitsFaceClassifier
from popalign_core.attributes.zero_shot import load_space
from popalign_core.config import NetworkConfig, ZeroShotConfig
from popalign_core.errors import DamagedWeightsError, MissingWeightsError
from popalign_core.models.clip import embed_texts, load_clip
from popalign_core.models.weights_check import PartFolder, load_module
from popalign_core.portraits import weights_folder

# Each class of network in each family once.
NETWORKS = (
    *(("sdxl", part) for part in ("text_encoder", "text_encoder_2", "unet", "vae")),
    *(("sd15", part) for part in ("text_encoder", "unet", "vae")),
    *(("sd3", part) for part in ("text_encoder_3", "transformer", "vae")),
    *(("flux-dev", part) for part in ("text_encoder", "text_encoder_2", "transformer", "vae")),
)
CopyFamily = Callable[[str], Path]


@pytest.fixture
def copy_family(family_folder: Callable[[str], Path], tmp_path: Path) -> CopyFamily:
    """Copies one of `tiny_models.MODELS`, to be changed."""
    return lambda name: shutil.copytree(family_folder(name), tmp_path / name)


def class_of(folder: Path) -> Any:
    library, name = json.loads((folder.parent / "model_index.json").read_text())[folder.name]
    return getattr({"diffusers": diffusers, "transformers": transformers}[library], name)


def each_without_one(file: Path) -> Iterator[str]:
    """The name of each tensor while the file is without it."""
    tensors = load_file(file)
    for name in tensors:
        save_file(without({name})(tensors), file, metadata={"format": "pt"})
        yield name


@pytest.mark.parametrize(("family", "part"), NETWORKS)
def test_every_tensor_is_missed(copy_family: CopyFamily, family: str, part: str) -> None:
    """Every second one is taken away, then the others: all are counted, so none of them became random unseen."""
    folder = copy_family(family) / part
    file = weights_file(folder)
    whole = load_file(file)
    for start in (0, 1):
        names = set(sorted(whole)[start::2])
        save_file(without(names)(whole), file, metadata={"format": "pt"})
        n_lacking = len(names) + ("shared.weight" in names)  # T5's embeddings have two names and lie there once
        with pytest.raises(DamagedWeightsError, match=f"{file.name} lacks {n_lacking} weights, such as "):
            load_module(class_of(folder), PartFolder(part, folder, "get it again"), torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "part"), NETWORKS)
def test_every_single_tensor_is_missed(copy_family: CopyFamily, family: str, part: str) -> None:
    folder = copy_family(family) / part
    for name in each_without_one(weights_file(folder)):
        with pytest.raises(DamagedWeightsError, match=f"lacks [12] weights, such as .*{name.rsplit('.', 1)[-1]}"):
            load_module(class_of(folder), PartFolder(part, folder, "get it again"), torch.float32)


@pytest.mark.parametrize(
    ("family", "part"),
    [("sdxl", "text_encoder"), ("sdxl", "text_encoder_2"), ("sd15", "vae"), ("sd3", "text_encoder_3")],
)
def test_a_pipeline_with_a_hole_is_refused_by_name(copy_family: CopyFamily, family: str, part: str) -> None:
    folder = copy_family(family)
    name = sorted(load_file(weights_file(folder / part)))[0]
    rewrite(weights_file(folder / part), without({name}))
    with pytest.raises(MissingWeightsError, match=rf"cannot load {part} of .*safetensors lacks 1 .*{name}; restore"):
        load(folder, part)


def _clip_space(folder: Path) -> Any:
    return load_space(ZeroShotConfig(kind="clip", path=str(folder), axes={"g": {"m": "a man", "w": "a woman"}}), "cpu")


def _classifier(folder: Path) -> Any:
    return load_transformers(NetworkConfig(kind="image-classifier", path=str(folder), axes={"g": {"a": "a"}}), "cpu")


@pytest.fixture
def copy_clip(tmp_path: Path) -> Path:
    return shutil.copytree(weights_folder() / "clip", tmp_path / "clip")


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    document = {"size": {"height": 16, "width": 16}}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(document))
    return tmp_path / "vit"


@pytest.mark.parametrize("use", [load_clip, _clip_space])
def test_every_tensor_of_a_clip_is_missed(use: Callable[[Path], Any], copy_clip: Path) -> None:
    whole = load_file(copy_clip / "model.safetensors")
    for start in (0, 1):
        names = set(sorted(whole)[start::2])
        save_file(without(names)(whole), copy_clip / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(DamagedWeightsError, match=rf"the CLIP .*lacks {len(names)} weights.*get its files again"):
            use(copy_clip)


def test_every_single_tensor_of_a_classifier_is_missed(vit: Path) -> None:
    for name in each_without_one(vit / "model.safetensors"):
        kind = name.rsplit(".", 1)[-1]
        with pytest.raises(DamagedWeightsError, match=f"the image classifier .* lacks 1 weights, such as .*{kind}"):
            _classifier(vit)


@pytest.mark.slow
def test_every_single_tensor_of_a_clip_is_missed(copy_clip: Path) -> None:
    for name in each_without_one(copy_clip / "model.safetensors"):
        with pytest.raises(DamagedWeightsError, match=f"lacks 1 weights, such as {name}"):
            load_clip(copy_clip)


def test_a_classifier_without_its_head_or_with_another(vit: Path) -> None:
    rewrite(vit / "model.safetensors", without({"classifier.weight", "classifier.bias"}))
    with pytest.raises(DamagedWeightsError, match=r"lacks 2 weights, such as classifier\.bias"):
        _classifier(vit)
    more = {"classifier.weight": torch.zeros(3, 8), "classifier.bias": torch.zeros(3)}
    rewrite(vit / "model.safetensors", lambda tensors: tensors | more)
    with pytest.raises(DamagedWeightsError, match=r"classifier\.bias has shape \[3\], expected shape \[2\]"):
        _classifier(vit)
    text("config.json", '{"architectures": ["CLIPModel"], "model_type": "clip_text_model"}')(vit)
    with pytest.raises(DamagedWeightsError, match="cannot load the image classifier"):
        _classifier(vit)


def test_the_embedded_classifier_is_whole_but_for_counters(tmp_path: Path) -> None:
    folder = shutil.copytree(weights_folder() / "classifier", tmp_path / "classifier")
    names = set(load_file(folder / "model.safetensors"))
    rewrite(folder / "model.safetensors", without({name for name in names if name.endswith("num_batches_tracked")}))
    PortraitsFaceClassifier(folder=folder)
    rewrite(folder / "model.safetensors", without({sorted(names)[0]}))
    with pytest.raises(DamagedWeightsError, match=r"the embedded classifier .* lacks 1 weights"):
        PortraitsFaceClassifier(folder=folder)


def _cut_vocabulary(path: str) -> Damage:
    def cut(folder: Path) -> None:
        document = json.loads((folder / path).read_text())
        words = document["model"]["vocab"]
        few = list(words.items())[20:] if isinstance(words, dict) else words[:15]
        document["model"]["vocab"] = dict(few) if isinstance(words, dict) else few
        (folder / path).write_text(json.dumps(document))

    return cut


def _hub_layout(*, merges: bool, vocabulary: bool = True) -> Damage:
    def change(folder: Path) -> None:
        place = folder / "tokenizer"
        words = json.loads((place / "tokenizer.json").read_text())["model"]["vocab"]
        (place / "tokenizer.json").unlink()
        if vocabulary:
            (place / "vocab.json").write_text(json.dumps(words))
        if merges:
            (place / "merges.txt").write_text("#version: 0.2\n")

    return change


def _words_without_merges(folder: Path) -> None:
    file = folder / "tokenizer" / "tokenizer.json"
    document = json.loads(file.read_text())
    words = document["model"]["vocab"]
    document["model"]["vocab"] = {f"{word}{word}" if word in "xyz" else word: n for word, n in words.items()}
    file.write_text(json.dumps(document))


WORDS_DAMAGED: dict[str, tuple[str, Damage, str]] = {
    "no vocabulary": (
        "tokenizer",
        lost("tokenizer/tokenizer.json"),
        r"neither tokenizer\.json nor vocab\.json and merg",
    ),
    "no merges": ("tokenizer", _hub_layout(merges=False), r"neither tokenizer\.json nor merges\.txt"),
    "merges alone": ("tokenizer", _hub_layout(merges=True, vocabulary=False), r"nor vocab\.json"),
    "words cut": ("tokenizer", _cut_vocabulary("tokenizer/tokenizer.json"), "cannot load tokenizer of .*words?"),
    "merges cut": ("tokenizer", _words_without_merges, "no merges make 3 of its words, such as 'xx'"),
    "an empty file": ("tokenizer", text("tokenizer/tokenizer.json", "{}"), "cannot load tokenizer of"),
    "half a file": ("tokenizer", text("tokenizer/tokenizer.json", '{"model": '), "cannot load tokenizer of"),
    "no settings": ("tokenizer", lost("tokenizer/tokenizer_config.json"), "model_max_length 10*.* reads 16"),
    "no length": ("tokenizer", settings("tokenizer/tokenizer_config.json", model_max_length="x"), "length 'x'"),
    "no room for words": ("tokenizer", settings("tokenizer/tokenizer_config.json", model_max_length=2), "length 2;"),
    "negative length": ("tokenizer", settings("tokenizer/tokenizer_config.json", model_max_length=-1), "length -1;"),
    "length no number": ("tokenizer", settings("tokenizer/tokenizer_config.json", model_max_length=math.nan), "nan;"),
    "no folder": ("tokenizer_2", lost("tokenizer_2"), "cannot load tokenizer_2 of .* no such folder; restore"),
    "T5 without words": ("tokenizer_3", lost("tokenizer_3/tokenizer.json"), r"tokenizer\.json nor spiece\.model"),
    "T5 cut": ("tokenizer_3", _cut_vocabulary("tokenizer_3/tokenizer.json"), "knows 15 words, .* 30: its vocab"),
}


@pytest.mark.parametrize("name", WORDS_DAMAGED)
def test_a_tokenizer_knows_its_words(name: str, copy_family: CopyFamily) -> None:
    part, damage, problem = WORDS_DAMAGED[name]
    folder = copy_family("sd3" if part == "tokenizer_3" else "sdxl")
    damage(folder)
    with pytest.raises(DamagedWeightsError, match=problem):
        load(folder, part, part.replace("tokenizer", "text_encoder"))


def test_the_hubs_layout_loads(copy_family: CopyFamily) -> None:
    folder = copy_family("sdxl")
    _hub_layout(merges=True)(folder)
    pipeline = load(folder, "tokenizer", "text_encoder")
    assert pipeline.tokenizer("judge").input_ids != pipeline.tokenizer("nurse").input_ids


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lost("tokenizer.json"), "the tokenizer of the CLIP in .*tokenizer.json"),
        (_cut_vocabulary("tokenizer.json"), "the tokenizer of the CLIP"),
        (text("tokenizer.json", ""), "the tokenizer of the CLIP"),
        (text("config.json", "{}"), r"config\.json has no settings"),
    ],
)
def test_a_clip_that_knows_no_words(damage: Damage, problem: str, copy_clip: Path) -> None:
    damage(copy_clip)
    with pytest.raises(DamagedWeightsError, match=problem):
        load_clip(copy_clip)


def test_a_clip_saved_by_transformers_5(copy_clip: Path) -> None:
    document = json.loads((copy_clip / "preprocessor_config.json").read_text())
    (copy_clip / "preprocessor_config.json").unlink()
    (copy_clip / "processor_config.json").write_text(json.dumps({"image_processor": document}))
    ours, theirs = load_clip(copy_clip), load_clip(weights_folder() / "clip")
    assert ours.preprocessing == theirs.preprocessing
    assert torch.equal(embed_texts(ours, ["a judge"]), embed_texts(theirs, ["a judge"]))
    (copy_clip / "processor_config.json").unlink()
    with pytest.raises(MissingWeightsError, match=r"has no preprocessor_config\.json"):
        load_clip(copy_clip)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "it has no file named calibration.json"),
        ("{", "calibration.json is not JSON"),
        ("{}", "calibration.json has no settings"),
        ('{"temperatures": {"face": 1.0}}', "calibration.json has the temperatures"),
        ('{"temperatures": [1.0]}', "calibration.json has the temperatures"),
    ],
)
def test_the_embedded_classifiers_temperatures(text: str | None, problem: str, tmp_path: Path) -> None:
    folder = shutil.copytree(weights_folder() / "classifier", tmp_path / "classifier")
    (folder / "calibration.json").unlink()
    if text is not None:
        (folder / "calibration.json").write_text(text)
    with pytest.raises(DamagedWeightsError, match=f"the embedded classifier .*{problem}"):
        PortraitsFaceClassifier(folder=folder)
