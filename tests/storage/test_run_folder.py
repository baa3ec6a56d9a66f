import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from popalign_core.errors import StoreError
from storage.store import ArtifactRef, Store


def test_a_run_is_complete_with_its_record(
    store: Store, scores: pd.DataFrame, ref: ArtifactRef, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    (model / "unet").mkdir(parents=True)
    (model / "unet" / "weights.bin").write_bytes(b"one")
    run = store.run_folder("first")
    run.reserve([ref])
    run.write_table("scores", scores)
    run.write_text("report.html", "<p>é</p>")
    run.copy_tree(model, "model")
    assert run.read_record() is None
    run.record([ref], {"preset": "portraits"})

    folder = Path(store.root) / "runs" / "first"
    assert run.url == str(folder)
    assert pq.read_table(folder / "scores.parquet").num_rows == 2
    assert (folder / "report.html").read_bytes() == b"<p>\xc3\xa9</p>"
    assert json.loads((folder / "run.json").read_text(encoding="utf-8")) == {
        **{"name": "first", "artifacts": [[ref.stage, ref.key]], "meta": {"preset": "portraits"}}
    }
    assert run.read_record() == json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert run.references() == {ref}


def test_a_copied_folder_replaces_the_one_before(store: Store, tmp_path: Path) -> None:
    run = store.run_folder("first")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.bin").write_bytes(name.encode())
        run.copy_tree(tmp_path / name, "model")
    folder = Path(store.root) / "runs" / "first"
    assert [path.name for path in folder.iterdir()] == ["model"]
    assert [path.name for path in (folder / "model").iterdir()] == ["two.bin"]


def test_a_copy_that_was_killed_leaves_nothing_behind(store: Store, tmp_path: Path) -> None:
    folder = Path(store.root) / "runs" / "first"
    (folder / "model.0123.partial").mkdir(parents=True)
    (tmp_path / "one").mkdir()
    store.run_folder("first").copy_tree(tmp_path / "one", "model")
    assert [path.name for path in folder.iterdir()] == ["model"]


def test_a_table_that_does_not_fit_is_refused(store: Store, scores: pd.DataFrame) -> None:
    with pytest.raises(StoreError, match="missing columns"):
        store.run_folder("first").write_table("metrics", scores)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden"])
def test_a_run_stays_below_the_root(store: Store, name: str) -> None:
    with pytest.raises(StoreError, match=r"run '.*' cannot name a folder"):
        store.run_folder(name)
