import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from trained_folders import save_training, write_linked
from training_runs import draw, errors, run, values

from popalign_core.errors import ConfigError, InputError
from popalign_core.training import objective, trainer
from popalign_core.training.checkpoint import checkpoint_path
from popalign_core.training.data import PreferenceData

LOG_NAMES = {
    "g_preferred",
    "g_dispreferred",
    "g_spread",
    "loss",
    "implicit_accuracy",
    "policy_mse_preferred",
    "policy_mse_dispreferred",
    "reference_mse_preferred",
    "reference_mse_dispreferred",
    "grad_norm",
    "learning_rate",
    "normaliser",
}


def load(folder: Path) -> Any:
    return StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)


def test_learns_the_preference(
    tiny_pipeline: Any, make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path
) -> None:
    log = run(tiny_pipeline, data, tmp_path, n_steps=16, learning_rate=2e-3, checkpoint_every=16)
    assert {row["name"] for row in log} == LOG_NAMES
    assert [row["step"] for row in log if row["name"] == "loss"] == list(range(1, 17))
    loss, accuracy = values(log, "loss"), values(log, "implicit_accuracy")
    # policy = reference at first: log 2, every pair a tie
    assert loss[0] == pytest.approx(math.log(2), abs=1e-6)
    assert accuracy[0] == 0.5
    assert values(log, "policy_mse_preferred")[0] == values(log, "reference_mse_preferred")[0]
    # on 64 fixed pairs the policy now does better on the preferred side, relative to the base
    batch = draw(tiny_pipeline, data)
    won, lost = (errors(make_pipeline(), batch) - errors(tiny_pipeline, batch)).chunk(2)
    assert float((won > lost).float().mean()) > 0.8


def test_warms_up_then_stays(tiny_pipeline: Any, data: PreferenceData, tmp_path: Path) -> None:
    log = run(tiny_pipeline, data, tmp_path, n_warmup_steps=4, n_pairs=1)
    assert values(log, "learning_rate") == pytest.approx([0.00025, 0.0005, 0.00075, 0.001, 0.001, 0.001])


def test_linear_schedule_falls_to_zero(tiny_pipeline: Any, data: PreferenceData, tmp_path: Path) -> None:
    log = run(tiny_pipeline, data, tmp_path, learning_rate_schedule="linear", n_warmup_steps=0)
    assert values(log, "learning_rate") == pytest.approx([1e-3 * (1 - step / 6) for step in range(6)])


