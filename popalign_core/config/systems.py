"""Systems by name: ways to get images for the same prompts and seeds, measured beside the base and the aligned model.

A system is what it changes of the pipeline's configuration: of model and sampling and, where a model is trained for it,
of training and preferences. Besides those that ship here, a configuration names its own in `[systems.NAME]`; images
made elsewhere are a system too.
"""

from typing import Any

from popalign_core.config.pipeline import PipelineConfig, SystemConfig, merge_documents, parse_config
from popalign_core.config.spelling import choose_from
from popalign_core.errors import ConfigError

BASE, ALIGNED = "base", "aligned"

SYSTEMS: dict[str, SystemConfig] = {
    BASE: SystemConfig(),
    ALIGNED: SystemConfig(aligned=True),
    # sft has neither beta nor rounds, and diffusion-dpo no bins: whatever the pipeline has must not refuse them
    "sft": SystemConfig(
        training={"objective": "sft", "rounds": 1, "beta": 1.0, "normaliser_bins": 1, "preserve_preferred": False}
    ),
    "dpo": SystemConfig(training={"objective": "diffusion-dpo", "normaliser_bins": 1}),
    "popalign": SystemConfig(training={"objective": "popalign"}),
    "dpo+popalign": SystemConfig(training={"objective": "popalign"}, start="dpo"),
    "cads": SystemConfig(sampling={"cads": {}}),
    "dynamic-cfg": SystemConfig(sampling={"dynamic_cfg": {}}),
    "guidance-interval": SystemConfig(sampling={"guidance_interval": (0.28, 5.42)}),
    "rescaled-cfg": SystemConfig(sampling={"guidance_rescale": 0.7}),
    "fair-diffusion": SystemConfig(sampling={"fair_diffusion": {}}),
    "identity-injection": SystemConfig(sampling={"inject_identity": True}),
    "deepcache": SystemConfig(sampling={"reuse_interval": 3}),
    "fp8": SystemConfig(model={"storage": "float8"}),
}
"""The model before and after training, the trained baselines of the paper's Table 1, the training-free ones with their
authors' usual settings, and what makes sampling cheaper at some price, which is to be measured before it is paid.

The trained ones are the pipeline's own training but for the objective, and learn from the same preference data: `dpo`
sees the set preferences pair by pair, as `popalign export preferences` hands them to public Diffusion-DPO trainers.
`dpo+popalign` has the model of `dpo` for its start and reference, and the same data again. A preset overrides them
where its model wants another beta.
"""


def find_system(config: PipelineConfig, name: str) -> SystemConfig:
    """A system by its name; the configuration's own come before those that ship.

    Raises:
        ConfigError: When there is none.
    """
    known = SYSTEMS | config.systems
    if name not in known:
        raise ConfigError(
            f"there is no system {name!r}; {choose_from(name, known)}, or describe it in [systems.{name}]"
        )
    return known[name]


def configure_system(config: PipelineConfig, name: str) -> PipelineConfig:
    """The configuration that a system samples its evaluation images with.

    Raises:
        ConfigError: When there is no such system, or what it changes does not fit.
    """
    system = find_system(config, name)
    return _overlaid(config, name, {"sampling": system.sampling, "model": _model_changes(config, name)})


def configure_training(config: PipelineConfig, name: str) -> PipelineConfig:
    """The configuration that a trained system is trained with, from its preference data on.

    What a system changes of the sampling is for its evaluation images alone: systems share the preference data unless
    their model or preferences differ.

    Raises:
        ConfigError: As `configure_system`.
    """
    system = find_system(config, name)
    changes = {"preferences": system.preferences, "training": system.training or {}}
    return _overlaid(config, name, changes | {"model": _model_changes(config, name)})


def configure_replicate(config: PipelineConfig, replicate: int) -> PipelineConfig:
    """The same with other seeds for the evaluation images and for training; 0 is the configuration itself."""
    evaluation = config.evaluation.model_copy(update={"seed": config.evaluation.seed + replicate})
    training = config.training.model_copy(update={"seed": config.training.seed + replicate})
    return config.model_copy(update={"evaluation": evaluation, "training": training})


def starts(config: PipelineConfig, name: str) -> list[str]:
    """The systems that a system's training starts from, the nearest first; the base model when there are none.

    Raises:
        ConfigError: When there is no such system, or they go round in a circle.
    """
    found, start = list[str](), find_system(config, name).start
    while start is not None:
        if start in (name, *found):
            raise ConfigError(
                f"systems {', '.join([name, *found])} form a cycle by their `start`; choose another start"
            )
        found.append(start)
        start = find_system(config, start).start
    return found


def _model_changes(config: PipelineConfig, name: str) -> dict[str, Any]:
    """What a system and those it starts from change of the base model."""
    changes: dict[str, Any] = {}
    for each in reversed([name, *starts(config, name)]):
        changes = merge_documents(changes, find_system(config, each).model)
    return changes


def _overlaid(config: PipelineConfig, name: str, changes: dict[str, Any]) -> PipelineConfig:
    return parse_config(merge_documents(config.model_dump(exclude_none=True), changes), origin=f"system {name!r}")
