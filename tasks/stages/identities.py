"""Stage `identities`: one specific child of every neutral prompt for each cell of the axes."""

from collections.abc import Mapping
from typing import Any, Self

from popalign_core.config import Axis, PipelineConfig, RuntimeConfig
from storage.store import ArtifactRef, Build
from tasks.common.stage_object import Inputs, Progress, Stage, View, drop_fields


class IdentitiesView(View):
    """The axes' words and how they join a subject; targets are not part of it."""

    axes: tuple[Axis, ...]

    @classmethod
    def of(cls, config: PipelineConfig, inputs: Mapping[str, ArtifactRef]) -> Self:
        """Of the axes that prompts vary over."""
        axes = tuple(drop_fields(axis, "target", "of") for axis in config.identity_axes)
        return cls(axes=axes)

    def hashed(self) -> dict[str, Any]:
        """All of it."""
        axes = [axis.model_dump(mode="json", exclude={"target"}) for axis in self.axes]
        return {"axes": axes}


def _fill(view: IdentitiesView, inputs: Inputs, build: Build, runtime: RuntimeConfig, on_progress: Progress) -> None:
    """Write table `prompts`: the input's rows and their specific children."""
    from popalign_core.identities.augment import augment_prompts

    build.write_table("prompts", augment_prompts(inputs.read_table("prompts", "prompts"), view.axes))
    on_progress(1, 1)


add_identities = Stage("identities", "2", IdentitiesView.of, _fill, inputs=("prompts",))
