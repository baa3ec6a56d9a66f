"""Semantic guidance against a value worked by hand, and against diffusers' own pipeline for it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from popalign_core.config import FairDiffusionConfig, SamplingConfig
from popalign_core.errors import InputError
from popalign_core.models.embeddings import PromptEmbeddings, embed_prompts
from popalign_core.sampling.edits import Edits, SemanticGuidance
from popalign_core.sampling.engine import initial_noise, sample_images
from popalign_core.sampling.schedulers import make_scheduler

TEXTS = ["a nurse", "a pilot", "male person", "female person", ""]


def test_the_term_by_hand() -> None:
    config = FairDiffusionConfig(scale=2.0, threshold=0.5, warmup=0.5, momentum_scale=0.5, momentum_beta=0.75)
    steer = SemanticGuidance(torch.tensor([[1.0, -1.0]]), config, n_steps=2)
    unguided = torch.ones((1, 1, 1, 4))
    concepts = torch.tensor([[[[[2.0, 3.0, 4.0, 5.0]]], [[[1.0, 1.0, 1.0, 2.0]]]]])
    # psi: 2 (1, 2, 3, 4) = (2, 4, 6, 8), of which the upper half stays: (0, 0, 6, 8); away: -2 (0, 0, 0, 1), of which
    # all at or above the median 0 stay: (0, 0, 0, -2); together (0, 0, 6, 6)
    assert steer(concepts, unguided, 0).flatten().tolist() == [0.0] * 4  # it warms up
    # momentum is then .25 (0, 0, 6, 6) = (0, 0, 1.5, 1.5), half of which is added
    assert steer(concepts, unguided, 1).flatten().tolist() == [0.0, 0.0, 6.75, 6.75]


def make_edits(embeddings: PromptEmbeddings, direction: list[list[float]]) -> Edits:
    """Each image by "male person" and "female person"."""
    return Edits(embeddings.rows([2, 3]), torch.tensor([[0, 1]] * len(direction)), torch.tensor(direction))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:__array__ implementation:DeprecationWarning")
def test_samples_equal_diffusers_semantic_pipeline(load_family: Callable[[str], Any]) -> None:
    from diffusers import SemanticStableDiffusionPipeline

    pipeline = load_family("sd15")
    fair = FairDiffusionConfig(scale=3.0, threshold=0.8, warmup=0.34, momentum_scale=0.3, momentum_beta=0.6)
    config = SamplingConfig(n_steps=6, guidance_scale=4.0, scheduler="ddim", fair_diffusion=fair)
    embeddings = embed_prompts(pipeline, TEXTS, 8)
    edits = make_edits(embeddings, [[-1.0, 1.0], [-1.0, 1.0]])
    _, latents = sample_images(
        pipeline, embeddings.rows([0, 1]), embeddings.rows([4]), [0, 1], [3, 4], config, edits=edits
    )
    names = ("vae", "text_encoder", "tokenizer", "unet")
    stock = SemanticStableDiffusionPipeline(
        **{name: getattr(pipeline, name) for name in names},
        scheduler=make_scheduler(pipeline.scheduler, "ddim"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    stock.set_progress_bar_config(disable=True)
    expected = stock(
        TEXTS[:2],
        height=64,
        width=64,
        num_inference_steps=6,
        guidance_scale=4.0,
        latents=initial_noise(pipeline, [3, 4], config),
        editing_prompt=["male person", "female person"],
        reverse_editing_direction=[True, False],
        edit_guidance_scale=[3.0, 3.0],
        edit_warmup_steps=[2, 2],
        edit_threshold=[0.8, 0.8],
        edit_weights=[1.0, 1.0],
        edit_momentum_scale=0.3,
        edit_mom_beta=0.6,
        output_type="latent",
    ).images
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)


def test_an_image_without_edits_is_plain_and_each_one_is_its_own(tiny_pipeline: Any) -> None:
    config = SamplingConfig(n_steps=5, fair_diffusion=FairDiffusionConfig(threshold=0.5))
    plain = config.model_copy(update={"fair_diffusion": None})
    embeddings = embed_prompts(tiny_pipeline, TEXTS, 8)
    prompts, empty = embeddings.rows([0, 1]), embeddings.rows([4])
    direction = [[0.0, 0.0], [1.0, -1.0], [-1.0, 1.0]]
    edits = make_edits(embeddings, direction)
    latents = sample_images(tiny_pipeline, prompts, empty, [0, 0, 1], [7, 8, 9], config, edits=edits)[1]
    unedited = sample_images(tiny_pipeline, prompts, empty, [0, 0, 1], [7, 8, 9], plain)[1]
    torch.testing.assert_close(latents[0], unedited[0], rtol=0, atol=1e-5)
    assert float((latents[1] - unedited[1]).abs().max()) > 0.1
    for row, prompt in ((1, 0), (2, 1)):
        alone = sample_images(tiny_pipeline, prompts, empty, [prompt], [7 + row], config, edits=edits.rows([row]))[1]
        torch.testing.assert_close(alone[0], latents[row], rtol=0, atol=1e-4)


def test_no_edit_takes_no_forward(tiny_pipeline: Any) -> None:
    config = SamplingConfig(n_steps=3, fair_diffusion=FairDiffusionConfig())
    embeddings = embed_prompts(tiny_pipeline, TEXTS, 8)
    seen: list[int] = []
    tiny_pipeline.unet.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    for direction in ([[0.0, 0.0]], [[1.0, -1.0]]):
        edits = make_edits(embeddings, direction)
        sample_images(tiny_pipeline, embeddings.rows([0]), embeddings.rows([4]), [0], [1], config, edits=edits)
    assert seen == [2, 2, 2] + [2, 2] * 3


def test_edits_of_another_shape_are_refused(tiny_pipeline: Any) -> None:
    embeddings = embed_prompts(tiny_pipeline, TEXTS, 8)
    with pytest.raises(InputError, match=r"got \(1, 2\) and \(1, 3\)"):
        Edits(embeddings, torch.zeros((1, 2), dtype=torch.int64), torch.zeros((1, 3)))
