"""Systems by name: ways to get images for the same prompts and seeds, measured beside the base and the aligned model.

A system is what it changes of the pipeline's model and sampling. Besides those that ship here, a configuration names
its own in `[systems.NAME]`; images made elsewhere are a system too.
"""

from popalign_core.config import PipelineConfig, SystemConfig, merge_documents, parse_config
from popalign_core.errors import ConfigError

BASE, ALIGNED = "base", "aligned"

SYSTEMS: dict[str, SystemConfig] = {
    BASE: SystemConfig(),
    ALIGNED: SystemConfig(aligned=True),
    "cads": SystemConfig(sampling={"cads": {}}),
    "dynamic-cfg": SystemConfig(sampling={"dynamic_cfg": {}}),
    "guidance-interval": SystemConfig(sampling={"guidance_interval": (0.28, 5.42)}),
    "rescaled-cfg": SystemConfig(sampling={"guidance_rescale": 0.7}),
    "fair-diffusion": SystemConfig(sampling={"fair_diffusion": {}}),
    "identity-injection": SystemConfig(sampling={"inject_identity": True}),
    "deepcache": SystemConfig(sampling={"reuse_interval": 3}),
    "fp8": SystemConfig(model={"storage": "float8"}),
}
"""The model before and after training, the training-free rivals with their authors' usual settings, and what makes
sampling cheaper at some price, which is to be measured before it is paid.
"""


def find_system(config: PipelineConfig, name: str) -> SystemConfig:
    """A system by its name; the configuration's own come before those that ship.

    Raises:
        ConfigError: When there is none.
    """
    known = SYSTEMS | config.systems
    if name not in known:
        raise ConfigError(
            f"there is no system {name!r}; choose from {', '.join(known)}, or describe it in [systems.{name}]"
        )
    return known[name]


def configure_system(config: PipelineConfig, name: str) -> PipelineConfig:
    """The configuration that a system draws its evaluation images with.

    Raises:
        ConfigError: When there is no such system, or what it changes does not fit.
    """
    system = find_system(config, name)
    changes = {"sampling": system.sampling, "model": system.model}
    return parse_config(merge_documents(config.model_dump(exclude_none=True), changes), origin=f"system {name!r}")
