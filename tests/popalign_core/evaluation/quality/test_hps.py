"""HPS v2 without its package: the same numbers, from one reading of the checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scorer_files import (
    DIM,
    N_PATCHES,
    PATCH,
    clip_tokenizer,
    open_clip_image,
    open_clip_state,
    open_clip_text,
    pictures,
    published_tokenizer,
)
from torch.nn import functional as F

from popalign_core.errors import InputError, MissingWeightsError
from popalign_core.evaluation.quality import scorer_files
from popalign_core.evaluation.quality.hps import PaddedPreprocessing, load_hps
from popalign_core.evaluation.quality.scorer import CosineScorer, Embedder

SIDE = PATCH * round(N_PATCHES**0.5)
TEXTS = ["a cat", "b", "a dog in the snow"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hps")
    torch.save({"state_dict": open_clip_state(), "epoch": 3}, folder / "HPS_v2_compressed.pt")
    clip_tokenizer(folder / "tokenizer")
    return folder


def load(files: Path):
    return load_hps(files / "HPS_v2_compressed.pt", files / "tokenizer")


def by_hand(picture: np.ndarray) -> torch.Tensor:
    """hpsv2's steps: to [0, 1], the longest side to SIDE, black beside it, CLIP's mean and deviation."""
    values = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
    height, width = (round(side * SIDE / max(picture.shape[:2])) for side in picture.shape[:2])
    values = F.interpolate(values[None], (height, width), mode="bicubic", antialias=True)[0]
    whole = torch.zeros(3, SIDE, SIDE)
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    whole[:, top : top + height, left : left + width] = values
    return (whole - torch.tensor(scorer_files.CLIP_MEAN)[:, None, None]) / torch.tensor(scorer_files.CLIP_STD)[
        :, None, None
    ]


def tokens_of(text: str) -> torch.Tensor:
    """Letters, the last of a word marked; begin 52, end 53, then nothing, as open_clip pads: 0."""
    letters = [ord(x) - 97 + (26 if i == len(word) - 1 else 0) for word in text.split() for i, x in enumerate(word)]
    return torch.tensor([52, *letters, 53] + [0] * (18 - len(letters)))


@pytest.mark.parametrize("shape", [(70, 50), (31, 90), (SIDE, SIDE), (20, 24), (200, 200), (3, 300)])
def test_a_picture_is_padded_not_cropped(shape: tuple[int, int]) -> None:
    picture = pictures(1, *shape)[0]
    torch.testing.assert_close(PaddedPreprocessing(SIDE).apply_all([picture])[0], by_hand(picture), rtol=0, atol=1e-6)


def test_the_score_is_a_hundred_cosines_of_the_published_network(files: Path) -> None:
    state, shown = open_clip_state(), [*pictures(2), *pictures(1, 30, 90)]
    scorer = CosineScorer("hps_v2.0", "1", "100 x cosine", Embedder(load(files)), 100.0)
    images = open_clip_image(state, torch.stack([by_hand(picture) for picture in shown]))
    texts = open_clip_text(state, torch.stack([tokens_of(text) for text in TEXTS]))
    expected = 100 * (images * texts).sum(1).double().numpy()
    np.testing.assert_allclose(scorer.score(shown, TEXTS), expected, rtol=0, atol=1e-3)
    assert np.ptp(expected) > 1  # the three differ, so that an exchange would be seen
    one_by_one = [scorer.score([picture], [text])[0] for picture, text in zip(shown, TEXTS, strict=True)]
    np.testing.assert_allclose(one_by_one, expected, rtol=0, atol=1e-3)


def test_the_checkpoint_is_read_once(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The public call reads gigabytes again for every call (PITFALLS 17)."""
    reads, read = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: reads.append(args[0]) or read(*args, **options))
    scorer = CosineScorer("hps_v2.0", "1", "100 x cosine", Embedder(load(files)), 100.0)
    for _ in range(3):
        scorer.score(pictures(2), TEXTS[:2])
    assert reads == [files / "HPS_v2_compressed.pt"]


