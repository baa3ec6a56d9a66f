"""Stage `pairs`: preferences between two pictures, made elsewhere, become what training reads; shards survive a kill.

One artifact stands for three of the pipeline's: `prompts` (the captions), `sample` (latents, embeddings) and
`preferences` (each comparison a pair of sets of one picture). The pictures themselves are not kept.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import InputError
from popalign_core.ids import content_id
from storage.store import ArtifactRef, Build, Store
from tasks.common.image_tables import NO_SEED
from tasks.common.stage_object import Inputs, Progress, Stage, set_threads
from tasks.stages.encoding import Encoder, EncodingView, caption_id, encode_shards, find_encoded, write_rest

if TYPE_CHECKING:
    from storage.formats.external_files import RowFile
    from storage.formats.pick_a_pic import PairRow


def _view(config: PipelineConfig, inputs: Mapping[str, ArtifactRef], *, files: Sequence[str | Path]) -> EncodingView:
    """Of Parquet files as `storage.formats.pick_a_pic` describes them.

    Raises:
        InputError: When one is no such file.
    """
    from storage.formats.pick_a_pic import open_pairs

    return EncodingView.of(config, open_pairs(files))


def find_pairs(store: Store, key: str, config: PipelineConfig) -> ArtifactRef:
    """The published pairs of a key, if the configuration can train on them.

    Raises:
        InputError: When there is no such artifact, or another model or size encoded it.
    """
    return find_encoded(store, import_pairs.name, key, config, what="pairs", made_by="popalign import pairs FILE...")


def _fill(view: EncodingView, inputs: Inputs, build: Build, runtime: RuntimeConfig, on_progress: Progress) -> None:
    """Write tables `prompts`, `images`, `preferences`, `retained` (empty) and `drops`, `latents-*.safetensors` and
    `embeddings.safetensors`.

    All pictures are brought to the configured size, so training conditions SDXL on that size and an uncropped picture
    (`time_ids`), just as the sampler will: nothing of the pictures' own sizes is kept.

    Raises:
        InputError: When no comparison in the files can be used.
        MissingWeightsError: When the model's weights are absent.
    """
    from popalign_core.models.loading import load_pipeline, resolve_device
    from storage.formats.pick_a_pic import iter_captions

    set_threads(runtime)
    pipeline = load_pipeline(view.model, device=resolve_device(runtime.device))
    encoder = _encoder(build.ref, view.files)
    dropped = encode_shards(build, encoder, pipeline.vae, view.sampling, runtime, on_progress)
    if dropped.total() == encoder.n_rows:
        reasons = dict(sorted(dropped.items()))
        raise InputError(
            f"none of the {encoder.n_rows} comparison(s) can be used: {reasons}; a preference needs label_0 0 or 1"
        )
    used = set(build.read_table("preferences")["prompt_id"])
    write_rest(build, build.ref.stage, pipeline, iter_captions(view.files), used, dropped, runtime.batch_size)


def _encoder(ref: ArtifactRef, files: "Sequence[RowFile]") -> "Encoder[PairRow]":
    from popalign_core.preferences.image_pairs import pair_fault
    from storage.formats.pick_a_pic import iter_pairs

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
    from popalign_core.preferences.image_pairs import PREFERRED_SIDE

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


import_pairs = Stage("pairs", "1", _view, _fill)
