"""Stage `pairs`: preferences between two pictures, made elsewhere, become what training reads; shards survive a kill.

One artifact stands for three of the pipeline's: `prompts` (the captions), `sample` (latents, embeddings) and
`preferences` (each comparison a pair of sets of one picture). The pictures themselves are not kept.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import InputError
from popalign_core.ids import content_id
from storage.store import ArtifactRef, Build, Store
from tasks.encoding import Encoder, caption_id, encode_shards, encoding, find_encoded, write_rest
from tasks.stage import Progress, Request, no_progress, produce, set_threads
from tasks.tables import NO_SEED

if TYPE_CHECKING:
    from storage.foreign import RowFile
    from storage.pairs import PairRow

STAGE = "pairs"
VERSION = "1"


def request(config: PipelineConfig, files: "Sequence[RowFile]") -> Request:
    """What the key depends on: the files' bytes, wherever they lie and in whatever order, and what encodes them."""
    return Request(STAGE, VERSION, {"files": [file.sha256 for file in files]} | encoding(config), {})


def import_pairs(
    files: Sequence[str | Path],
    *,
    config: PipelineConfig,
    runtime: RuntimeConfig,
    on_progress: Progress = no_progress,
) -> ArtifactRef:
    """Publish tables `prompts`, `images`, `preferences`, `retained` (empty) and `drops`, `latents-*.safetensors` and
    `embeddings.safetensors`.

    All pictures are brought to the configured size, so training conditions SDXL on that size and an uncropped picture
    (`time_ids`), just as the sampler will: nothing of the pictures' own sizes is kept.

    Args:
        files: Parquet files as `storage.pairs` describes them.
        config: Of the pipeline; its base model and its sampling size encode.
        runtime: Store, device, batch size, shard size.
        on_progress: Told how many comparisons are done.

    Raises:
        InputError: When a file is no Parquet file of pairs, or no comparison in them can be used.
        MissingWeightsError: When the model's weights are absent.
    """
    from storage.pairs import open_pairs

    opened = open_pairs(files)

    def fill(store: Store, build: Build, ref: ArtifactRef) -> None:
        _fill(build, ref, opened, config, runtime, on_progress)

    return produce(request(config, opened), runtime, fill)


def find_pairs(store: Store, key: str, config: PipelineConfig) -> ArtifactRef:
    """The published pairs of a key, if the configuration can train on them.

    Raises:
        InputError: When there is no such artifact, or another model or size encoded it.
    """
    return find_encoded(store, STAGE, key, config, what="pairs", made_by="popalign import pairs FILE...")


def _fill(
    build: Build,
    ref: ArtifactRef,
    files: "Sequence[RowFile]",
    config: PipelineConfig,
    runtime: RuntimeConfig,
    on_progress: Progress,
) -> None:
    from popalign_core.sampling.models import load_pipeline, resolve_device
    from storage.pairs import iter_captions

    set_threads(runtime)
    pipeline = load_pipeline(config.model, device=resolve_device(runtime.device))
    encoder = _encoder(ref, files)
    dropped = encode_shards(build, encoder, pipeline.vae, config, runtime, on_progress)
    if dropped.total() == encoder.n_rows:
        reasons = dict(sorted(dropped.items()))
        raise InputError(
            f"none of the {encoder.n_rows} comparison(s) can be used: {reasons}; a preference needs label_0 0 or 1"
        )
    used = set(build.read_table("preferences")["prompt_id"])
    write_rest(build, STAGE, pipeline, iter_captions(files), used, dropped, runtime.batch_size)


def _encoder(ref: ArtifactRef, files: "Sequence[RowFile]") -> "Encoder[PairRow]":
    from popalign_core.preferences.pairs import pair_fault
    from storage.pairs import iter_pairs

    return Encoder(
        n_rows=sum(file.n_rows for file in files),
        n_pictures=2,
        unit="pairs",
        chunks=lambda n_rows, wanted: iter_pairs(files, n_rows, wanted),
        fault=lambda row: pair_fault(row.caption, row.label, row.pictures),
        tables=lambda rows: dict(zip(("images", "preferences"), _records(ref, rows), strict=True)),
    )


def _records(ref: ArtifactRef, rows: "Sequence[PairRow]") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Table `images` without size and latents, and table `preferences`; two lines a row, picture 0 first.

    The key stands for the files' content and the row's number for its place in that: ids of content.
    """
    from popalign_core.preferences.pairs import PREFERRED_SIDE

    images, members = [], []
    for row in rows:
        assert row.caption is not None  # pair_fault
        assert row.label is not None
        prompt_id, preferred = caption_id(row.caption), PREFERRED_SIDE[row.label]
        for side in (0, 1):
            image_id = content_id("image", ref.key, row.number, side)
            index = 2 * row.number + side
            images.append({"image_id": image_id, "prompt_id": prompt_id, "index": index, "seed": NO_SEED})
            role = "preferred" if side == preferred else "dispreferred"
            pair = {"set_id": content_id("set-pair", ref.key, row.number), "prompt_id": prompt_id, "role": role}
            members.append(pair | {"image_id": image_id, "slot": 0})
    ids = ["image_id", "prompt_id", "index", "seed"]
    sets = pd.DataFrame(members, columns=["set_id", "prompt_id", "role", "image_id", "slot"])
    # one picture aims at no distribution
    target = pd.Series([{} for _ in members], index=sets.index, dtype=object)
    return pd.DataFrame(images, columns=ids), sets.assign(target=target, discrepancy=0.0, balance=0.0)
