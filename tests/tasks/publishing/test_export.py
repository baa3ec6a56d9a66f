"""Preferences for other programs: Pick-a-Pic's pairs come back through the import, sets through HF `datasets`."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flows.plan.execution import call_directly
from flows.plan.runs import run_stage
from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import InputError, StoreError
from storage.formats.pick_a_pic import PairRow, iter_pairs, open_pairs
from storage.store import ArtifactRef, Store
from tasks.common.image_tables import read_image_bytes
from tasks.common.stage_object import open_store
from tasks.publishing import export
from tasks.publishing.export import export_preferences
from tasks.stages.pairs import import_pairs


@pytest.fixture
def config(tiny_config: PipelineConfig) -> PipelineConfig:
    """Pairs enough for both labels to occur, whatever the images' ids."""
    sets = tiny_config.preferences.model_copy(update={"n_neutral": 16, "n_specific": 10, "set_size": 4, "n_sets": 6})
    return tiny_config.model_copy(update={"preferences": sets})


@pytest.fixture
def made(
    config: PipelineConfig, tiny_runtime: RuntimeConfig, make_once: Callable[[str, Callable[[Path], None]], Path]
) -> ArtifactRef:
    """Every stage up to the sets, for real; made once, and a copy for each test."""

    def fill(folder: Path) -> None:
        elsewhere = tiny_runtime.model_copy(update={"root": str(folder / "store")})
        run_stage("preferences", config, elsewhere, call=call_directly())

    shutil.copytree(make_once("larger-sets", fill) / "store", tiny_runtime.root)
    return run_stage("preferences", config, tiny_runtime, call=call_directly())


def pictures_of(store: Store, ref: ArtifactRef) -> dict[str, bytes]:
    members = store.read_table(ref, "preferences")
    sample = ArtifactRef("sample", store.manifest(ref).payload["inputs"]["sample"])
    return read_image_bytes(store, sample, set(members["image_id"]))


def rows_of(folder: Path) -> list[PairRow]:
    files = open_pairs(sorted(folder.iterdir()))
    return [row for _, rows in iter_pairs(files, 10**6, {0}) for row in rows]


def test_exported_pairs_are_the_members_of_the_sets_slot_by_slot(
    made: ArtifactRef, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    n_rows = export_preferences(made.key, tmp_path / "pairs", "pickapic", runtime=tiny_runtime)
    store = open_store(tiny_runtime)
    members, pictures = store.read_table(made, "preferences"), pictures_of(store, made)
    table = pd.concat([pq.read_table(file).to_pandas() for file in sorted((tmp_path / "pairs").iterdir())])
    assert n_rows == len(table) == len(members) // 2
    pairs = members.pivot(index=["set_id", "slot"], columns="role", values="image_id")
    wanted = set(zip(pairs["preferred"], pairs["dispreferred"], strict=True))
    label_1, uids = table["label_1"] == 1, table[["image_0_uid", "image_1_uid"]]
    better, worse = (
        uids["image_0_uid"].mask(label_1, uids["image_1_uid"]),
        uids["image_1_uid"].mask(label_1, uids["image_0_uid"]),
    )
    assert set(zip(better, worse, strict=True)) == wanted
    assert better.tolist() == table["best_image_uid"].tolist()
    for side in (0, 1):
        assert [pictures[uid] for uid in table[f"image_{side}_uid"]] == table[f"jpg_{side}"].tolist()
    assert (table["label_0"] + table["label_1"] == 1).all()
    # pitfall 15: labels that are all the same, or sides swapped without a record
    assert set(table["label_0"]) == {0.0, 1.0}
    assert table["has_label"].all()
    assert table["are_different"].all()
    per_caption = table.groupby("caption").size()
    assert table["num_example_per_prompt"].tolist() == per_caption[table["caption"]].tolist()
    # the neutral prompt, word for word, is the caption of both
    assert set(per_caption.index) <= {"a photo of a doctor", "a photo of a nurse"}


def test_what_was_exported_as_pairs_is_imported_again(
    made: ArtifactRef, config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    n_rows = export_preferences(made.key, tmp_path / "pairs", "pickapic", runtime=tiny_runtime)
    ref = import_pairs(files=sorted((tmp_path / "pairs").iterdir()), config=config, runtime=tiny_runtime)
    store = open_store(tiny_runtime)
    assert store.manifest(ref).counts["pairs"] == n_rows
    assert store.read_table(ref, "drops").empty
    members = store.read_table(made, "preferences")
    preferred = set(members.loc[members["role"] == "preferred", "image_id"])
    pictures = pictures_of(store, made)
    rows = rows_of(tmp_path / "pairs")
    better = {row.images[0 if row.label == 1.0 else 1] for row in rows}
    assert better == {pictures[image_id] for image_id in preferred}
    again = store.read_table(ref, "preferences").sort_values(["set_id", "role"])
    assert again["role"].tolist() == ["dispreferred", "preferred"] * n_rows
    texts = store.read_table(ref, "prompts").set_index("prompt_id")["text"]
    assert sorted(again["prompt_id"].map(texts)) == sorted(row.caption for row in rows for _ in (0, 1) if row.caption)


def test_sets_are_read_by_hf_datasets(made: ArtifactRef, tiny_runtime: RuntimeConfig, tmp_path: Path) -> None:
    import datasets

    n_rows = export_preferences(made.key, tmp_path / "sets", "datasets", runtime=tiny_runtime)
    files = [str(file) for file in sorted((tmp_path / "sets").iterdir())]
    read = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    store = open_store(tiny_runtime)
    members, pictures = store.read_table(made, "preferences"), pictures_of(store, made)
    assert read.num_rows == n_rows == len(members)
    for name in ("set_id", "prompt_id", "role", "slot", "image_id", "discrepancy", "balance"):
        assert read[name][:] == members[name].tolist()
    for row, image_id in zip(read, members["image_id"], strict=True):
        assert isinstance(row["image"], Image.Image)
        wanted = np.asarray(Image.open(io.BytesIO(pictures[image_id])))
        np.testing.assert_array_equal(np.asarray(row["image"]), wanted)
    assert read[0]["target"] == [{"class": "gender=female", "share": 0.5}, {"class": "gender=male", "share": 0.5}]


def test_files_hold_so_many_rows_and_are_the_same_again(
    made: ArtifactRef, tiny_runtime: RuntimeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_ROWS_A_FILE", 3)
    for name in ("one", "other"):
        n_rows = export_preferences(made.key, tmp_path / name, "pickapic", runtime=tiny_runtime)
    n_files = -(-n_rows // 3)
    names = [f"train-{number:05d}-of-{n_files:05d}.parquet" for number in range(n_files)]
    assert n_files > 1
    for name in ("one", "other"):
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert [pq.read_metadata(tmp_path / "one" / name).num_rows for name in names[:-1]] == [3] * (n_files - 1)


def test_nothing_is_written_over_and_no_half_folder_is_left(
    made: ArtifactRef, tiny_runtime: RuntimeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "mine").write_text("kept")
    with pytest.raises(InputError, match=r"there already exists; choose another folder"):
        export_preferences(made.key, there, "pickapic", runtime=tiny_runtime)
    assert (there / "mine").read_text() == "kept"
    with pytest.raises(InputError, match="there are no preferences 'preferences-v1-0'"):
        export_preferences("preferences-v1-0", tmp_path / "new", "pickapic", runtime=tiny_runtime)

    monkeypatch.setattr(export, "_put_images", lambda *_: None)
    with pytest.raises(StoreError, match="lacks image"):
        export_preferences(made.key, tmp_path / "new", "datasets", runtime=tiny_runtime)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "there"]
