"""Stage `sets`: set preferences made elsewhere become what training reads; shards survive a kill.

As with stage `pairs`, one artifact stands for three of the pipeline's: `prompts` (the captions), `sample` (latents,
embeddings) and `preferences`. The images themselves are not kept.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from popalign_core.config import PipelineConfig, RuntimeConfig
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
    from storage.formats.set_files import MemberRow


def _view(config: PipelineConfig, inputs: Mapping[str, ArtifactRef], *, files: Sequence[str | Path]) -> EncodingView:
    """Of Parquet files as `storage.formats.set_files` describes them, or folders of such.

    Raises:
        InputError: When one is no such file.
    """
    from storage.formats.set_files import open_sets

    return EncodingView.of(config, open_sets(files))


def find_sets(store: Store, key: str, config: PipelineConfig) -> ArtifactRef:
    """The published sets of a key, if the configuration can train on them.

    Raises:
        InputError: When there is no such artifact, or another model or size encoded it.
    """
    return find_encoded(store, import_sets.name, key, config, what="sets", made_by="popalign import sets PATH...")


def _fill(view: EncodingView, inputs: Inputs, build: Build, runtime: RuntimeConfig, on_progress: Progress) -> None:
    """Write tables `prompts`, `images`, `preferences`, `retained` (empty) and `drops`, `latents-*.safetensors` and
    `embeddings.safetensors`. Sets keep their ids, and their members their roles and slots.

    All images are brought to the configured size, as those of `tasks.stages.pairs`.

    Raises:
        InputError: When no set in the files can be used.
        MissingWeightsError: When the model's weights are absent.
    """
    from popalign_core.preferences.members import drop_lone_members
    from storage.formats.set_files import iter_labels

    encoder = _encoder(build.ref, view.files)
    pipeline, dropped = encode_files(view, build, encoder, runtime, on_progress)
    encoded = set(build.read_table("images", columns=["image_id"])["image_id"])
    members = drop_lone_members(_members(build.ref, iter_labels(view.files), encoded), dropped)
    if members.empty:
        needs = "a set needs images of both roles, preferred and dispreferred, under one caption"
        raise nothing_used(encoder.n_rows, "member(s) of sets", dropped, needs)
    build.write_table("preferences", members.drop(columns="caption"))
    write_rest(build, pipeline, members["caption"], set(members["prompt_id"]), dropped, runtime.batch_size)


def _encoder(ref: ArtifactRef, files: "Sequence[RowFile]") -> "Encoder[MemberRow]":
    from popalign_core.preferences.members import member_fault
    from storage.formats.set_files import iter_members

    return Encoder(
        files=files,
        n_images=1,
        unit="members",
        chunks=iter_members,
        fault=lambda row: member_fault(row.set_id, row.role, row.caption, row.images[0]),
        tables=lambda rows: {"images": _images(ref, rows)},
    )


def _images(ref: ArtifactRef, rows: "Sequence[MemberRow]") -> pd.DataFrame:
    return image_table((imported_image_id(ref, row.number), caption_id(row.caption or ""), row.number) for row in rows)


def _members(ref: ArtifactRef, rows: "Iterable[MemberRow]", encoded: set[str]) -> pd.DataFrame:
    """Table `preferences` of the members that have latents, with their captions; a slot where none is named."""
    kept = [row for row in rows if imported_image_id(ref, row.number) in encoded]
    table = pd.DataFrame(
        {
            "set_id": pd.Series([row.set_id for row in kept], dtype=object),
            "prompt_id": pd.Series([caption_id(row.caption or "") for row in kept], dtype=object),
            "caption": pd.Series([row.caption for row in kept], dtype=object),
            "role": pd.Series([row.role for row in kept], dtype=object),
            "image_id": pd.Series([imported_image_id(ref, row.number) for row in kept], dtype=object),
            "slot": pd.Series([row.slot for row in kept], dtype="Int32"),
            "target": pd.Series([row.target for row in kept], dtype=object),
            "discrepancy": [row.discrepancy for row in kept],
            "balance": [row.balance for row in kept],
        }
    )
    return table.assign(slot=table["slot"].fillna(table.groupby(["set_id", "role"]).cumcount()).astype("int32"))


import_sets = Stage("sets", "2", _view, _fill)
