"""What the configuration and the machine may change: micro-batches, optimisers, EMA, memory, trackers, the probe."""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import RUNTIME, TIME_IDS, changed, draw, run, same_weights, stop_at, values

from popalign_core.config import ProbeConfig, RuntimeConfig
from popalign_core.errors import ConfigError, InputError
from popalign_core.training import trainer
from popalign_core.training.data import PreferenceData
from popalign_core.training.job import TrainingSubject
from popalign_core.training.objective import Running
from popalign_core.training.optimizers import learning_rate


def gradients(pipeline: Any, data: PreferenceData, folder: Path, runtime: RuntimeConfig, **changes: Any) -> Any:
    """Of the first step's global loss, with its terms."""
    config = changed(**changes)
    subject = TrainingSubject(pipeline.unet, pipeline.scheduler, data, TIME_IDS)
    made = trainer.TrainingRun(subject, config, folder, runtime)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in made.weights.current.values():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    terms, _ = made.gradient.take(made._draw(1), config, Running())
    return {name: weight.grad.clone() for name, weight in made.weights.current.items()}, terms


def with_classes(data: PreferenceData) -> PreferenceData:
    return replace(data, classes=torch.tensor([0, 1, 0, 0, 1, 1] * 2), target=torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize(
    "changes",
    [
        {"normaliser": "batch"},
        {"normaliser": "batch", "normaliser_bins": 3, "alpha": 0.3},
        {"normaliser": "zero", "retention": 2.0},
        {"normaliser": "anchor", "retention": 2.0},
        {"objective": "set-dpo", "preserve_preferred": True},
        {"objective": "diffusion-dpo"},
        {"objective": "diffusion-kto"},
        {"objective": "cgm-relax", "pairs_per_set": 4},
        {"objective": "sft", "lora_rank": 2},
    ],
    ids=str,
)
def test_micro_batches_share_the_loss_of_the_whole_batch(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path, changes: dict[str, Any]
) -> None:
    found = [
        gradients(
            make_pipeline(), with_classes(data), tmp_path, RUNTIME.model_copy(update={"micro_pairs": size}),
            n_pairs=8, **changes,
        )
        for size in (0, 2)
    ]  # fmt: skip
    (whole, terms), (parts, part_terms) = found
    assert part_terms == pytest.approx(terms, rel=1e-4, abs=1e-6)
    scale = max(float(gradient.abs().max()) for gradient in whole.values())
    assert scale > 0
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-4 * scale, msg=name)


def test_micro_batches_must_divide(tiny_pipeline: Any, data: PreferenceData, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"n_pairs is 4: 1 processes with micro_pairs 3 do not divide it"):
        run(tiny_pipeline, data, tmp_path, runtime=RUNTIME.model_copy(update={"micro_pairs": 3}))


def test_schedules() -> None:
    def rates(**changes: Any) -> list[float]:
        config = changed(n_steps=4, learning_rate=1.0, **changes)
        return [learning_rate(config, step) for step in (1, 2, 3, 4)]

    assert rates(n_warmup_steps=2) == [0.5, 1, 1, 1]
    assert rates(n_warmup_steps=0, learning_rate_schedule="linear") == [1, 0.75, 0.5, 0.25]
    half = math.sqrt(0.5)
    expected = [1, (1 + half) / 2, 0.5, (1 - half) / 2]
    assert rates(n_warmup_steps=0, learning_rate_schedule="cosine") == pytest.approx(expected)


@pytest.mark.parametrize("optimizer", ["adafactor", pytest.param("adamw-8bit", marks=pytest.mark.slow)])
def test_other_optimisers_learn_and_resume(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path, optimizer: str
) -> None:
    settings = {"optimizer": optimizer, "n_steps": 12, "learning_rate": 2e-3, "checkpoint_every": 6}
    whole, resumed = make_pipeline(), make_pipeline()
    log = run(whole, data, tmp_path / "whole", **settings)
    assert sum(values(log, "loss")[-3:]) < sum(values(log, "loss")[:3])
    # a first step moves weights by about the learning rate, whatever their size (torch's own Adafactor does not)
    once, base = make_pipeline(), make_pipeline()
    run(once, data, tmp_path / "once", **settings | {"n_steps": 1, "n_warmup_steps": 0})
    moved = (once.unet.conv_in.weight - base.unet.conv_in.weight).detach().abs().mean()
    assert 0.2 < float(moved) / 2e-3 < 2
    with pytest.raises(KeyboardInterrupt):
        run(make_pipeline(), data, tmp_path / "run", stop_at(7), **settings)
    assert run(resumed, data, tmp_path / "run", **settings) == log
    assert same_weights(whole.unet, resumed.unet)


