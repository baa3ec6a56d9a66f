"""Training every model family on latents it drew itself, and what training leaves."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor
from trained_folders import save_training, write_linked
from training_runs import changed, draw, errors, run, values

from popalign_core.config import ModelConfig, SamplingConfig
from popalign_core.errors import ConfigError, InputError
from popalign_core.models.denoisers import family_of, find_denoiser
from popalign_core.models.embeddings import PromptEmbeddings, embed_prompts
from popalign_core.models.loading import load_pipeline
from popalign_core.sampling.engine import sample_images
from popalign_core.training.batch import Batch
from popalign_core.training.data import PreferenceData
from popalign_core.training.losses import popalign_loss
from popalign_core.training.model_folder import save_lora
from popalign_core.training.objective import forward
from popalign_core.training.trainable_weights import choose_weights, trained_weights

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' Euler

TURBO = {"timesteps": (249, 499, 749, 999)}
FAMILIES: dict[str, dict[str, Any]] = {
    "sdxl": {},
    "sdxl-v": {},
    "sdxl-turbo": TURBO,
    "sd15": {},
    "sd3": {},
    "flux-dev": {},
}
STOCK = {
    "sdxl": StableDiffusionXLPipeline,
    "sd15": StableDiffusionPipeline,
    "sd3": StableDiffusion3Pipeline,
    "flux-dev": FluxPipeline,
}
N_TOKENS = 24
"""Of a caption: 16 of CLIP, and with SD 3 a few of T5, which would be 256 or 512."""
SHORT = {"n_steps": 2, "n_pairs": 2, "n_warmup_steps": 0, "learning_rate": 0.01}


def sample_data(pipeline: Any) -> PreferenceData:
    """Four latents for each of two prompts, drawn by the model; preferred is the half that leans one way."""
    embeds = embed_prompts(pipeline, ["a nurse", "a pilot", ""], batch_size=3)
    tokens = embeds.prompt_embeds[:, :N_TOKENS]
    prompts = PromptEmbeddings(tokens[:2], embeds.pooled_prompt_embeds[:2])
    empty = PromptEmbeddings(tokens[2:], embeds.pooled_prompt_embeds[2:])
    rows = torch.tensor([0, 1]).repeat_interleave(4)
    config = SamplingConfig(n_steps=2, scheduler="euler", guidance_scale=1.0)
    _, latents = sample_images(pipeline, prompts, empty, rows.tolist(), range(8), config)
    # along the first principal component, which the sides differ most in
    lean = torch.linalg.svd((latents - latents.mean(0)).flatten(1), full_matrices=False)[0][:, 0]
    return PreferenceData(
        latents=latents,
        preferred=torch.cat([half > half.median() for half in lean.split(4)]),
        prompt_index=rows,
        set_index=rows,
        prompt_embeds=prompts.prompt_embeds,
        pooled_prompt_embeds=prompts.pooled_prompt_embeds,
        empty_prompt_embeds=empty.prompt_embeds,
        empty_pooled=empty.pooled_prompt_embeds,
        retained_latents=latents[:0],
        retained_prompt_index=rows[:0],
        retained_generic=torch.zeros(0, dtype=torch.bool),
    )


def predictions(pipeline: Any, batch: Batch) -> Tensor:
    """[S, C, h, w]."""
    model = find_denoiser(pipeline)
    with torch.no_grad():
        return forward(model, family_of(model), batch)


@pytest.mark.parametrize(
    ("lora_rank", "learning_rate", "n_pairs", "reached"), [(0, 1e-3, 8, 0.5), (2, 3e-2, 16, 0.66)], ids=["full", "lora"]
)
@pytest.mark.parametrize("name", FAMILIES)
def test_learns_the_preference(
    load_family: Callable[[str], Any],
    tmp_path: Path,
    name: str,
    lora_rank: int,
    learning_rate: float,
    n_pairs: int,
    reached: float,
) -> None:
    pipeline, base = load_family(name), load_family(name)
    data = sample_data(pipeline)
    options = {"lora_rank": lora_rank, **FAMILIES[name]}
    log = run(
        pipeline,
        data,
        tmp_path,
        n_steps=12,
        n_pairs=n_pairs,
        learning_rate=learning_rate,
        checkpoint_every=12,
        **options,
    )
    # policy = reference at first, to the last bit: log 2
    assert values(log, "loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    for side in ("preferred", "dispreferred"):
        assert values(log, f"policy_mse_{side}")[0] == values(log, f"reference_mse_{side}")[0]
    batch = draw(pipeline, data, n_pairs=32, **options)
    losses = popalign_loss(errors(pipeline, batch), errors(base, batch), batch.preferred, beta=20, normaliser=0.0)
    assert float(losses.mean()) < reached


@pytest.mark.parametrize("objective", ["population-policy", "dgpo", "ratio-matching"])
@pytest.mark.parametrize("name", FAMILIES)
def test_learns_what_is_wanted_of_each_sample(
    load_family: Callable[[str], Any], tmp_path: Path, name: str, objective: str
) -> None:
    """By advantages or log-ratios, flow matching included: after a few steps g is larger where more is wanted."""
    pipeline, base = load_family(name), load_family(name)
    data = sample_data(pipeline)
    wanted = torch.where(data.preferred, 0.5, -0.5)
    data = replace(data, advantages=wanted if objective != "ratio-matching" else None, log_ratios=wanted)
    options = {"objective": objective, "pairs_per_set": 2, **FAMILIES[name]}
    run(pipeline, data, tmp_path, n_steps=8, n_pairs=8, learning_rate=1e-3, checkpoint_every=8, **options)
    batch = draw(pipeline, data, n_pairs=32, **options)
    g = errors(base, batch) - errors(pipeline, batch)
    assert float(g[batch.wanted > 0].mean() - g[batch.wanted < 0].mean()) > 0


@pytest.mark.parametrize("name", STOCK)
def test_conditioning_leaves_the_other_weights_alone(
    load_family: Callable[[str], Any], tmp_path: Path, name: str
) -> None:
    pipeline, base = load_family(name), find_denoiser(load_family(name))
    run(pipeline, sample_data(pipeline), tmp_path, **SHORT, trained_weights="conditioning")
    before = base.state_dict()
    after = find_denoiser(pipeline).state_dict()
    moved = {key for key, weight in after.items() if not torch.equal(weight, before[key])}
    joint = ("context_embedder.", "text_embedder.", ".add_q_proj.", ".add_k_proj.", ".add_v_proj.", ".to_add_out.")
    parts = {
        "sdxl": (".attn2.to_q.", ".attn2.to_k.", ".attn2.to_v.", ".attn2.to_out.", "add_embedding."),
        "sd15": (".attn2.to_q.", ".attn2.to_k.", ".attn2.to_v.", ".attn2.to_out."),
        "sd3": joint,
        "flux-dev": joint,
    }[name]
    assert [key for key in moved if not any(part in key for part in parts)] == []
    assert [part for part in parts if not any(part in key for key in moved)] == []


@pytest.mark.parametrize("name", STOCK)
def test_saved_lora_is_the_trained_one(load_family: Callable[[str], Any], tmp_path: Path, name: str) -> None:
    pipeline, loaded = load_family(name), load_family(name)
    data = sample_data(pipeline)
    run(pipeline, data, tmp_path / "run", **SHORT, lora_rank=2)
    batch = draw(loaded, data)
    base, trained = predictions(loaded, batch), predictions(pipeline, batch)
    save_lora(find_denoiser(pipeline), tmp_path / "lora")
    assert [path.name for path in (tmp_path / "lora").iterdir()] == ["pytorch_lora_weights.safetensors"]
    loaded.load_lora_weights(tmp_path / "lora")
    torch.testing.assert_close(predictions(loaded, batch), trained, rtol=0, atol=1e-5)
    assert float((trained - base).abs().max()) > 1e-2
    # saving has not merged it
    torch.testing.assert_close(predictions(pipeline, batch), trained, rtol=0, atol=0)
    loaded.unload_lora_weights()
    torch.testing.assert_close(predictions(loaded, batch), base, rtol=0, atol=1e-5)


@pytest.mark.parametrize("lora_rank", [0, 2])
@pytest.mark.parametrize("name", STOCK)
def test_saved_model_is_the_trained_one(
    load_family: Callable[[str], Any],
    family_folder: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    lora_rank: int,
) -> None:
    pipeline = load_family(name)
    data = sample_data(pipeline)
    run(pipeline, data, tmp_path / "run", **SHORT, lora_rank=lora_rank)
    batch = draw(pipeline, data)
    trained = predictions(pipeline, batch)
    model, base = save_training(pipeline, family_folder(name), tmp_path / "trained"), load_family(name)
    saved = STOCK[name].from_pretrained(write_linked(model, tmp_path / "model"))
    torch.testing.assert_close(predictions(saved, batch), trained, rtol=0, atol=1e-5)
    loaded = load_pipeline(ModelConfig(), device=torch.device("cpu"), trained=model)
    assert torch.equal(predictions(loaded, batch), predictions(saved, batch))
    assert find_denoiser(saved).state_dict().keys() == find_denoiser(base).state_dict().keys()
    assert float((trained - predictions(base, batch)).abs().max()) > 1e-2


@pytest.mark.parametrize(("name", "counts"), [("flux-dev", True), ("flux-schnell", False)])
def test_the_guidance_scale_counts_where_it_is_read(load_family: Callable[[str], Any], name: str, counts: bool) -> None:
    pipeline = load_family(name)
    data = replace(sample_data(pipeline), guidance_scale=3.5)
    batch = draw(pipeline, data, n_pairs=4)
    assert batch.guidance.tolist() == [3.5] * 8
    assert batch.part(1, 2).guidance.tolist() == [3.5] * 4
    other = draw(pipeline, replace(data, guidance_scale=1.0), n_pairs=4)
    assert torch.equal(batch.noisy_latents, other.noisy_latents)
    difference = float((predictions(pipeline, batch) - predictions(pipeline, other)).abs().max())
    assert difference > 1e-2 if counts else difference == 0


def test_latents_that_patches_do_not_fill_are_refused(load_family: Callable[[str], Any], tmp_path: Path) -> None:
    pipeline = load_family("flux-dev")
    data = sample_data(pipeline)
    odd = replace(data, latents=data.latents[..., :7], retained_latents=data.retained_latents[..., :7])
    with pytest.raises(InputError, match="the latents are 8 x 7, the model reads patches of 2 x 2"):
        run(pipeline, odd, tmp_path)


def test_a_model_without_t5_is_saved_and_loaded(
    load_family: Callable[[str], Any], family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    pipeline = load_family("sd3-without-t5")
    write_linked(save_training(pipeline, family_folder("sd3-without-t5"), tmp_path / "trained"), tmp_path / "model")
    # as diffusers' documentation has it for a Stable Diffusion 3 without T5
    saved = StableDiffusion3Pipeline.from_pretrained(tmp_path / "model", text_encoder_3=None, tokenizer_3=None)
    expected = pipeline.transformer.state_dict()
    assert all(torch.equal(weight, expected[key]) for key, weight in saved.transformer.state_dict().items())


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("sdxl", ("attn2.to_k", "attn2.to_v")),
        ("sd15", ("to_q",)),
        ("sd3", ("add_k_proj", "ff.net.2")),
        ("flux-dev", ("add_k_proj", "proj_mlp")),
    ],
)
def test_adapters_go_to_the_targets_only(
    load_family: Callable[[str], Any], name: str, targets: tuple[str, ...]
) -> None:
    model = find_denoiser(load_family(name))
    expected = {key for key, _ in model.named_modules() if key.endswith(tuple(f".{target}" for target in targets))}
    choose_weights(model, changed(lora_rank=2, lora_targets=targets))
    assert {key.split(".lora_")[0] for key in trained_weights(model)} == expected
    assert len(expected) >= 2


@pytest.mark.parametrize("name", STOCK)
def test_targets_that_match_nothing_are_named(load_family: Callable[[str], Any], name: str) -> None:
    model = find_denoiser(load_family(name))
    with pytest.raises(ConfigError, match=r"training\.lora_targets: no module's name ends in \['to_z'\]"):
        choose_weights(model, changed(lora_rank=2, lora_targets=("to_k", "to_z")))
