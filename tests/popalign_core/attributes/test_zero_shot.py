"""CLIP zero-shot on tiny checkpoints in the real formats: transformers' folder, open_clip's file."""

import numpy as np
import pytest
import torch

from popalign_core.attributes.zero_shot import SharedSpace, ZeroShotClassifier, load_space
from popalign_core.config import ZeroShotConfig
from popalign_core.errors import ConfigError, InputError, MissingWeightsError

AXES = {"gender": {"male": "a man", "female": "a woman"}, "age": {"young": "a child", "old": "a pensioner"}}
RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, (size, size + 9, 3), np.uint8) for size in (40, 64, 90)]


def settings(path, kind="clip", **more):
    return ZeroShotConfig(kind=kind, path=str(path), axes=AXES, **more)


def test_the_class_is_the_nearest_words_hand_worked():
    """Images at 0, 60 and 90 degrees; words at 0 and 90: with scale 2 the logits are 2 cos."""
    space = SharedSpace(
        lambda pictures: torch.tensor([[1.0, 0.0], [0.5, 0.75**0.5], [0.0, 1.0]])[: len(pictures)],
        lambda texts: torch.tensor([[1.0, 0.0] if " man" in text or "child" in text else [0.0, 1.0] for text in texts]),
        scale=2.0,
    )
    classifier = ZeroShotClassifier("clip", "1", settings("x", templates=("{}", "a photo of {}")), space)
    found = classifier.classify(PICTURES)
    assert classifier.axes == {"gender": ("male", "female"), "age": ("young", "old")}
    male = 1 / (1 + np.exp(2 * np.array([-1.0, 0.75**0.5 - 0.5, 1.0])))
    assert [one["gender"]["male"] for one in found] == pytest.approx(male.tolist(), abs=1e-6)
    assert [one["age"]["young"] for one in found] == pytest.approx(male.tolist(), abs=1e-6)
    assert classifier.classify([]) == []


def test_a_transformers_folder_agrees_with_clip_score(tiny_weights):
    from popalign_core.evaluation.clip_score import clip_scores
    from popalign_core.models.clip import embed_images, embed_texts, load_clip

    folder = tiny_weights / "clip"
    found = ZeroShotClassifier("clip", "1", settings(folder), load_space(settings(folder), "cpu")).classify(PICTURES)
    clip = load_clip(folder)
    images = embed_images(clip, [PICTURES])
    scores = [clip_scores(images, embed_texts(clip, [f"a photo of {word}"] * 3)) for word in AXES["gender"].values()]
    logits = torch.tensor(np.stack(scores, axis=1)) / 100 * float(clip.model.logit_scale.exp())
    expected = logits.softmax(1)[:, 0].tolist()
    assert [one["gender"]["male"] for one in found] == pytest.approx(expected, abs=1e-6)
    assert max(expected) - min(expected) > 1e-4


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(MissingWeightsError, match=r"the CLIP folder .* has no config.json"):
        load_space(settings(tmp_path), "cpu")
    with pytest.raises(ValueError, match=r"templates \['a photo'\] have no \{\}"):
        settings(tmp_path, templates=("a photo",))
    with pytest.raises(ValueError, match="open-clip alone needs one"):
        settings(tmp_path, kind="open-clip")


def test_open_clip_that_does_not_load_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ConfigError, match=r"needs open_clip, which does not load .* pip install 'popalign\[clip\]'"):
        load_space(settings(tmp_path, kind="open-clip", architecture="ViT-S-32-alt"), "cpu")


def test_an_open_clip_checkpoint_is_read_and_run(tmp_path):
    open_clip = pytest.importorskip(
        "open_clip", reason="needs the extra: pip install 'popalign[clip]'", exc_type=Exception
    )
    architecture = "ViT-S-32-alt"
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms(architecture, load_weights=False)
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    asked = settings(tmp_path / "clip.pt", kind="open-clip", architecture=architecture)
    found = ZeroShotClassifier("open", "1", asked, load_space(asked, "cpu")).classify(PICTURES)
    from PIL import Image

    model.eval()
    with torch.no_grad():
        values = torch.stack([preprocess(Image.fromarray(pixels)) for pixels in PICTURES])
        texts = open_clip.get_tokenizer(architecture)([f"a photo of {word}" for word in AXES["gender"].values()])
        logits = model.encode_image(values, normalize=True) @ model.encode_text(texts, normalize=True).T
        expected = (float(model.logit_scale.exp()) * logits).softmax(1)[:, 0].tolist()
    assert [one["gender"]["male"] for one in found] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ConfigError, match="has no architecture 'ViT-Z'"):
        load_space(asked.model_copy(update={"architecture": "ViT-Z"}), "cpu")
    with pytest.raises(MissingWeightsError, match="no open_clip checkpoint at"):
        load_space(asked.model_copy(update={"path": str(tmp_path / "gone.pt")}), "cpu")
    with pytest.raises(InputError, match="is no checkpoint of ViT-M-32-alt"):
        load_space(asked.model_copy(update={"architecture": "ViT-M-32-alt"}), "cpu")