def test_eight_bits_without_bitsandbytes_says_how(
    tiny_pipeline: Any, data: PreferenceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"needs bitsandbytes: pip install 'popalign\[bnb\]'"):
        run(tiny_pipeline, data, tmp_path, optimizer="adamw-8bit")


def test_the_moving_mean_is_what_training_leaves(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path
) -> None:
    averaged, plain = make_pipeline(), make_pipeline()
    seen: list[torch.Tensor] = []

    def keep(step: int, terms: dict[str, float]) -> None:
        seen.append(averaged.unet.conv_in.weight.detach().clone())

    log = run(averaged, data, tmp_path / "ema", keep, ema_decay=0.5)
    assert log == run(plain, data, tmp_path / "plain")
    mean = make_pipeline().unet.conv_in.weight.detach()
    for step, weight in enumerate(seen, start=1):
        mean = torch.lerp(mean, weight, 1 - min(0.5, (1 + step) / (10 + step)))
    torch.testing.assert_close(averaged.unet.conv_in.weight.detach(), mean, rtol=0, atol=1e-7)
    assert torch.equal(plain.unet.conv_in.weight, seen[-1])
    resumed = make_pipeline()
    with pytest.raises(KeyboardInterrupt):
        run(make_pipeline(), data, tmp_path / "run", stop_at(5), ema_decay=0.5)
    run(resumed, data, tmp_path / "run", ema_decay=0.5)
    assert same_weights(averaged.unet, resumed.unet)


