"""Stage `preferences`: pairs of sets, one near the target population and one as the model samples it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Self

from popalign_core.config import Axis, PipelineConfig, PreferencesConfig, RuntimeConfig
from storage.store import ArtifactRef, Build, Store
from tasks.common.image_tables import seen_classes
from tasks.common.stage_object import Inputs, Progress, Stage, View, drop_fields
from tasks.studies.curation import find_curated

if TYPE_CHECKING:
    import pandas as pd

_LATER = {"strategy", "target_of", "mcmc_steps", "curated"}
"""Fields that came after the first artifacts: at their defaults they are left out of the key."""

_PIECE_ROWS = 100_000
"""Rows of `attributes` that are joined at once."""


class PreferencesView(View):
    """How sets are made, and the targets of the axes."""

    preferences: PreferencesConfig
    axes: tuple[Axis, ...]

    @classmethod
    def of(cls, config: PipelineConfig, inputs: Mapping[str, ArtifactRef]) -> Self:
        """Of the axes that sets balance."""
        axes = tuple(drop_fields(axis, "words") for axis in config.identity_axes)
        return cls(preferences=config.preferences, axes=axes)

    def hashed(self) -> dict[str, Any]:
        """All of it."""
        fields, default = self.preferences.model_dump(mode="json"), PreferencesConfig().model_dump(mode="json")
        return {
            "preferences": {
                name: value for name, value in fields.items() if name not in _LATER or value != default[name]
            },
            "axes": [axis.model_dump(mode="json", exclude={"words"}) for axis in self.axes],
        }


def _fill(view: PreferencesView, inputs: Inputs, build: Build, runtime: RuntimeConfig, on_progress: Progress) -> None:
    """Write tables `preferences`, `retained` and `drops`.

    The tables it reads are joined a piece at a time: the memory it takes hardly grows with them.

    Raises:
        InputError: When no prompt has images enough for a pair of sets, or there are no curated sets of the key.
    """
    from popalign_core.preferences.retained import retained_images
    from popalign_core.preferences.set_pairs import iter_sets, tabulate_set_drops

    table, drops = inputs.read_table("prompts", "prompts"), Counter[str]()
    pieces = _pieces(inputs.store, inputs["sample"], inputs["attributes"], on_progress)
    if view.preferences.curated is not None:
        curated = inputs.store.read_table(find_curated(inputs.store, view.preferences.curated), "curated")
        sets = iter([_human_sets(curated, pieces, view, drops)])
    else:
        sets = iter_sets(table, pieces, view.axes, view.preferences, drops)
    build.write_parts("preferences", sets)
    chosen = build.read_table("preferences", columns=["image_id", "role"])
    images = inputs.store.iter_table(inputs["sample"], "images", _IMAGE_COLUMNS)
    build.write_table("retained", retained_images(table, images, chosen))
    build.write_table("drops", tabulate_set_drops(drops))


def _human_sets(
    curated: "pd.DataFrame",
    pieces: "Iterable[tuple[pd.DataFrame, pd.DataFrame]]",
    view: PreferencesView,
    drops: Counter[str],
) -> "pd.DataFrame":
    """The sets that people made; only images of them and of their prompts stay in memory."""
    import pandas as pd

    from popalign_core.review.human_sets import pair_human_sets

    images, seen = [], dict[str, dict[str, str]]()
    for shown, read in pieces:
        of_sets = shown["prompt_id"].isin(curated["prompt_id"]) | shown["image_id"].isin(curated["image_id"])
        images.append(shown[of_sets])
        seen |= seen_classes(read[read["image_id"].isin(images[-1]["image_id"])])
    chosen = pd.concat(images, ignore_index=True)
    return pair_human_sets(curated, chosen, seen, view.axes, view.preferences.seed, drops)


_IMAGE_COLUMNS = ("image_id", "prompt_id")
_ATTRIBUTE_COLUMNS = ("image_id", "axis", "class", "drop_reason")


def _pieces(
    store: Store, sample: ArtifactRef, attributes: ArtifactRef, on_progress: Progress
) -> "Iterator[tuple[pd.DataFrame, pd.DataFrame]]":
    """Tables `images` and `attributes` in pieces of whole shards, which cover each other; else all at once."""
    import pandas as pd

    images: list[pd.DataFrame] = []
    readings: list[pd.DataFrame] = []
    done, total = 0, store.manifest(sample).rows["images"]
    is_parallel = _n_shards(store, sample, "images") == _n_shards(store, attributes, "attributes")
    shards = zip_longest(
        store.iter_table(sample, "images", _IMAGE_COLUMNS),
        store.iter_table(attributes, "attributes", _ATTRIBUTE_COLUMNS),
    )
    for shown, read in shards:
        images += [] if shown is None else [shown]
        readings += [] if read is None else [read]
        if is_parallel and sum(map(len, readings)) >= _PIECE_ROWS:
            done += sum(map(len, images))
            yield pd.concat(images, ignore_index=True), pd.concat(readings, ignore_index=True)
            images, readings = [], []
            on_progress(done, total)
    if images:
        yield pd.concat(images, ignore_index=True), pd.concat(readings, ignore_index=True)
    on_progress(total, total)


def _n_shards(store: Store, ref: ArtifactRef, table: str) -> int:
    """Stage `attributes` writes one for each shard of the images it reads."""
    from storage.formats.parquet import group_tables

    return len(group_tables(store.manifest(ref).files).get(table, []))


build_preferences = Stage("preferences", "1", PreferencesView.of, _fill, inputs=("prompts", "sample", "attributes"))
