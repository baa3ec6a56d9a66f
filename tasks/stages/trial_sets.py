"""Stage `trial_sets`: a pair of sets by order alone, so that a trial can train whatever its images show."""

from collections.abc import Mapping
from typing import Any, Self

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import InputError
from storage.store import ArtifactRef, Build
from tasks.common.image_tables import drops_table, read_images
from tasks.common.stage_object import Inputs, Progress, Stage, View


class TrialSetsView(View):
    """Nothing: what the images show does not matter."""

    @classmethod
    def of(cls, config: PipelineConfig, inputs: Mapping[str, ArtifactRef]) -> Self:
        """Of any configuration."""
        return cls()

    def hashed(self) -> dict[str, Any]:
        """Nothing."""
        return {}


def _fill(view: TrialSetsView, inputs: Inputs, build: Build, runtime: RuntimeConfig, on_progress: Progress) -> None:
    """Write tables `preferences`, `retained` and `drops`: the first half of the people are preferred to the last.

    Raises:
        InputError: When there are fewer than two images of people.
    """
    import numpy as np
    import pandas as pd

    from popalign_core.preferences.retained import retained_images

    prompts, images = inputs.read_table("prompts", "prompts"), read_images(inputs.store, inputs["sample"])
    kinds = images["prompt_id"].map(prompts.set_index("prompt_id")["kind"])
    # with an identity in the caption first: preferred, they are what retention holds
    people = [*images.loc[kinds == "specific", "image_id"], *images.loc[kinds == "neutral", "image_id"]]
    n, neutral = len(people) // 2, prompts[(prompts["kind"] == "neutral") & (prompts["split"] == "train")]
    if n == 0 or neutral.empty:
        raise InputError(f"{len(people)} image(s) of people and {len(neutral)} prompt(s): a trial needs two and one")
    sets = pd.DataFrame(
        {
            "set_id": "trial",
            "prompt_id": neutral["prompt_id"].iloc[0],
            "role": np.repeat(["preferred", "dispreferred"], n),
            "image_id": [*people[:n], *people[-n:]],
            "slot": np.tile(np.arange(n, dtype=np.int32), 2),
            "target": pd.Series([{}] * (2 * n), dtype=object),
            "discrepancy": 0.0,
            "balance": 1.0,
        }
    )
    build.write_table("preferences", sets)
    build.write_table("retained", retained_images(prompts, [images], sets))
    build.write_table("drops", drops_table(build.ref.stage, {}))
    on_progress(1, 1)


pair_images = Stage("trial_sets", "1", TrialSetsView.of, _fill, inputs=("prompts", "sample"))
