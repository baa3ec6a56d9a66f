"""One checkpoint, three programs: hpsv2's own scoring, open_clip and our scorer, where the extra `hps` is installed."""

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scorer_files import pictures, published_tokenizer
from torch.nn import functional

from popalign_core.evaluation.quality.hps import PaddedPreprocessing, load_hps

pytestmark = pytest.mark.slow

FIX = "the extra: `make setup-hps`, or the lines of docs/install.md"
SIDE, WIDTH, DIM = 56, 64, 32
SMALL = {
    "embed_dim": DIM,
    "vision_cfg": {"image_size": SIDE, "layers": 2, "width": WIDTH, "head_width": WIDTH // 16, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 16, "layers": 2},
}
"""Of ViT-H-14 the heads and the patches."""
TEXTS = ("a photo of a doctor", "A  Nurse, 30 years old! it's", "fish &amp; chips", "x " * 200)


@pytest.fixture
def scoring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """hpsv2's module, its ViT-H-14 small and its folders here; the filters of warnings that it sets go with it."""
    monkeypatch.setenv("HPS_ROOT", str(tmp_path / "hps"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clint has invalid escapes, timm says that its names moved
        scoring = pytest.importorskip("hpsv2.img_score", reason=f"needs {FIX}", exc_type=Exception)
        factory = sys.modules["hpsv2.src.open_clip.factory"]
        monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-H-14", SMALL)
        monkeypatch.setattr(scoring, "model_dict", {})
        create = scoring.create_model_and_transforms
        # it downloads the CLIP that HPS started from, to put the checkpoint's weights in place of those at once
        monkeypatch.setattr(scoring, "create_model_and_transforms", lambda name, tag, **how: create(name, None, **how))
        yield scoring


@pytest.fixture
def open_clip() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("open_clip", reason=f"needs {FIX}", exc_type=Exception)


@pytest.fixture
def checkpoint(open_clip: Any, tmp_path: Path) -> Path:
    """A small network of open_clip, in HPS's form, and the published tokenizer beside it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.model.CLIP(
            DIM, open_clip.CLIPVisionCfg(**SMALL["vision_cfg"]), open_clip.CLIPTextCfg(**SMALL["text_cfg"])
        )
    published_tokenizer(tmp_path / "tokenizer")
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "HPS_v2_compressed.pt")
    return tmp_path / "HPS_v2_compressed.pt"


def test_hpsv2_open_clip_and_our_scorer_agree(scoring: Any, open_clip: Any, checkpoint: Path) -> None:
    shown = [*pictures(2), *pictures(1, 30, 90), *pictures(1, SIDE, SIDE)]
    theirs = [
        float(scoring.score(Image.fromarray(picture), text, cp=str(checkpoint))[0])
        for picture, text in zip(shown, TEXTS, strict=True)
    ]
    space = load_hps(checkpoint, checkpoint.with_name("tokenizer"))
    ours = functional.cosine_similarity(space.embed_images(shown), space.embed_texts(TEXTS))
    assert np.ptp(theirs) > 0.01  # an exchange of two would be seen
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=2e-5)

    model = open_clip.model.CLIP(
        DIM, open_clip.CLIPVisionCfg(**SMALL["vision_cfg"]), open_clip.CLIPTextCfg(**SMALL["text_cfg"])
    ).eval()
    model.load_state_dict(torch.load(checkpoint)["state_dict"])
    with torch.no_grad():
        images = model.encode_image(PaddedPreprocessing(SIDE).apply_all(shown), normalize=True)
        texts = model.encode_text(open_clip.get_tokenizer("ViT-H-14")(list(TEXTS)), normalize=True)
    np.testing.assert_allclose((images * texts).sum(1).numpy(), theirs, rtol=0, atol=2e-5)


def test_each_goes_on_in_a_process_where_the_others_are_loaded(scoring: Any, open_clip: Any) -> None:
    """torchvision is there with all of them: what imports it must still do so, whatever its build."""
    import torchvision.ops
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPImageProcessor

    processor, pipeline = CLIPImageProcessor(), StableDiffusionXLPipeline
    assert processor(pictures(1), return_tensors="pt")["pixel_values"].shape == (1, 3, 224, 224)
    assert (pipeline.__name__, scoring.score.__module__) == ("StableDiffusionXLPipeline", "hpsv2.img_score")
    resized = torchvision.transforms.functional.resize(torch.zeros(3, 8, 8), [4, 4])
    assert tuple(resized.shape) == (3, 4, 4)
