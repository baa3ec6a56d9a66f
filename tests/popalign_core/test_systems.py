"""Systems by name: what each changes, and that a wrong one is refused before anything is drawn."""

import pytest

from popalign_core.config import PipelineConfig, SystemConfig
from popalign_core.errors import ConfigError
from popalign_core.presets import preset
from popalign_core.systems import SYSTEMS, configure_system, find_system


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_that_ships_fits_every_family(name: str) -> None:
    for base in ("portraits", "sdxl", "sd15"):
        config = preset(base)
        changed = configure_system(config, name)
        assert changed.model_copy(update={"sampling": config.sampling, "model": config.model}) == config
        assert (changed.sampling == config.sampling) is (name in ("base", "aligned", "fp8"))
        assert (changed.model == config.model) is (name != "fp8")


def test_rivals_are_what_their_authors_propose() -> None:
    config = preset("sdxl")
    cads = configure_system(config, "cads").sampling.cads
    assert cads is not None
    assert (cads.tau1, cads.tau2, cads.noise_scale, cads.mixing) == (0.6, 0.9, 0.25, 1.0)
    dynamic = configure_system(config, "dynamic-cfg").sampling.dynamic_cfg
    assert dynamic is not None
    assert (dynamic.tau1, dynamic.tau2) == (0.6, 0.9)
    assert configure_system(config, "guidance-interval").sampling.guidance_interval == (0.28, 5.42)
    assert configure_system(config, "identity-injection").sampling.inject_identity
    fair = configure_system(config, "fair-diffusion").sampling.fair_diffusion
    assert fair is not None
    assert (fair.scale, fair.threshold, fair.momentum_scale, fair.momentum_beta) == (4.0, 0.95, 0.3, 0.6)


def test_cheaper_sampling_is_a_system_to_measure() -> None:
    config = preset("sdxl")
    assert (config.sampling.reuse_interval, config.model.storage) == (1, None)
    assert configure_system(config, "deepcache").sampling.reuse_interval == 3
    stored = configure_system(config, "fp8").model
    assert (stored.storage, stored.dtype) == ("float8", "bfloat16")


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
    with pytest.raises(ConfigError, match=r"no system 'cad'; choose from base, aligned, cads.*or describe it in"):
        find_system(preset("portraits"), "cad")
    bad = with_systems(mine=SystemConfig(sampling={"guidance": 3}))
    with pytest.raises(ConfigError, match=r"(?s)system 'mine' does not fit.*sampling\.guidance"):
        configure_system(bad, "mine")
    with pytest.raises(ConfigError, match="does nothing; set guidance_scale above 1"):
        configure_system(preset("sdxl-turbo"), "dynamic-cfg")
    with pytest.raises(ValueError, match="are drawn already"):
        SystemConfig(images="key", sampling={"n_steps": 3})
    with pytest.raises(ValueError, match="leave model out"):
        SystemConfig(aligned=True, model={"dtype": "bfloat16"})