def test_entities_are_read_as_open_clip_does(files: Path) -> None:
    space = load(files)
    torch.testing.assert_close(space.embed_texts(["a &#99;at"]), space.embed_texts(["a cat"]))


def test_what_is_no_checkpoint_is_refused(files: Path, tmp_path: Path) -> None:
    whole = (files / "HPS_v2_compressed.pt").read_bytes()
    bad = tmp_path / "HPS_v2_compressed.pt"
    with pytest.raises(MissingWeightsError, match=r"nothing at .*hf download xswu/HPSv2 HPS_v2_compressed.pt --local"):
        load_hps(bad, files / "tokenizer")
    bad.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is not a torch checkpoint, or is truncated"):
        load_hps(bad, files / "tokenizer")
    torch.save([1, 2], bad)
    with pytest.raises(InputError, match="holds no state dict but list"):
        load_hps(bad, files / "tokenizer")
    state = open_clip_state()
    without = {name: tensor for name, tensor in state.items() if name != "visual.proj"}
    torch.save({"state_dict": without | {"head.weight": torch.zeros(2)}}, bad)
    with pytest.raises(InputError, match=r"lacks 1 tensors \['visual.proj'\] and has 1 others \['head.weight'\]"):
        load_hps(bad, files / "tokenizer")
    without = {name: tensor for name, tensor in state.items() if name != "transformer.resblocks.1.mlp.c_fc.weight"}
    torch.save({"state_dict": without}, bad)
    with pytest.raises(InputError, match=r"lacks 1 tensors \['text_model.encoder.layers.1.mlp.fc1.weight'\]"):
        load_hps(bad, files / "tokenizer")


def test_a_tokenizer_of_another_model_is_refused(files: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match=r"nothing at .*bert-base-uncased"):
        load_hps(files / "HPS_v2_compressed.pt", tmp_path / "bert-base-uncased")
    torch.save({"state_dict": open_clip_state(n_tokens=60)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"knows 54 tokens, .*other.pt 60; give that of CLIP"):
        load_hps(tmp_path / "other.pt", files / "tokenizer")


def test_a_damaged_network_is_refused_by_its_scores(files: Path, tmp_path: Path) -> None:
    state = open_clip_state()
    state["visual.proj"] = torch.full_like(state["visual.proj"], float("nan"))
    torch.save({"state_dict": state}, tmp_path / "nan.pt")
    space = load_hps(tmp_path / "nan.pt", files / "tokenizer")
    with pytest.raises(InputError, match="scorer 'hps' gave 2 of 2 images no finite score"):
        CosineScorer("hps", "1", "100 x cosine", Embedder(space), 100.0).score(pictures(2), TEXTS[:2])


def test_it_is_what_open_clip_gives(tmp_path: Path) -> None:
    """With open_clip's own network and tokenizer, where the extra is installed."""
    open_clip = pytest.importorskip(
        "open_clip", reason="needs the extra: pip install 'popalign[clip]'", exc_type=Exception
    )
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=2, width=64, head_width=4, patch_size=14, image_size=56)
    model = CLIP(DIM, vision, CLIPTextCfg(width=64, heads=16, layers=2)).eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "HPS_v2_compressed.pt")
    published_tokenizer(tmp_path / "tokenizer")
    space = load(tmp_path)
    texts = ["a photo of a doctor", "A  Nurse, 30 years old! it's", "x " * 200, "naïve café", "fish &amp; chips"]
    with torch.no_grad():
        expected = model.encode_text(open_clip.get_tokenizer("ViT-H-14")(texts), normalize=True)
        torch.testing.assert_close(space.embed_texts(texts), expected, rtol=0, atol=1e-6)
        seen = model.encode_image(PaddedPreprocessing(56).apply_all(pictures(3)), normalize=True)
        torch.testing.assert_close(space.embed_images(pictures(3)), seen, rtol=0, atol=1e-6)
