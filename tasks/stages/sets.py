"""Stage `sets`: set preferences made elsewhere become what training reads; shards survive a kill.

As with stage `pairs`, one artifact stands for three of the pipeline's: `prompts` (the captions), `sample` (latents,
embeddings) and `preferences`. The pictures themselves are not kept.
"""

from collections.abc import Iterable, Mapping, Sequence
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

    All pictures are brought to the configured size, as those of `tasks.stages.pairs`.

    Raises:
        InputError: When no set in the files can be used.
        MissingWeightsError: When the model's weights are absent.
    """
    from popalign_core.models.loading import load_pipeline, resolve_device
    from popalign_core.preferences.members import drop_lone_members
    from storage.formats.set_files import iter_labels

    set_threads(runtime)
    pipeline = load_pipeline(view.model, device=resolve_device(runtime.device))
    encoder = _encoder(build.ref, view.files)
    dropped = encode_shards(build, encoder, pipeline.vae, view.sampling, runtime, on_progress)
    members = _members(
        build.ref, iter_labels(view.files), set(build.read_table("images", columns=["image_id"])["image_id"])
    )
    members = drop_lone_members(members, dropped)
    if members.empty:
        reasons = dict(sorted(dropped.items()))
        raise InputError(
            f"none of the {encoder.n_rows} member(s) of sets can be used: {reasons}; a set needs pictures of both "
            "roles, preferred and dispreferred, under one caption"
        )
    build.write_table("preferences", members.drop(columns="caption"))
    write_rest(
        build, build.ref.stage, pipeline, members["caption"], set(members["prompt_id"]), dropped, runtime.batch_size
    )


def _encoder(ref: ArtifactRef, files: "Sequence[RowFile]") -> "Encoder[MemberRow]":
    from popalign_core.preferences.members import member_fault
    from storage.formats.set_files import iter_members

    return Encoder(
        n_rows=sum(file.n_rows for file in files),
        n_pictures=1,
        unit="members",
        chunks=lambda n_rows, wanted: iter_members(files, n_rows, wanted),
        fault=lambda row: member_fault(row.set_id, row.role, row.caption, row.pictures[0]),
        tables=lambda rows: {"images": _images(ref, rows)},
    )


def _image_id(ref: ArtifactRef, row: "MemberRow") -> str:
    # the key stands for the files' content and the row's number for its place in that
    return content_id("image", ref.key, row.number)


def _images(ref: ArtifactRef, rows: "Sequence[MemberRow]") -> pd.DataFrame:
    """Table `images` without size and latents."""
    records = [(_image_id(ref, row), caption_id(row.caption or ""), row.number, NO_SEED) for row in rows]
    return pd.DataFrame(records, columns=["image_id", "prompt_id", "index", "seed"])


def _members(ref: ArtifactRef, rows: "Iterable[MemberRow]", encoded: set[str]) -> pd.DataFrame:
    """Table `preferences` of the members that have latents, with their captions; a slot where none is named."""
    kept = [row for row in rows if _image_id(ref, row) in encoded]
    table = pd.DataFrame(
        {
            "set_id": pd.Series([row.set_id for row in kept], dtype=object),
            "prompt_id": pd.Series([caption_id(row.caption or "") for row in kept], dtype=object),
            "caption": pd.Series([row.caption for row in kept], dtype=object),
            "role": pd.Series([row.role for row in kept], dtype=object),
            "image_id": pd.Series([_image_id(ref, row) for row in kept], dtype=object),
            "slot": pd.Series([row.slot for row in kept], dtype="Int32"),
            "target": pd.Series([row.target for row in kept], dtype=object),
            "discrepancy": [row.discrepancy for row in kept],
            "balance": [row.balance for row in kept],
        }
    )
    return table.assign(slot=table["slot"].fillna(table.groupby(["set_id", "role"]).cumcount()).astype("int32"))


import_sets = Stage("sets", "1", _view, _fill)
