"""What training may read of the configuration."""

from collections.abc import Mapping
from typing import Any, Self

from popalign_core.config import AttributesConfig, Axis, ModelConfig, PipelineConfig, SamplingConfig, TrainingConfig
from popalign_core.errors import ConfigError
from storage.store import ArtifactRef
from tasks.common.measuring import base_model, clip_folder, folder_digest, sampling_told, unhashed_base
from tasks.common.stage_object import View, drop_fields, keep_fields
from tasks.stages.attributes import classifiers_in_use, hashed_classifier

_NOT_PROBED = ("seed", "sdedit", "inject_identity", "fair_diffusion", "safety_checker", "watermark")
"""Of the sampler: the probe has seeds of its own, and looks at what the model samples by itself."""


class TrainView(View):
    """What a training depends on in addition to its inputs.

    Attributes:
        training: Objective, weights, optimiser.
        model: The base model; where training starts from a trained one, that one's, by its hash.
        has_start: Whether it starts from a trained model.
        sampling: The size of the images, the guidance scale where the model is told it; with a probe how it samples.
        axes: Classes and targets; none where no class is read (pairs made elsewhere, without a probe).
        attributes: Who reads the probe's images; None without a probe.
        number: Of the round, from 1; 0 where training is offline.
    """

    training: TrainingConfig
    model: ModelConfig
    has_start: bool
    sampling: SamplingConfig
    axes: tuple[Axis, ...]
    attributes: AttributesConfig | None
    number: int = 0

    @classmethod
    def of(cls, config: PipelineConfig, inputs: Mapping[str, ArtifactRef], *, number: int = 0) -> Self:
        """Of a training on these inputs, or of a round of one.

        Raises:
            ConfigError: When the weights are kept in a way that cannot be trained, or the normaliser has nothing to
                look at: here, so that no run samples images first.
        """
        _refuse(config, is_round=number > 0)
        probe, has_start = config.training.probe is not None, "start" in inputs
        axes = config.identity_axes if probe or "attributes" in inputs else ()
        return cls(
            training=config.training,
            model=drop_fields(config.model, "storage") if has_start else base_model(config.model),
            has_start=has_start,
            sampling=drop_fields(config.sampling, *_NOT_PROBED) if probe else sampling_told(config),
            axes=tuple(keep_fields(axis, "name", "classes", "target", "of") for axis in axes),
            attributes=classifiers_in_use(config.attributes) if probe else None,
            number=number,
        )

    @property
    def last_step(self) -> int:
        """The step that it ends with; steps are counted over all rounds."""
        return self.training.n_steps * max(1, self.number)

    @property
    def is_followed(self) -> bool:
        """Whether another round goes on from this one."""
        return 0 < self.number < self.training.rounds

    def hashed(self) -> dict[str, Any]:
        """Weights by their content; a start is an input."""
        from popalign_core.models.loading import model_hash

        fields = {"name", "classes", "target", "of"}
        hashed: dict[str, Any] = {
            "training": self.training.model_dump(mode="json"),
            "model": {"dtype": self.model.dtype} | ({} if self.has_start else {"hash": model_hash(self.model)}),
            "sampling": self.sampling.model_dump(mode="json"),
            "axes": [axis.model_dump(mode="json", include=fields) for axis in self.axes],
        }
        if self.attributes is not None:
            hashed["probe"] = hashed_classifier(self.attributes) | {"clip": folder_digest(clip_folder())}
        if self.number:  # absent from the keys of all others
            hashed["round"] = self.number
        return hashed

    def unhashed(self) -> dict[str, str]:
        """Where the base model of a start lies."""
        return unhashed_base() if self.has_start else {}


def _refuse(config: PipelineConfig, *, is_round: bool) -> None:
    if config.training.is_on_policy and not is_round:
        raise ConfigError(
            f"training.objective {config.training.objective!r} with rounds {config.training.rounds} trains on images "
            "that the model samples itself, and pairs made elsewhere are none; set rounds to 1, and an objective on "
            "pairs"
        )
    if config.model.storage is not None:
        raise ConfigError(
            f"model.storage is {config.model.storage!r}, which is for sampling alone; leave it out to train, and "
            "compare with a system that sets it, such as fp8"
        )
    if config.training.uses_anchors and not (config.prompts.retained_subjects or config.prompts.retained_lists):
        raise ConfigError(
            "training.normaliser is 'anchor', and there is no prompt to take it from; give prompts.retained_subjects "
            "or retained_lists, or choose batch, ema or zero"
        )