def test_less_memory_is_the_same_training(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils import checkpoint

    calls: list[int] = []
    original = checkpoint.checkpoint
    monkeypatch.setattr(checkpoint, "checkpoint", lambda *a, **k: calls.append(1) or original(*a, **k))
    plain, thrifty = make_pipeline(), make_pipeline()
    log = run(plain, data, tmp_path / "plain", n_steps=2)
    assert calls == []
    runtime = RUNTIME.model_copy(update={"gradient_checkpointing": True})
    assert run(thrifty, data, tmp_path / "thrifty", n_steps=2, runtime=runtime) == log
    assert len(calls) > 0


def test_automatic_beta_starts_at_order_one(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path
) -> None:
    first, second = make_pipeline(), make_pipeline()
    settings = {"n_steps": 12, "n_warmup_steps": 0, "normaliser": "zero", "checkpoint_every": 12}
    log = run(first, data, tmp_path / "auto", beta="auto", **settings)
    betas = values(log, "beta")
    assert len(set(betas)) == 1
    spread = values(log, "g_spread")
    assert spread[0] == 0
    # the weights were put back: the first step still starts at the reference
    assert values(log, "loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert 0.2 < betas[0] * spread[10] < 5
    # found once, from the same steps: a run with that number is the same run
    again = run(second, data, tmp_path / "given", beta=betas[0], **settings)
    assert values(again, "loss") == values(log, "loss")
    assert same_weights(first.unet, second.unet)


def test_automatic_beta_survives_a_stop(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "N_CALIBRATION", 3)
    whole, resumed = make_pipeline(), make_pipeline()
    log = run(whole, data, tmp_path / "whole", beta="auto")
    for last in (1, 3):  # before and after the first checkpoint
        with pytest.raises(KeyboardInterrupt):
            run(make_pipeline(), data, tmp_path / "run", stop_at(last), beta="auto")
    assert run(resumed, data, tmp_path / "run", beta="auto") == log
    assert same_weights(whole.unet, resumed.unet)


def test_tensorboard_has_every_term_once(
    tiny_pipeline: Any, make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runtime = RUNTIME.model_copy(update={"trackers": ("tensorboard",)})
    with pytest.raises(KeyboardInterrupt):
        run(make_pipeline(), data, tmp_path, stop_at(5), runtime=runtime)
    log = run(tiny_pipeline, data, tmp_path, runtime=runtime)
    folder = next(iter({path.parent for path in tmp_path.rglob("events.out.tfevents.*")}))
    events = EventAccumulator(str(folder)).Reload()
    names = {row["name"] for row in log} | {"samples_per_s", "eta_s"}
    assert set(events.Tags()["scalars"]) == names
    # steps 5 and 6 came twice, after the checkpoint of step 4: the second counts
    losses = events.Scalars("loss")
    assert [event.step for event in losses] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in losses] == pytest.approx(values(log, "loss"))
    assert all(event.value > 0 for event in events.Scalars("samples_per_s"))
    etas = [event.value for event in events.Scalars("eta_s")]
    assert etas[-1] == 0
    assert etas[0] > 0


def test_a_tracker_that_is_not_there_is_named(
    tiny_pipeline: Any, data: PreferenceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("popalign_core.training.settings_check.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="trackers names 'wandb', which is not installed: pip install wandb"):
        run(tiny_pipeline, data, tmp_path, runtime=RUNTIME.model_copy(update={"trackers": ("wandb",)}))


class FakePopulation:
    """A probe whose figures are told beforehand; the sequence is one call after another."""

    def __init__(self, figures: list[tuple[float, float]]) -> None:
        self.figures = figures
        self.calls = 0

    def __call__(self) -> dict[str, float]:
        worst, clip = self.figures[self.calls]
        self.calls += 1
        return {"discrepancy/gender": worst, "discrepancy/race": worst / 2, "clip_score": clip}


def test_stops_when_the_population_is_fair(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path
) -> None:
    probe = FakePopulation([(0.6, 80), (0.4, 80), (0.1, 80), (0.0, 80)])
    settings = ProbeConfig(every=2, stop_discrepancy=0.2)
    log = run(make_pipeline(), data, tmp_path, probe=probe, n_steps=20, look=settings)
    assert values(log, "probe/discrepancy/gender") == [0.6, 0.4, 0.1]
    assert [row["step"] for row in log if row["name"] == "probe/clip_score"] == [0, 2, 4]
    assert max(row["step"] for row in log) == 4
    # a finished run stays finished
    assert run(make_pipeline(), data, tmp_path, probe=FakePopulation([]), n_steps=20, look=settings) == log


def test_stops_when_quality_falls(tiny_pipeline: Any, data: PreferenceData, tmp_path: Path) -> None:
    probe = FakePopulation([(0.6, 80), (0.5, 79), (0.5, 77.5), (0.5, 60)])
    look = ProbeConfig(every=3, stop_clip_drop=0.03)
    log = run(tiny_pipeline, data, tmp_path, probe=probe, n_steps=20, look=look, checkpoint_every=20)
    assert values(log, "probe/clip_score") == [80, 79, 77.5]
    assert max(row["step"] for row in log) == 6


def test_quality_cannot_stop_what_has_no_score(tiny_pipeline: Any, data: PreferenceData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"stop_clip_drop needs the prompts' texts for a CLIP score"):
        run(
            tiny_pipeline,
            data,
            tmp_path,
            probe=lambda: {"discrepancy/gender": 0.5},
            look=ProbeConfig(every=3, stop_clip_drop=0.03),
        )


def test_both_stops_are_off_by_default(tiny_pipeline: Any, data: PreferenceData, tmp_path: Path) -> None:
    probe = FakePopulation([(0.6, 80), (0.0, 1.0), (0.0, 1.0)])
    log = run(tiny_pipeline, data, tmp_path, probe=probe, look=ProbeConfig(every=3))
    assert max(row["step"] for row in log) == 6


def test_the_probe_sees_the_moving_mean_and_leaves_the_weights(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path
) -> None:
    pipeline, plain = make_pipeline(), make_pipeline()
    seen: list[torch.Tensor] = []

    def probe() -> dict[str, float]:
        seen.append(pipeline.unet.conv_in.weight.detach().clone())
        return {"discrepancy/gender": 0.5, "clip_score": 80.0}

    log = run(pipeline, data, tmp_path / "a", probe=probe, look=ProbeConfig(every=6), ema_decay=0.5)
    without = run(plain, data, tmp_path / "b", ema_decay=0.5)
    assert values(log, "loss") == values(without, "loss")
    assert torch.equal(seen[-1], plain.unet.conv_in.weight)
    assert torch.equal(seen[0], make_pipeline().unet.conv_in.weight)


def test_pairs_of_a_set_come_together(tiny_pipeline: Any, data: PreferenceData) -> None:
    batch = draw(tiny_pipeline, data, n_pairs=64, pairs_per_set=8)
    for block in batch.set_index.view(2, 8, 8).flatten(0, 1):
        assert len(set(block.tolist())) == 1
    assert set(batch.set_index.tolist()) == {0, 1}
    with pytest.raises(ValueError, match="n_pairs 64 is not a multiple of pairs_per_set 7"):
        changed(n_pairs=64, pairs_per_set=7)


def test_calibration_needs_classes_and_reads_the_reference_off_the_dispreferred(
    tiny_pipeline: Any, data: PreferenceData, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="objective is 'cgm-relax', but the images' classes are unknown"):
        run(tiny_pipeline, data, tmp_path, objective="cgm-relax")
    known = with_classes(data)
    batch = draw(tiny_pipeline, known, n_pairs=16, objective="cgm-relax")
    # dispreferred rows 1, 3, 5 of the first set have the classes 1, 0, 1: (2.5, 1.5) / 4 with half an image a class
    shares = {0: 1.5 / 4, 1: 2.5 / 4}
    for prior, number in zip(batch.priors.tolist(), batch.classes.tolist(), strict=True):
        assert prior == pytest.approx(shares[number])


def test_the_reference_is_counted_by_prompt_whatever_its_images_are_paired_with(data: PreferenceData) -> None:
    """As strategy `pairwise` has it, a set of one image a side: the prior would be that image's class."""
    known = with_classes(data)
    alone = torch.arange(len(known.set_index)) // 2  # preferred and dispreferred in turns
    assert known.preferred.view(-1, 2).tolist() == [[True, False]] * (len(alone) // 2)
    assert torch.equal(replace(known, set_index=alone).class_priors, known.class_priors)


def test_calibration_learns(tiny_pipeline: Any, data: PreferenceData, tmp_path: Path) -> None:
    # class 1 is what the preferred images show, and the reference hardly draws it
    seen = replace(data, classes=data.preferred.long(), target=torch.tensor([0.5, 0.5]))
    settings = {"objective": "cgm-relax", "pairs_per_set": 4, "n_pairs": 8, "n_steps": 16, "kl_weight": 0.0, "beta": 3}
    settings |= {"checkpoint_every": 16}
    losses = values(run(tiny_pipeline, seen, tmp_path, **settings), "loss")
    # priors (3.5, .5) / 4: the reference's distance from (.5, .5) is 2 * .375 ** 2
    assert losses[0] == pytest.approx(2 * 0.375**2, rel=1e-4)
    assert sum(losses[-4:]) / 4 < 0.5 * losses[0]


def test_latents_of_another_vae_are_refused(tiny_pipeline: Any, data: PreferenceData, tmp_path: Path) -> None:
    wide = replace(
        data, latents=data.latents.repeat(1, 2, 1, 1), retained_latents=data.retained_latents.repeat(1, 2, 1, 1)
    )
    with pytest.raises(InputError, match="latents have 8 channels, the model reads 4: they come from another model's"):
        run(tiny_pipeline, wide, tmp_path)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"beta": 0}, "beta"),
        ({"beta": -1.0}, "beta"),
        ({"beta": "auto", "objective": "sft"}, "beta is 'auto', but 'sft' has none"),
        ({"lora_targets": ("to_q",)}, "lora_targets need a lora_rank > 0"),
        ({"normaliser": "zero", "normaliser_bins": 2}, "bins are for objective 'popalign' with normaliser 'batch'"),
        ({"objective": "sft", "preserve_preferred": True}, "a dispreferred side, which 'sft' does not have"),
        ({"timesteps": (249,), "min_timestep": 3}, "are the only ones drawn"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        changed(**changes)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, of its compiler
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_compiled_blocks_train_the_same(
    make_pipeline: Callable[[], Any], data: PreferenceData, tmp_path: Path, lora_rank: int
) -> None:
    plain, compiled = make_pipeline(), make_pipeline()
    settings = {"n_steps": 4, "lora_rank": lora_rank}
    expected = run(plain, data, tmp_path / "plain", **settings)
    log = run(compiled, data, tmp_path / "compiled", runtime=RUNTIME.model_copy(update={"compile": True}), **settings)
    assert values(log, "loss") == pytest.approx(values(expected, "loss"), rel=1e-3)
    assert values(log, "grad_norm") == pytest.approx(values(expected, "grad_norm"), rel=1e-2)
    assert plain.unet.state_dict().keys() == compiled.unet.state_dict().keys()
