"""Every preset is a valid configuration and says what its model and recipe ask for."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler

from popalign_core.config import PipelineConfig, TrainingConfig, load_config
from popalign_core.config.presets import PRESETS, preset
from popalign_core.errors import ConfigError, MissingWeightsError
from popalign_core.evaluation.quality.scorer_files import PUBLIC_WEIGHTS, weights_of
from popalign_core.models.loading import model_hash
from popalign_core.sampling.schedulers import make_scheduler
from popalign_core.training.noising import draw_timesteps, forward_process
from popalign_core.training.optimizers import learning_rate

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' Euler


@pytest.mark.parametrize("name", PRESETS)
def test_is_valid(name: str) -> None:
    config = preset(name)
    # model_copy checks nothing: a document of the same values does
    assert PipelineConfig.model_validate(config.model_dump()) == config
    assert set(config.prompts.train_subjects) & set(config.prompts.eval_subjects) == set()
    assert set(config.prompts.retained_subjects) & set(config.prompts.generic_subjects) == set()


def test_all_are_there() -> None:
    names = ["portraits", "smoke", "sdxl", "sdxl-trial", "sdxl-dpo", "sdxl-turbo", "sdxl-lightning", "sd15"]
    assert list(PRESETS) == names
    with pytest.raises(
        ConfigError,
        match=r"unknown preset 'sd16'; did you mean 'sd15'.* Or choose from portraits, smoke, sdxl, sdxl-trial",
    ):
        preset("sd16")


@pytest.mark.parametrize("name", ["sdxl", "sdxl-trial", "sdxl-dpo", "sdxl-turbo", "sd15"])
def test_models_from_the_hub_are_pinned(name: str) -> None:
    model = preset(name).model
    assert re.fullmatch("[0-9a-f]{40}", str(model.revision)) is not None
    assert model_hash(model) == f"{model.name}@{model.revision}"


def test_lightning_is_sdxl_with_its_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, sdxl = preset("sdxl-lightning"), preset("sdxl")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        MissingWeightsError,
        match=r"`popalign fetch` .*`hf download ByteDance/SDXL-Lightning sdxl_lightning_4step_lora\.safetensors --loc",
    ):
        model_hash(config.model)
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "sdxl_lightning_4step_lora.safetensors").write_bytes(b"adapter")
    assert model_hash(config.model).startswith(f"{model_hash(sdxl.model)}+lora-2:")
    assert (config.sampling.n_steps, config.sampling.guidance_scale) == (4, 1.0)
    assert (config.sampling.scheduler, config.sampling.width, config.sampling.height) == ("euler", 1024, 1024)
    turbo = preset("sdxl-turbo").training
    assert turbo.zero_terminal_snr
    assert config.training == turbo.model_copy(update={"zero_terminal_snr": False})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sdxl", ("popalign", "adamw", 5e-7, 4, 750, 200, 0.2)),
        ("sdxl-trial", ("popalign", "adamw", 1.5e-6, 4, 250, 67, 0.2)),
        ("sdxl-dpo", ("diffusion-dpo", "adafactor", 1e-8 * 2048, 2048, 2000, 200, 0.2)),
        ("sdxl-turbo", ("popalign", "adafactor", 1e-8 * 2048, 2048, 2000, 200, 0.0)),
        ("sdxl-lightning", ("popalign", "adafactor", 1e-8 * 2048, 2048, 2000, 200, 0.0)),
        ("sd15", ("popalign", "adamw", 1e-8 * 2048, 2048, 2000, 500, 0.2)),
    ],
)
def test_recipes(name: str, expected: tuple[object, ...]) -> None:
    training = preset(name).training
    fields = ("objective", "optimizer", "learning_rate", "n_pairs", "n_steps", "n_warmup_steps", "empty_caption_rate")
    assert tuple(getattr(training, field) for field in fields) == expected
    assert training.beta == 5000


def rates(training: TrainingConfig) -> float:
    """Of all steps together."""
    return sum(learning_rate(training, step) for step in range(1, training.n_steps + 1))


def test_the_trial_is_the_papers_recipe_cut() -> None:
    """All but amounts is as in `sdxl`, and the weights may travel as far."""
    trial, sdxl = preset("sdxl-trial"), preset("sdxl")
    assert rates(trial.training) == pytest.approx(rates(sdxl.training), rel=0.002)
    assert rates(sdxl.training) == pytest.approx((100.5 + 550) * 5e-7)
    changed = {"prompts", "sampling", "preferences", "training", "evaluation"}
    assert trial.model_dump(exclude=changed) == sdxl.model_dump(exclude=changed)
    kept = trial.sampling.model_copy(update={"n_steps": 50}), trial.evaluation.scorers, trial.prompts.carrier
    assert kept == (sdxl.sampling, sdxl.evaluation.scorers, sdxl.prompts.carrier)


def test_few_step_models_train_where_they_sample() -> None:
    config = preset("sdxl-turbo")
    assert (config.sampling.n_steps, config.sampling.guidance_scale, config.sampling.width) == (4, 1.0, 512)
    # as the model's scheduler on the hub: trailing steps
    hub = EulerAncestralDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
    )
    sampler = make_scheduler(hub, config.sampling.scheduler)
    sampler.set_timesteps(config.sampling.n_steps)
    process = forward_process(hub, config.training)
    drawn = {
        int(t)
        for seed in range(8)
        for t in draw_timesteps(process, config.training, 32, torch.Generator().manual_seed(seed))
    }
    assert drawn == {int(t) for t in sampler.timesteps} == {249, 499, 749, 999}


@pytest.mark.parametrize("name", ["portraits", "sdxl", "sdxl-dpo", "sd15"])
def test_the_others_draw_from_all_timesteps(name: str) -> None:
    assert preset(name).training.timesteps == ()


def test_a_file_may_start_from_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "turbo.toml"
    path.write_text('preset = "sdxl-turbo"\n[training]\nn_pairs = 64\nlearning_rate = 6.4e-7\n', encoding="utf-8")
    config = load_config(path)
    assert config.training.n_pairs == 64
    assert config.training.timesteps == (249, 499, 749, 999)
    assert config.model == preset("sdxl-turbo").model


@pytest.mark.parametrize("name", ["sdxl", "sdxl-dpo", "sdxl-turbo", "sdxl-lightning", "sd15"])
def test_models_from_the_hub_are_scored_by_the_usual_scorers(name: str) -> None:
    scorers = preset(name).evaluation.scorers
    named = ["clip_score", "hps_v2.0", "hps_v2.1", "pick_score", "aesthetics", "image_reward", "inception"]
    assert list(scorers) == named
    # Every file has a command that gets it.
    assert {path.name for settings in scorers.values() for path in weights_of(settings)} == set(PUBLIC_WEIGHTS)
    assert preset("portraits").evaluation.scorers == {}


def test_a_file_moves_one_scorer_of_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('preset = "sdxl"\n[evaluation.scorers."hps_v2.1"]\npath = "/data/HPS.pt"\n', encoding="utf-8")
    scorers, usual = load_config(path).evaluation.scorers, preset("sdxl").evaluation.scorers
    assert scorers["hps_v2.1"] == usual["hps_v2.1"].model_copy(update={"path": "/data/HPS.pt"})
    assert {name: scorers[name] for name in usual if name != "hps_v2.1"} == {
        name: usual[name] for name in usual if name != "hps_v2.1"
    }
    for text, message in (
        ('diversity = {kind = "clip"}', r"\['diversity'\] have the names of metrics that come by themselves"),
        ('other = {kind = "inception", path = "x"}', "are all Inception networks; FID and KID take one"),
        ('other = {kind = "pickscore"}', "does not match any of the expected tags"),
        ('"Ünusual" = {kind = "clip"}', "String should match pattern"),
    ):
        path.write_text(f'preset = "sdxl"\n[evaluation.scorers]\n{text}\n', encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            load_config(path)
