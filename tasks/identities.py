"""Stage `identities`: one specific child of every neutral prompt for each cell of the axes."""

from popalign_core.config import PipelineConfig, RuntimeConfig
from storage.store import ArtifactRef, Build, Store
from tasks.stage import Progress, Request, no_progress, produce

STAGE = "identities"
VERSION = "1"


def request(config: PipelineConfig, *, prompts: ArtifactRef) -> Request:
    """What the key depends on; targets are not part of it."""
    axes = [axis.model_dump(mode="json", exclude={"target", "of"}) for axis in config.identity_axes]
    return Request(STAGE, VERSION, {"axes": axes, "carrier": config.prompts.carrier}, {"prompts": prompts.key})


def add_identities(
    prompts: ArtifactRef, *, config: PipelineConfig, runtime: RuntimeConfig, on_progress: Progress = no_progress
) -> ArtifactRef:
    """Publish table `prompts`: the input's rows and their specific children."""

    def fill(store: Store, build: Build, ref: ArtifactRef) -> None:
        from popalign_core.identities.augment import augment_prompts

        table = store.read_table(prompts, "prompts")
        build.write_table("prompts", augment_prompts(table, config.identity_axes, config.prompts.carrier))
        on_progress(1, 1)

    return produce(request(config, prompts=prompts), runtime, fill)
