"""Stage `imported`: pictures of the evaluation prompts, drawn elsewhere, in place of a sample; shards survive a kill.

The artifact goes wherever `sample` goes when a system is measured. It has no latents, so nothing trains on it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import InputError
from popalign_core.ids import content_id
from storage.store import ArtifactRef, Build, Store
from tasks.sample import SPLITS
from tasks.stage import Progress, Request, counted, find_published, no_progress, produce
from tasks.tables import NO_SEED, drops_table, read_images

if TYPE_CHECKING:
    from popalign_core.prompts.matching import Match
    from storage.pictures import PictureLabel, PictureSource

STAGE = "imported"
VERSION = "1"

_COLUMNS = ("image_id", "prompt_id", "index", "image")
_NAMED_IN_ERRORS = 3


def request(config: PipelineConfig, *, prompts: ArtifactRef, sources: "Sequence[PictureSource]") -> Request:
    """What the key depends on: the pictures' bytes and what names their prompts, the size, the prompts; no path."""
    return Request(
        STAGE,
        VERSION,
        {"pictures": [source.sha256 for source in sources], "sampling": _size(config)},
        {"prompts": prompts.key},
    )


def import_images(
    prompts: ArtifactRef,
    sources: Sequence[str | Path],
    *,
    config: PipelineConfig,
    runtime: RuntimeConfig,
    on_progress: Progress = no_progress,
) -> ArtifactRef:
    """Publish tables `images`, as the sampler's but without latents and seeds, and `drops`.

    All pictures are brought to the configured size, so every system is measured on pictures of one size.

    Args:
        prompts: Artifact with all prompts; pictures of those of the evaluation are kept.
        sources: Folders and Parquet files as `storage.pictures` describes them.
        config: Of the pipeline; its sampling size is the pictures'.
        runtime: Store, shard size.
        on_progress: Told how many pictures are done.

    Raises:
        InputError: When a source cannot be read, or no picture can be used.
    """
    from storage.pictures import open_pictures

    opened = open_pictures(sources)

    def fill(store: Store, build: Build, ref: ArtifactRef) -> None:
        _fill(build, opened, _evaluated(store, prompts), config, runtime, on_progress)

    return produce(request(config, prompts=prompts, sources=opened), runtime, fill)


def find_imported(store: Store, key: str, prompts: ArtifactRef, config: PipelineConfig) -> ArtifactRef:
    """The published pictures of a key, if they were drawn for these prompts and are of the configured size.

    Raises:
        InputError: When there is no such artifact, or it was imported for other prompts or another size.
    """
    ref = find_published(store, STAGE, key, what="imported images", made_by="popalign import images PATH...")
    made = store.manifest(ref).payload
    for what, found, asked in (
        ("prompts", made["inputs"]["prompts"], prompts.key),
        ("picture size", made["config"]["sampling"], _size(config)),
    ):
        if found != asked:
            raise InputError(
                f"{ref.key} was imported for the {what} {found}, this configuration has {asked}; "
                "give the --preset, --config and --set of the import, or import again with these"
            )
    return ref


def count_prompts(store: Store, prompts: ArtifactRef, imported: ArtifactRef) -> tuple[int, int]:
    """How many evaluation prompts have pictures, and how many there are."""
    return read_images(store, imported)["prompt_id"].nunique(), len(_evaluated(store, prompts))


def _size(config: PipelineConfig) -> dict[str, int]:
    return {"width": config.sampling.width, "height": config.sampling.height}


def _evaluated(store: Store, prompts: ArtifactRef) -> pd.DataFrame:
    table = store.read_table(prompts, "prompts")
    return table[table["split"] == SPLITS["evaluation"]]


def _fill(
    build: Build,
    sources: "Sequence[PictureSource]",
    prompts: pd.DataFrame,
    config: PipelineConfig,
    runtime: RuntimeConfig,
    on_progress: Progress,
) -> None:
    from popalign_core.pictures import UNDECODABLE
    from popalign_core.prompts.matching import match_prompts

    labels = [label for source in sources for label in source.labels]
    matches = match_prompts(labels, prompts)
    usable = [(number, prompt_id) for number, (prompt_id, _) in enumerate(matches) if prompt_id]
    _fit_shards(build, sources, usable, config, runtime, on_progress)
    n_images = build.sum_counts().get("images", 0)
    drops = Counter(reason for _, reason in matches if reason) + Counter({UNDECODABLE: len(usable) - n_images})
    if not n_images:
        raise InputError(_nothing_usable(labels, matches, drops, prompts))
    build.write_table("drops", drops_table(STAGE, drops))


def _fit_shards(
    build: Build,
    sources: "Sequence[PictureSource]",
    usable: Sequence[tuple[int, str]],
    config: PipelineConfig,
    runtime: RuntimeConfig,
    on_progress: Progress,
) -> None:
    """Write table `images`; of finished shards only what they hold of each prompt is read again."""
    from storage.pictures import iter_pictures

    size, n_before = runtime.shard_size, Counter[str]()
    build.use_shard_size(size)
    shards = [usable[start : start + size] for start in range(0, len(usable), size)]
    todo = {number for number in range(len(shards)) if not build.shard_done(number)}
    pictures = iter_pictures(sources, {place for number in todo for place, _ in shards[number]})
    done = sum(len(shard) for number, shard in enumerate(shards) if number not in todo)
    on_progress(done, len(usable))
    for number, shard in enumerate(shards):
        if number not in todo:
            n_before.update(build.read_table("images", number)["prompt_id"])
            continue
        given = zip((prompt_id for _, prompt_id in shard), islice(pictures, len(shard)), strict=True)
        images = _images(build.ref, counted(given, on_progress, done, len(usable)), n_before, config)
        build.write_table("images", images, shard=number)
        build.mark_shard(number, {"images": len(images)})
        done += len(shard)


def _images(
    ref: ArtifactRef, pictures: Iterable[tuple[str, bytes]], n_before: Counter[str], config: PipelineConfig
) -> pd.DataFrame:
    """Table `images` of the pictures that can be decoded; `n_before` counts them, prompt by prompt, as it goes on."""
    from popalign_core.pictures import fit_picture
    from storage.images import encode_png, image_column

    rows = []
    for prompt_id, data in pictures:
        pixels = fit_picture(data, config.sampling.width, config.sampling.height)
        if pixels is not None:
            index = n_before[prompt_id]
            n_before[prompt_id] += 1
            image_id = content_id("image", ref.key, prompt_id, index)
            rows.append((image_id, prompt_id, index, *image_column([encode_png(pixels)])))
    images = pd.DataFrame(rows, columns=list(_COLUMNS)).assign(**_size(config))
    return images.assign(seed=NO_SEED, latents_file="", latents_row=-1)


def _nothing_usable(
    labels: "Sequence[PictureLabel]", matches: "Sequence[Match]", drops: Counter[str], prompts: pd.DataFrame
) -> str:
    from popalign_core.prompts.matching import UNMATCHED

    strange = dict.fromkeys(label.name for label, match in zip(labels, matches, strict=True) if match[1] == UNMATCHED)
    few = [
        ", ".join(repr(name) for name in names[:_NAMED_IN_ERRORS]) for names in (list(strange), list(prompts["text"]))
    ]
    named = f"they name {few[0]}; " if strange else ""
    return (
        f"none of the {len(labels)} picture(s) can be used: {dict(drops)}; {named}evaluation prompts are {few[1]}; "
        "name each picture's by prompt_id or by its exact text"
    )
