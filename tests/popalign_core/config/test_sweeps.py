"""The points of a sweep: which systems stand for them, and which sweeps are refused."""

import pytest

from popalign_core.config import PipelineConfig, SystemConfig
from popalign_core.config.presets import preset
from popalign_core.config.sweeps import SweepPoint, configured_value, default_system, expand_sweep
from popalign_core.config.systems import configure_system, configure_training
from popalign_core.errors import ConfigError


def test_one_parameter_at_a_time_leaves_the_others_as_they_are() -> None:
    config, points = expand_sweep(
        preset("portraits"), ["aligned"], {"training.beta": [10, 20.5], "sampling.guidance_scale": [3.0]}
    )
    assert points == [
        SweepPoint("aligned+training.beta=10", "aligned", "training.beta", "10", 0),
        SweepPoint("aligned+training.beta=20.5", "aligned", "training.beta", "20.5", 1),
        SweepPoint("aligned+sampling.guidance_scale=3", "aligned", "sampling.guidance_scale", "3", 0),
    ]
    trained = configure_training(config, "aligned+training.beta=20.5")
    assert trained.training == config.training.model_copy(update={"beta": 20.5})
    assert configure_system(config, "aligned+training.beta=20.5").sampling == config.sampling
    guided = points[2].name
    assert configure_training(config, guided).training == config.training
    assert configure_system(config, guided).sampling.guidance_scale == 3.0
    # what a worker process is handed is read back from JSON
    assert PipelineConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_grid_is_every_combination() -> None:
    config, points = expand_sweep(
        preset("portraits"), ["sft"], {"sampling.n_steps": [6, 12], "sampling.guidance_scale": [1, 2]}, grid=True
    )
    assert [(point.parameter, point.value, point.order) for point in points] == [
        ("sampling.n_steps, sampling.guidance_scale", value, order)
        for order, value in enumerate(("6, 1", "6, 2", "12, 1", "12, 2"))
    ]
    last = configure_system(config, points[-1].name).sampling
    assert (last.n_steps, last.guidance_scale) == (12, 2)
    assert configure_training(config, points[-1].name).training.objective == "sft"


def test_several_systems_are_varied_alike() -> None:
    """The paper's Figure 6: guidance, for the base model and what SFT and PopAlign make of it."""
    config, points = expand_sweep(
        preset("portraits"), ["base", "sft", "popalign"], {"sampling.guidance_scale": [1, 6.5]}
    )
    assert [(point.system, point.value) for point in points] == [
        (system, value) for system in ("base", "sft", "popalign") for value in ("1", "6.5")
    ]
    assert [config.systems[point.name].trains for point in points] == [False, False, True, True, True, True]


def test_a_system_keeps_what_it_changes_already() -> None:
    own = SystemConfig(aligned=True, sampling={"cads": {"noise_scale": 0.1}})
    config = preset("portraits").model_copy(update={"systems": {"mine": own}})
    config, points = expand_sweep(config, ["mine"], {"preferences.set_size": [4], "sampling.cads.noise_scale": [0.3]})
    size, noise = (config.systems[point.name] for point in points)
    assert (size.training, size.preferences, size.sampling) == ({}, {"set_size": 4}, own.sampling)
    assert noise.sampling == {"cads": {"noise_scale": 0.3}}
    assert configure_training(config, points[0].name).preferences.set_size == 4


def test_names_hold_what_nodes_may_be_called() -> None:
    _, points = expand_sweep(preset("portraits"), ["base"], {"sampling.guidance_interval": [[0.28, 5.42]]})
    assert points[0].name == "base+sampling.guidance_interval=_0.28,_5.42_"
    assert points[0].value == "[0.28, 5.42]"


def test_what_the_configuration_has_is_known() -> None:
    config = preset("portraits")
    assert configured_value(config, "aligned", "training.beta") == "80"
    assert configured_value(config, "popalign", "training.beta") == "20"
    assert configured_value(config, "base", "sampling.guidance_scale") == "1.6"
    assert configured_value(config, "base", "sampling.cads.noise_scale") == ""
    assert configured_value(config, "base", "training.beta, sampling.guidance_scale") == ""


def test_only_training_needs_a_trained_system() -> None:
    assert default_system({"sampling.n_steps": [4], "model.storage": ["float8"]}) == "base"
    assert default_system({"sampling.n_steps": [4], "training.beta": [4]}) == "aligned"
    assert default_system({"preferences.set_size": [4]}) == "aligned"


def test_sweeps_that_say_nothing_are_refused() -> None:
    config = preset("portraits")
    for parameters, message in (
        ({}, "there is nothing to sweep"),
        ({"evaluation.seed": [1]}, "cannot vary 'evaluation.seed'; give a field of sampling, model"),
        ({"training": [1]}, "cannot vary 'training'"),
        ({"training.beta": [20, 20.0]}, "values of training.beta are 20, 20; give each once"),
        ({"training.beta": []}, "values of training.beta are none"),
    ):
        with pytest.raises(ConfigError, match=message):
            expand_sweep(config, ["aligned"], parameters)
    with pytest.raises(ConfigError, match=r"training\.beta is of a training, and system 'base' has none"):
        expand_sweep(config, ["base"], {"training.beta": [20]})
    broken, points = expand_sweep(config, ["base"], {"sampling.guidance": [2]})
    with pytest.raises(ConfigError, match=r"(?s)system 'base\+sampling.guidance=2' is invalid.*sampling\.guidance"):
        configure_system(broken, points[0].name)


def test_points_that_would_share_a_name_are_refused() -> None:
    config = preset("portraits")
    with pytest.raises(ConfigError, match=r"both called 'base\+sampling\.n_steps=3'; give each system and value once"):
        expand_sweep(config, ["base", "base"], {"sampling.n_steps": [3]})
    # both are written with an underscore, and one would have stood for the other
    with pytest.raises(ConfigError, match=r"both called 'base\+model\.lora=a_b'"):
        expand_sweep(config, ["base"], {"model.lora": ["a/b", "a_b"]})


def test_pictures_made_elsewhere_cannot_be_varied() -> None:
    config = preset("portraits").model_copy(update={"systems": {"theirs": SystemConfig(images="imported-v2-00")}})
    with pytest.raises(
        ConfigError, match=r"(?s)cannot have sampling\.n_steps=3:.*are sampled already: leave .*sampling out"
    ):
        expand_sweep(config, ["theirs"], {"sampling.n_steps": [3]})


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_value_that_is_not_finite_is_left_to_the_configuration(value: float) -> None:
    config, points = expand_sweep(preset("portraits"), ["base"], {"sampling.guidance_scale": [value]})
    with pytest.raises(ConfigError, match=r"sampling\.guidance_scale: Input should be"):
        configure_system(config, points[0].name)
