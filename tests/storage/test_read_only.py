"""Somebody's archive on a medium that can only be read."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from read_only import read_only

from popalign_core.errors import StoreError
from storage.store import ArtifactRef, Store


def test_what_is_published_is_read_and_verified(store: Store, published: ArtifactRef) -> None:
    expected = store.read_table(published, "scores")
    with read_only(Path(store.root)):
        archive = Store(store.root)
        assert archive.is_published(published)
        assert archive.verify() == []
        assert archive.localize(published, "notes.txt").read_text(encoding="utf-8") == "notes"
        pd.testing.assert_frame_equal(archive.read_table(published, "scores"), expected)


def test_building_is_refused_before_anything_is_built(store: Store, ref: ArtifactRef, payload: dict[str, Any]) -> None:
    with read_only(Path(store.root)):
        archive = Store(store.root)
        with (
            pytest.raises(StoreError, match=r"cannot write .*/\.probe-.*; give another --root"),
            archive.build(ref, payload),
        ):
            pytest.fail("the build had begun")
        with pytest.raises(StoreError, match=r"cannot write .*; give another --root"):
            archive.bump(ref.stage, ref.key)


def test_a_root_that_is_not_there_cannot_be_read_either(tmp_path: Path) -> None:
    with read_only(tmp_path), pytest.raises(StoreError, match=r"cannot write .*/absent/\.probe-.*give another --root"):
        Store(str(tmp_path / "absent"))


def test_garbage_is_counted_where_nothing_can_be_deleted(store: Store, published: ArtifactRef) -> None:
    with read_only(Path(store.root)):
        archive = Store(store.root, create=False)
        assert archive.collect_garbage(dry_run=True).artifacts == [published]
        with pytest.raises(StoreError, match="make the lock"):
            archive.collect_garbage(dry_run=False)
    assert store.is_published(published)


def test_looking_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no store at .*/absent; give the --root of one"):
        Store(str(tmp_path / "absent"), create=False)
    assert list(tmp_path.iterdir()) == []
