"""Stage `imported`: images of the evaluation prompts, made elsewhere, in place of a sample; shards survive a kill.

The artifact goes wherever `sample` goes when a system is measured. It has no latents, so nothing trains on it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pandas as pd

from popalign_core.config import PipelineConfig, RuntimeConfig, SamplingConfig
from popalign_core.errors import InputError
from popalign_core.ids import content_id
from storage.store import ArtifactRef, Build, Store
from tasks.common.image_tables import NO_SEED, drops_table, read_images
from tasks.common.stage_object import Inputs, Progress, Stage, View, counted, find_published, keep_fields
from tasks.stages.sample import SPLITS

if TYPE_CHECKING:
    from popalign_core.prompts.matching import Match
    from storage.formats.external_images import ImageLabel

_COLUMNS = ("image_id", "prompt_id", "index", "image")
_NAMED_IN_ERRORS = 3


class ImportedView(View):
    """The images, and the size they are brought to: every system is measured on images of one size.

    Attributes:
        sources: As `storage.formats.external_images.open_external_images` gives them.
        sampling: The size alone.
    """

    sources: tuple[Any, ...]
    sampling: SamplingConfig

    @classmethod
    def of(cls, config: PipelineConfig, inputs: Mapping[str, ArtifactRef], *, sources: Sequence[str | Path]) -> Self:
        """Of folders and Parquet files as `storage.formats.external_images` describes them.

        Raises:
            InputError: When a source cannot be read.
        """
        from storage.formats.external_images import open_external_images

        return cls(
            sources=tuple(open_external_images(sources)), sampling=keep_fields(config.sampling, "width", "height")
        )

    def hashed(self) -> dict[str, Any]:
        """The images' bytes, what names their prompts and how many files are none; no path."""
        return {"pictures": [source.sha256 for source in self.sources], "sampling": _size(self.sampling)}


def find_imported(store: Store, key: str, prompts: ArtifactRef, config: PipelineConfig) -> ArtifactRef:
    """The published images of a key, if they were made for these prompts and are of the configured size.

    Raises:
        InputError: When there is no such artifact, or it was imported for other prompts or another size.
    """
    ref = find_published(
        store, import_images.name, key, what="imported images", made_by="popalign import images PATH..."
    )
    made = store.manifest(ref).payload
    for what, found, asked in (
        ("prompts", made["inputs"]["prompts"], prompts.key),
        ("image size", made["config"]["sampling"], _size(config.sampling)),
    ):
        if found != asked:
            raise InputError(
                f"{ref.key} was imported for the {what} {found}, this configuration has {asked}; "
                "give the --preset, --config and --set of the import, or import again with these"
            )
    return ref


def count_prompts(store: Store, prompts: ArtifactRef, imported: ArtifactRef) -> tuple[int, int]:
    """How many evaluation prompts have images, and how many there are."""
    return read_images(store, imported)["prompt_id"].nunique(), len(_evaluated(store, prompts))


def _size(sampling: SamplingConfig) -> dict[str, int]:
    return {"width": sampling.width, "height": sampling.height}


def _evaluated(store: Store, prompts: ArtifactRef) -> pd.DataFrame:
    table = store.read_table(prompts, "prompts")
    return table[table["split"] == SPLITS["evaluation"]]


def _fill(view: ImportedView, inputs: Inputs, build: Build, runtime: RuntimeConfig, on_progress: Progress) -> None:
    """Write tables `images`, as the sampler's but without latents and seeds, and `drops`.

    Raises:
        InputError: When no image can be used.
    """
    from popalign_core.models.pixels import UNDECODABLE
    from popalign_core.prompts.matching import match_prompts

    prompts = _evaluated(inputs.store, inputs["prompts"])
    labels = [label for source in view.sources for label in source.labels]
    matches = match_prompts(labels, prompts)
    usable = [(number, prompt_id) for number, (prompt_id, _) in enumerate(matches) if prompt_id]
    _fit_shards(build, view, usable, runtime, on_progress)
    n_images = build.sum_counts().get("images", 0)
    drops = Counter(reason for _, reason in matches if reason) + Counter({UNDECODABLE: len(usable) - n_images})
    for source in view.sources:
        drops.update(source.left_out)
    if not n_images:
        raise InputError(_nothing_usable(labels, matches, drops, prompts))
    build.write_table("drops", drops_table(build.ref.stage, drops))


def _fit_shards(
    build: Build,
    view: ImportedView,
    usable: Sequence[tuple[int, str]],
    runtime: RuntimeConfig,
    on_progress: Progress,
) -> None:
    """Write table `images`; of finished shards only what they hold of each prompt is read again."""
    from storage.formats.external_images import iter_external_images

    size, n_before = runtime.shard_size, Counter[str]()
    build.use_shard_size(size)
    shards = [usable[start : start + size] for start in range(0, len(usable), size)]
    todo = {number for number in range(len(shards)) if not build.shard_done(number)}
    encoded = iter_external_images(view.sources, {place for number in todo for place, _ in shards[number]})
    done = sum(len(shard) for number, shard in enumerate(shards) if number not in todo)
    on_progress(done, len(usable))
    for number, shard in enumerate(shards):
        if number not in todo:
            n_before.update(build.read_table("images", number)["prompt_id"])
            continue
        given = zip((prompt_id for _, prompt_id in shard), islice(encoded, len(shard)), strict=True)
        images = _images(build.ref, counted(given, on_progress, done, len(usable)), n_before, view.sampling)
        build.write_table("images", images, shard=number)
        build.mark_shard(number, {"images": len(images)})
        done += len(shard)


def _images(
    ref: ArtifactRef, encoded: Iterable[tuple[str, bytes]], n_before: Counter[str], sampling: SamplingConfig
) -> pd.DataFrame:
    """Table `images` of the images that can be decoded; `n_before` counts them, prompt by prompt, as it goes on."""
    from popalign_core.models.pixels import fit_image
    from storage.formats.images import encode_png, image_column

    rows = []
    for prompt_id, data in encoded:
        pixels = fit_image(data, sampling.width, sampling.height)
        if pixels is not None:
            index = n_before[prompt_id]
            n_before[prompt_id] += 1
            image_id = content_id("image", ref.key, prompt_id, index)
            rows.append((image_id, prompt_id, index, *image_column([encode_png(pixels)])))
    images = pd.DataFrame(rows, columns=list(_COLUMNS)).assign(**_size(sampling))
    return images.assign(seed=NO_SEED, latents_file="", latents_row=-1)


def _nothing_usable(
    labels: "Sequence[ImageLabel]", matches: "Sequence[Match]", drops: Counter[str], prompts: pd.DataFrame
) -> str:
    from popalign_core.prompts.matching import UNMATCHED

    strange = dict.fromkeys(label.name for label, match in zip(labels, matches, strict=True) if match[1] == UNMATCHED)
    few = [
        ", ".join(repr(name) for name in names[:_NAMED_IN_ERRORS]) for names in (list(strange), list(prompts["text"]))
    ]
    named = f"they name {few[0]}; " if strange else ""
    return (
        f"none of the {len(labels)} image(s) can be used: {dict(drops)}; {named}evaluation prompts are {few[1]}; "
        "name each image's by prompt_id or by its exact text"
    )


import_images = Stage("imported", "2", ImportedView.of, _fill, inputs=("prompts",))
