"""Weights kept as float8: what lies in memory, what is computed with, and who is refused."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from popalign_core.config import ModelConfig, RuntimeConfig, SamplingConfig, TrainingConfig
from popalign_core.errors import ConfigError
from popalign_core.models.denoisers import find_denoiser
from popalign_core.models.embeddings import PromptEmbeddings, embed_prompts
from popalign_core.models.loading import load_pipeline
from popalign_core.sampling.prediction import Captions
from popalign_core.sampling.sampler import Sampler, load_sampler
from popalign_core.training.data import PreferenceData
from popalign_core.training.input_checks import check_inputs

CPU = torch.device("cpu")
FLOAT8 = torch.float8_e4m3fn
STORED = (nn.Conv2d, nn.Linear)
SEEDS = list(range(4))


def n_bytes(module: nn.Module) -> int:
    return sum(weight.nbytes for weight in module.parameters())


def draw(sampler: Sampler, embeddings: PromptEmbeddings) -> Tensor:
    captions = Captions(embeddings.rows([0, 1]), [0, 1, 0, 1], embeddings.rows([2]))
    config = SamplingConfig(n_steps=4, scheduler="euler")
    return torch.cat([latents for _, latents in sampler.sample(captions, SEEDS, config)])


def is_exempt(name: str) -> bool:
    return "norm" in name or name.startswith(("pos_embed.", "proj_out"))


def round_weights(denoiser: Any) -> None:
    """Through float8 and back, but for what is exempt."""
    for name, module in denoiser.named_modules():
        if isinstance(module, STORED) and not is_exempt(name):
            for weight in module.parameters():
                weight.data = weight.data.to(FLOAT8).to(weight.dtype)


# of SD3 a larger part stays as it is: what its norms are made of, and the last projection
@pytest.mark.parametrize(("family", "share"), [("sdxl", 0.3), ("sd15", 0.3), ("sd3", 0.5)])
def test_a_quarter_of_the_memory_and_a_little_of_the_picture(
    load_family: Callable[[str], Any], family_folder: Callable[[str], Path], family: str, share: float
) -> None:
    plain = load_family(family)
    embeddings = embed_prompts(plain, ["a nurse", "a pilot", ""], 4)
    stored = load_sampler(ModelConfig(name=str(family_folder(family)), storage="float8"), RuntimeConfig(), device="cpu")
    denoiser = find_denoiser(stored.pipeline)
    kept = {name for name, weight in denoiser.named_parameters() if weight.dtype == FLOAT8}
    whole = {name for name, _ in denoiser.named_parameters()} - kept
    assert all(is_exempt(name) for name in whole)
    assert 0.25 < n_bytes(denoiser) / n_bytes(find_denoiser(plain)) < share
    assert all(weight.dtype == torch.float32 for weight in stored.pipeline.vae.parameters())
    drawn, expected = draw(stored, embeddings), draw(Sampler(plain, RuntimeConfig()), embeddings)
    assert drawn.dtype == torch.float32
    assert 0 < (drawn - expected).abs().mean() < 0.1 * expected.std()
    # all of the difference is in the weights: what is computed is computed in float32
    round_weights(find_denoiser(plain))
    assert torch.equal(drawn, draw(Sampler(plain, RuntimeConfig()), embeddings))
    # and afterwards they lie there as before
    assert kept == {name for name, weight in denoiser.named_parameters() if weight.dtype == FLOAT8}


def test_half_precision_is_computed_in(tiny_pipeline_folder: Path, tiny_pipeline: Any) -> None:
    embeddings = embed_prompts(tiny_pipeline, ["a nurse", "a pilot", ""], 4)
    model = ModelConfig(name=str(tiny_pipeline_folder), dtype="bfloat16", storage="float8")
    sampler = load_sampler(model, RuntimeConfig(channels_last=False), device="cpu")
    assert sampler.pipeline.unet.dtype == torch.bfloat16
    plain = load_pipeline(model.model_copy(update={"storage": None}), device=CPU)
    round_weights(plain.unet)
    assert torch.equal(draw(sampler, embeddings), draw(Sampler(plain, RuntimeConfig(channels_last=False)), embeddings))


def test_a_lora_is_fused_before(tiny_pipeline_folder: Path, tiny_pipeline: Any, tmp_path: Path) -> None:
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    weight = tiny_pipeline.unet.get_submodule(layer).weight
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn((2, weight.shape[1]), generator=generator), torch.randn((len(weight), 2), generator=generator)
    names = (f"unet.{layer}.lora_A.weight", f"unet.{layer}.lora_B.weight")
    save_file(dict(zip(names, (a, b), strict=True)), tmp_path / "lora.safetensors", metadata={"format": "pt"})
    model = ModelConfig(name=str(tiny_pipeline_folder), lora=str(tmp_path / "lora.safetensors"), storage="float8")
    fused = load_pipeline(model, device=CPU).unet.get_submodule(layer).weight
    assert torch.equal(fused.float(), (weight + b @ a).to(FLOAT8).float())


def test_threads_that_share_weights_take_turns(tiny_pipeline_folder: Path, tiny_pipeline: Any) -> None:
    """One's layer goes back to float8 when it is done; the other must not be in the middle of it."""
    embeddings = embed_prompts(tiny_pipeline, ["a nurse", "a pilot", ""], 4)
    sampler = load_sampler(
        ModelConfig(name=str(tiny_pipeline_folder), storage="float8"), RuntimeConfig(batch_size=2), device="cpu"
    )
    alone = draw(sampler, embeddings)
    with ThreadPoolExecutor(max_workers=3) as pool:
        for together in pool.map(lambda _: draw(sampler, embeddings), range(6)):
            assert torch.equal(together, alone)


def test_projections_are_not_fused_any_more(tiny_pipeline_folder: Path) -> None:
    model = ModelConfig(name=str(tiny_pipeline_folder), storage="float8")
    with pytest.raises(ConfigError, match=r"runtime\.fuse_qkv does not fuse weights that model\.storage keeps as flo"):
        load_sampler(model, RuntimeConfig(fuse_qkv=True), device="cpu")


def test_float8_is_not_trained(tiny_pipeline_folder: Path, data: PreferenceData) -> None:
    config = TrainingConfig(retention=1)
    pipeline = load_pipeline(ModelConfig(name=str(tiny_pipeline_folder)), device=CPU)
    check_inputs(pipeline.unet, data, config)
    stored = load_pipeline(ModelConfig(name=str(tiny_pipeline_folder), storage="float8"), device=CPU)
    with pytest.raises(ConfigError, match=r"kept as float8, too coarse to be trained; leave model\.storage out"):
        check_inputs(stored.unet, data, config)


def test_text_alone_has_no_weights_to_store(tiny_pipeline_folder: Path) -> None:
    parts = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    model = ModelConfig(name=str(tiny_pipeline_folder), storage="float8")
    pipeline = load_pipeline(model, device=CPU, components=parts)
    assert pipeline.unet is None
    assert {weight.dtype for weight in pipeline.text_encoder.parameters()} == {torch.float32}
