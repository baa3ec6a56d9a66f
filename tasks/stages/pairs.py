"""Stage `pairs`: preferences between two images, made elsewhere, become what training reads; shards survive a kill.

One artifact stands for three of the pipeline's: `prompts` (the captions), `sample` (latents, embeddings) and
`preferences` (each comparison a pair of sets of one image). The images themselves are not kept.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.ids import content_id
from storage.store import ArtifactRef, Build, Store
from tasks.common.stage_object import Inputs, Progress, Stage
from tasks.stages.encoding import (
    Encoder,
    EncodingView,
    caption_id,
    encode_files,
    find_encoded,
    image_table,
    imported_image_id,
    nothing_used,
    write_rest,
)

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

    All images are brought to the configured size, so training conditions SDXL on that size and an uncropped image
    (`time_ids`), just as the sampler will: nothing of the images' own sizes is kept.

    Raises:
        InputError: When no comparison in the files can be used.
        MissingWeightsError: When the model's weights are absent.
    """
    from storage.formats.pick_a_pic import iter_captions

    encoder = _encoder(build.ref, view.files)
    pipeline, dropped = encode_files(view, build, encoder, runtime, on_progress)
    if dropped.total() == encoder.n_rows:
        raise nothing_used(encoder.n_rows, "comparison(s)", dropped, "a preference needs label_0 0 or 1")
    used = set(build.read_table("preferences")["prompt_id"])
    write_rest(build, pipeline, iter_captions(view.files), used, dropped, runtime.batch_size)


def _encoder(ref: ArtifactRef, files: "Sequence[RowFile]") -> "Encoder[PairRow]":
    from popalign_core.preferences.image_pairs import pair_fault
    from storage.formats.pick_a_pic import iter_pairs

    return Encoder(
        files=files,
        n_images=2,
        unit="pairs",
        chunks=iter_pairs,
        fault=lambda row: pair_fault(row.caption, row.label, row.images),
        tables=lambda rows: dict(zip(("images", "preferences"), _records(ref, rows), strict=True)),
    )


def _records(ref: ArtifactRef, rows: "Sequence[PairRow]") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Table `images` without size and latents, and table `preferences`; two lines a row, image 0 first."""
    from popalign_core.preferences.image_pairs import PREFERRED_SIDE

    images, members = [], []
    for row in rows:
        assert row.caption is not None  # pair_fault
        assert row.label is not None
        prompt_id, preferred = caption_id(row.caption), PREFERRED_SIDE[row.label]
        for side in (0, 1):
            image_id = imported_image_id(ref, row.number, side)
            images.append((image_id, prompt_id, 2 * row.number + side))
            role = "preferred" if side == preferred else "dispreferred"
            pair = {"set_id": content_id("set-pair", ref.key, row.number), "prompt_id": prompt_id, "role": role}
            members.append(pair | {"image_id": image_id, "slot": 0})
    sets = pd.DataFrame(members, columns=["set_id", "prompt_id", "role", "image_id", "slot"])
    # one image aims at no distribution
    target = pd.Series([{} for _ in members], index=sets.index, dtype=object)
    return image_table(images), sets.assign(target=target, discrepancy=0.0, balance=0.0)


import_pairs = Stage("pairs", "2", _view, _fill)
