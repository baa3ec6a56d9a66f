"""Prompts: what is lost of one that is too long, and that text encoders alone are enough to read them."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from popalign_core.config import ModelConfig
from popalign_core.models.embeddings import TEXT_PARTS, embed_prompts, lost_words
from popalign_core.models.loading import load_pipeline


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
        ("flux-dev", " ".join("a" * 255), ""),
        ("flux-dev", " ".join("a" * 255) + " b C", "C"),
    ],
)
def test_lost_words(family: str, text: str, lost: str, load_family: Callable[[str], Any]) -> None:
    assert lost_words(load_family(family), text) == lost


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "flux-dev"])
def test_what_is_lost_changes_nothing(family: str, load_family: Callable[[str], Any]) -> None:
    """The pipeline itself says so: another ending, the same embeddings."""
    pipeline = load_family(family)
    n_words = {"sd3": 127, "flux-dev": 255}.get(family)
    read = "abcdefg hijklmn" if n_words is None else " ".join("a" * n_words) + " b"
    texts = [f"{read} opq", f"{read} xyz", read]
    assert [lost_words(pipeline, text) for text in texts] == ["opq", "xyz", ""]
    embeds = embed_prompts(pipeline, texts, 3).prompt_embeds
    torch.testing.assert_close(embeds[1], embeds[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(embeds[2], embeds[0], rtol=0, atol=1e-5)
    shorter = embed_prompts(pipeline, [read.rpartition(" ")[0]] * 3, 3).prompt_embeds
    assert (shorter[0] - embeds[0]).abs().max() > 1e-2  # a word that is read counts


def test_a_prompt_past_the_token_limit_is_warned_of_with_the_words_it_loses(
    load_family: Callable[[str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="popalign_core"):
        embed_prompts(load_family("sd15"), ["abcdefg hijklmn Opq xyz", "short"], 2)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("popalign_core")]
    assert ours == [
        "prompt 'abcdefg hijklmn Opq xyz' is longer than the text encoders read and was truncated; lost: 'Opq xyz'"
    ]


@pytest.mark.parametrize("name", ["sdxl", "sd15", "sd3", "sd3-without-t5", "flux-dev"])
def test_text_encoders_alone_give_the_same_embeddings(
    family_folder: Callable[[str], Path], load_family: Callable[[str], Any], name: str
) -> None:
    model = ModelConfig(name=str(family_folder(name)))
    alone = load_pipeline(model, device=torch.device("cpu"), components=TEXT_PARTS)
    assert alone.vae is None
    denoiser = getattr(alone, "unet", None) or getattr(alone, "transformer", None)
    # what is left of SD3's, without its T5, holds no weights
    assert denoiser is None or all(weight.is_meta for weight in denoiser.parameters())
    found, expected = (embed_prompts(pipeline, ["a nurse", ""], 2) for pipeline in (alone, load_family(name)))
    assert torch.equal(found.prompt_embeds, expected.prompt_embeds)
    assert torch.equal(found.pooled_prompt_embeds, expected.pooled_prompt_embeds)
