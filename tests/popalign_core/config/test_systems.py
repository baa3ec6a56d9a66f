"""Systems by name: what each changes, and that a wrong one is refused before anything is drawn."""

import pytest

from popalign_core.config import PipelineConfig, SystemConfig
from popalign_core.config.presets import preset
from popalign_core.config.systems import (
    SYSTEMS,
    configure_replicate,
    configure_system,
    configure_training,
    find_system,
    starts,
)
from popalign_core.errors import ConfigError

TRAINED = {"sft": "sft", "dpo": "diffusion-dpo", "popalign": "popalign", "dpo+popalign": "popalign"}


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_that_ships_fits_every_family(name: str) -> None:
    for base in ("portraits", "sdxl", "sd15"):
        config = preset(base)
        changed = configure_system(config, name)
        assert changed.model_copy(update={"sampling": config.sampling, "model": config.model}) == config
        assert (changed.sampling == config.sampling) is (name in ("base", "aligned", "fp8", *TRAINED))
        assert (changed.model == config.model) is (name != "fp8")
        trained = configure_training(config, name)
        assert trained.model_copy(update={"training": config.training, "model": config.model}) == config
        assert find_system(config, name).trains is (name in ("aligned", *TRAINED))


@pytest.mark.parametrize(("name", "objective"), TRAINED.items())
def test_trained_systems_are_the_pipelines_training_but_for_the_objective(name: str, objective: str) -> None:
    for base in ("portraits", "sdxl", "sd15", "smoke"):
        config = preset(base)
        training = configure_training(config, name).training
        same = {"beta", "objective", "normaliser_bins", "preserve_preferred"}
        assert training.objective == objective
        assert training.model_dump(exclude=same) == config.training.model_dump(exclude=same)
    portraits = preset("portraits")
    betas = {each: configure_training(portraits, each).training.beta for each in TRAINED}
    assert betas == {"sft": 1.0, "dpo": 40, "popalign": 20, "dpo+popalign": 20}
    assert configure_training(preset("sdxl"), "popalign").training == preset("sdxl").training


def test_no_setting_of_the_pipelines_training_refuses_a_rival() -> None:
    binned = {"objective": "popalign", "normaliser": "batch", "normaliser_bins": 4, "beta": "auto"}
    config = preset("smoke")
    config = config.model_copy(update={"training": config.training.model_copy(update=binned)})
    assert configure_training(config, "sft").training.normaliser_bins == 1
    assert configure_training(config, "dpo").training.beta == "auto"
    assert configure_training(config, "dpo+popalign").training.normaliser_bins == 4


def test_a_start_hands_its_model_on() -> None:
    """Whether it was trained here or lies in a folder: the public SDXL-DPO is a denoiser of its own."""
    public = SystemConfig(model={"denoiser": "dpo-sdxl/unet", "dtype": "float16"})
    further = SystemConfig(training={"beta": 30}, start="dpo", model={"dtype": "bfloat16"})
    config = with_systems(dpo=public, further=further)
    assert starts(config, "further") == ["dpo"]
    for configured in (configure_system, configure_training):
        model = configured(config, "further").model
        assert (model.denoiser, model.dtype) == ("dpo-sdxl/unet", "bfloat16")
    assert configure_training(config, "further").training.beta == 30
    assert configure_system(config, "dpo").model.denoiser == "dpo-sdxl/unet"


def test_starts_that_go_round_are_refused() -> None:
    config = with_systems(
        a=SystemConfig(training={}, start="b"),
        b=SystemConfig(training={}, start="a"),
        c=SystemConfig(training={}, start="c"),
    )
    with pytest.raises(ConfigError, match=r"systems .* form a cycle"):
        starts(config, "a")
    with pytest.raises(ConfigError, match="systems c form a cycle"):
        configure_training(config, "c")
    with pytest.raises(ConfigError, match="no system 'gone'"):
        starts(with_systems(a=SystemConfig(training={}, start="gone")), "a")


def test_a_replicate_has_seeds_of_its_own_and_the_same_data() -> None:
    config = preset("portraits")
    assert configure_replicate(config, 0) == config
    third = configure_replicate(config, 2)
    assert (third.evaluation.seed, third.training.seed) == (2, 2)
    assert (third.sampling, third.preferences) == (config.sampling, config.preferences)


def with_systems(**systems: SystemConfig) -> PipelineConfig:
    return preset("portraits").model_copy(update={"systems": systems})


def test_a_configurations_own_systems_come_first() -> None:
    own = SystemConfig(sampling={"cads": {"noise_scale": 0.1}, "n_steps": 5}, model={"dtype": "bfloat16"})
    changed = configure_system(with_systems(cads=own), "cads")
    assert changed.sampling.cads is not None
    assert (changed.sampling.cads.noise_scale, changed.sampling.n_steps, changed.model.dtype) == (0.1, 5, "bfloat16")
    # what a system does not name stays
    assert changed.sampling.guidance_scale == preset("portraits").sampling.guidance_scale


def test_wrong_systems_are_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"no system 'cad'; did you mean 'cads'.* Or choose from base, aligned, sft.*cads.*or describe it in",
    ):
        find_system(preset("portraits"), "cad")
    bad = with_systems(mine=SystemConfig(sampling={"guidance": 3}))
    with pytest.raises(ConfigError, match=r"(?s)system 'mine' is invalid.*sampling\.guidance"):
        configure_system(bad, "mine")
    with pytest.raises(ConfigError, match="does nothing; set guidance_scale above 1"):
        configure_system(preset("sdxl-turbo"), "dynamic-cfg")
    with pytest.raises(ValueError, match="are sampled already"):
        SystemConfig(images="key", sampling={"n_steps": 3})
    with pytest.raises(ValueError, match="leave model, training out"):
        SystemConfig(aligned=True, model={"dtype": "bfloat16"}, training={"beta": 3})
    for idle in ({"start": "dpo"}, {"preferences": {"set_size": 4}}):
        with pytest.raises(ValueError, match=r"add training, \{\} for as it is"):
            SystemConfig.model_validate(idle)
    assert SystemConfig(training={}, preferences={"set_size": 4}).trains