def test_sft_trains_without_a_reference(
    tiny_pipeline: Any, data: PreferenceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # PITFALLS 10: a baseline whose policy carries the reference's weights never moves
    monkeypatch.setattr(trainer, "frozen_copy", None)
    monkeypatch.setattr(objective, "reference_weights", None)
    before = {name: weight.clone() for name, weight in tiny_pipeline.unet.state_dict().items()}
    batch = draw(tiny_pipeline, data, objective="sft")
    base = errors(tiny_pipeline, batch).mean()
    log = run(tiny_pipeline, data, tmp_path, objective="sft", n_steps=10, learning_rate=2e-3, checkpoint_every=10)
    assert float(errors(tiny_pipeline, batch).mean()) < 0.8 * float(base)
    assert {row["name"] for row in log} == {"loss", "policy_mse_preferred", "grad_norm", "learning_rate"}
    after = tiny_pipeline.unet.state_dict()
    still = [name for name in before if torch.equal(before[name], after[name])]
    assert still == []


def test_one_pair_a_step_makes_popalign_diffusion_dpo(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path
) -> None:
    population, pairwise, zero = (make_pipeline() for _ in range(3))
    log = run(population, data, tmp_path / "a", n_pairs=1, normaliser="batch")
    expected = run(pairwise, data, tmp_path / "b", n_pairs=1, objective="diffusion-dpo")
    assert values(log, "loss") == pytest.approx(values(expected, "loss"), rel=1e-4)
    assert values(log, "grad_norm") == pytest.approx(values(expected, "grad_norm"), rel=1e-3)
    # a run without normaliser starts alike and goes elsewhere
    other = run(zero, data, tmp_path / "c", n_pairs=1, normaliser="zero")
    assert values(other, "loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert values(other, "loss")[3] != pytest.approx(values(expected, "loss")[3], rel=1e-4)


def test_sft_leaves_the_reference_steadily(
    tiny_pipeline: Any, make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path
) -> None:
    start = make_pipeline().unet.state_dict()
    distances: list[float] = []

    def measure(step: int, terms: dict[str, float]) -> None:
        with torch.no_grad():
            moved = ((weight - start[name]).square().sum() for name, weight in tiny_pipeline.unet.named_parameters())
            distances.append(float(torch.stack(list(moved)).sum().sqrt()))

    settings = {"objective": "sft", "n_steps": 50, "learning_rate": 1e-4, "n_warmup_steps": 0, "checkpoint_every": 50}
    run(tiny_pipeline, data, tmp_path, measure, **settings)
    assert distances[0] > 0
    assert all(after > before for before, after in itertools.pairwise(distances))


def test_conditioning_leaves_the_other_weights_alone(
    tiny_pipeline: Any, make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path
) -> None:
    run(tiny_pipeline, data, tmp_path, trained_weights="conditioning")
    before = make_pipeline().unet.state_dict()
    moved = {name for name, weight in tiny_pipeline.unet.state_dict().items() if not torch.equal(weight, before[name])}
    reads_captions = {name for name in before if ".attn2." in name or name.startswith("add_embedding.")}
    assert moved <= reads_captions
    assert {"add_embedding.linear_1.weight", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"} <= moved


def test_untrainable_models_are_named(tiny_pipeline: Any, data: PreferenceData, tmp_path: Path) -> None:
    tiny_pipeline.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(ConfigError, match="prediction type 'sample'"):
        run(tiny_pipeline, data, tmp_path)
    tiny_pipeline.scheduler.register_to_config(prediction_type="epsilon")
    tiny_pipeline.unet.to(torch.float16)
    with pytest.raises(ConfigError, match="float16 model trains on a GPU only"):
        run(tiny_pipeline, data, tmp_path)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_bfloat16_computes_low_and_trains_high(
    tiny_pipeline: Any, data: PreferenceData, tmp_path: Path, lora_rank: int
) -> None:
    tiny_pipeline.unet.to(torch.bfloat16)
    log = run(tiny_pipeline, data, tmp_path, n_steps=2, lora_rank=lora_rank)
    assert values(log, "loss")[0] == pytest.approx(math.log(2), abs=0.05)
    saved = torch.load(checkpoint_path(tmp_path, 2), weights_only=True)
    assert {weight.dtype for weight in saved["weights"].values()} == {torch.float32}
    assert tiny_pipeline.unet.conv_in.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_saved_model_is_the_trained_one(
    tiny_pipeline: Any,
    tiny_pipeline_folder: Path,
    make_pipeline: Callable[[], Any],
    data: PreferenceData,
    tmp_path: Path,
    lora_rank: int,
) -> None:
    run(tiny_pipeline, data, tmp_path / "run", lora_rank=lora_rank, learning_rate=0.01)
    batch = draw(tiny_pipeline, data)
    trained, base = errors(tiny_pipeline, batch), errors(make_pipeline(), batch)
    for _ in range(2):  # a second save replaces the first
        model = save_training(tiny_pipeline, tiny_pipeline_folder, tmp_path / "trained")
    saved = load(write_linked(model, tmp_path / "model"))
    torch.testing.assert_close(errors(saved, batch), trained, rtol=1e-4, atol=1e-5)
    assert float((trained - base).abs().max()) > 1e-3
    assert saved.unet.state_dict().keys() == make_pipeline().unet.state_dict().keys()
    assert [path.suffix for path in (tmp_path / "model" / "unet").iterdir() if path.stat().st_size > 10_000] == [
        ".safetensors"
    ]


def test_an_adapted_unet_is_refused(tiny_pipeline: Any, data: PreferenceData, tmp_path: Path) -> None:
    run(tiny_pipeline, data, tmp_path, n_steps=1, lora_rank=2)
    with pytest.raises(InputError, match="already carries an adapter"):
        run(tiny_pipeline, data, tmp_path, n_steps=1, lora_rank=2)
