"""Preferences for other programs: pairs in Pick-a-Pic's form, or sets for HF `datasets`, with their images."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from popalign_core.config import RuntimeConfig
from popalign_core.errors import InputError
from popalign_core.ids import content_id
from storage.store import ArtifactRef, Store
from tasks.common.stage_object import Progress, find_published, no_progress, open_store
from tasks.stages.preferences import build_preferences

if TYPE_CHECKING:
    import pandas as pd

    from storage.formats.export_folder import ImageFile

Form = Literal["pickapic", "datasets"]
Row = dict[str, Any]

_ROWS_A_FILE = 1000


def export_preferences(
    key: str, path: Path, form: Form, *, runtime: RuntimeConfig, on_progress: Progress = no_progress
) -> int:
    """Write preferences and their images to a new folder of Parquet files, a few images in memory at a time.

    Args:
        key: Of an artifact of stage `preferences`.
        path: Of the folder; must not be there, or be empty.
        form: `pickapic`: the member at each slot of a preferred set against the one at that slot of the dispreferred
            set, as a comparison of two images. Which of them is image 0 is drawn by the ids, and recorded in the
            labels. `datasets`: one row a member.
        runtime: Which store.
        on_progress: Told how many images have been read.

    Returns:
        The number of rows.

    Raises:
        InputError: When there are no such preferences, their sample is gone, or there is something at `path`.
        StoreError: When an image is missing, or the folder cannot be written.
    """
    from storage.formats.export_folder import ImageFile, new_folder, write_rows
    from storage.formats.schemas import PICK_A_PIC, SET_MEMBERS

    store = open_store(runtime)
    ref = find_published(store, build_preferences.name, key, what="preferences", made_by="popalign stage preferences")
    members = store.read_table(ref, "preferences")
    inputs = _inputs(store, ref)
    texts = store.read_table(inputs["prompts"], "prompts", ["prompt_id", "text"]).set_index("prompt_id")["text"]
    members["caption"] = members["prompt_id"].map(texts)
    make_rows: Callable[[pd.DataFrame, ImageFile, str], Iterator[Row]]
    schema, make_rows, n_rows = (
        (PICK_A_PIC, _pairs, len(members) // 2) if form == "pickapic" else (SET_MEMBERS, _members, len(members))
    )
    with new_folder(path) as folder, closing(ImageFile(folder.parent)) as images:
        _put_images(store, inputs["sample"], set(members["image_id"]), images, on_progress)
        write_rows(folder, schema, make_rows(members, images, inputs["sample"].key), n_rows, _ROWS_A_FILE)
    return n_rows


def _inputs(store: Store, ref: ArtifactRef) -> dict[str, ArtifactRef]:
    there = {each.key: each for each in store.list_artifacts()}
    keys = store.manifest(ref).payload["inputs"]
    missing = [key for name, key in keys.items() if name in ("prompts", "sample") and key not in there]
    if missing:
        raise InputError(f"{ref} was made from {', '.join(missing)}, which {store.root} no longer has; run it again")
    return {name: there[key] for name, key in keys.items() if key in there}


def _put_images(
    store: Store, sample: ArtifactRef, wanted: set[str], images: "ImageFile", on_progress: Progress
) -> None:
    done, total = 0, store.manifest(sample).rows["images"]
    for shard in store.iter_table(sample, "images", ["image_id", "image"]):
        for image_id, image in zip(shard["image_id"], shard["image"], strict=True):
            if image_id in wanted and image is not None:
                images.put(image_id, image["bytes"])
        done += len(shard)
        on_progress(done, total)


def _pairs(members: "pd.DataFrame", images: "ImageFile", model: str) -> Iterator[Row]:
    sides = {role: part.set_index(["set_id", "slot"]) for role, part in members.groupby("role")}
    pairs = sides["preferred"].join(sides["dispreferred"]["image_id"].rename("worse_id"), validate="one_to_one")
    per_caption = pairs["caption"].value_counts()
    for number, (better, worse, caption) in enumerate(
        zip(pairs["image_id"], pairs["worse_id"], pairs["caption"], strict=True)
    ):
        first_is_better = int(content_id("side", better, worse), 16) % 2 == 0
        uids = (better, worse) if first_is_better else (worse, better)
        data = [images.take(uid) for uid in uids]
        yield {
            "are_different": data[0] != data[1],
            "best_image_uid": better,
            "caption": caption,
            "has_label": True,
            "num_example_per_prompt": int(per_caption[caption]),
            "ranking_id": number,
            "user_id": 0,
        } | {
            f"{name}_{side}{rest}": value
            for side in (0, 1)
            for name, rest, value in (
                ("image", "_uid", uids[side]),
                ("jpg", "", data[side]),
                ("label", "", float(first_is_better == (side == 0))),
                ("model", "", model),
            )
        }


def _members(members: "pd.DataFrame", images: "ImageFile", model: str) -> Iterator[Row]:
    names = [name for name in members.columns if name != "target"]
    for row, target in zip(members[names].to_dict("records"), members["target"], strict=True):
        shares = [{"class": name, "share": share} for name, share in target.items()]
        image = {"bytes": images.take(row["image_id"]), "path": None}
        yield {str(name): value for name, value in row.items()} | {"image": image, "target": shares}
