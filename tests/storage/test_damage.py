"""A damaged artifact is an error that names the file and the way out, never a hit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from popalign_core.errors import StoreError
from storage.manifest import Manifest, _checksum, parse_manifest
from storage.store import ArtifactRef, Problem, Store

Damage = Callable[[Path], object]


def place(store: Store, ref: ArtifactRef) -> Path:
    return Path(store.root) / ref.stage / ref.key


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"scores-00001\.parquet has \d+ bytes instead of \d+"),
        (Path.unlink, r"scores-00001\.parquet is gone"),
    ],
)
def test_a_lost_or_short_file_is_no_hit(store: Store, published: ArtifactRef, damage: Damage, message: str) -> None:
    damage(place(store, published) / "scores-00001.parquet")
    advice = r"popalign verify`, then delete the folder .*/scores/scores-v1-\w+ and run again"
    with pytest.raises(StoreError, match=f"artifact scores/.* is damaged: {message}.*{advice}"):
        store.is_published(published)
    with pytest.raises(StoreError, match=r"scores-00001\.parquet"):
        store.read_table(published, "scores")


def test_the_advice_for_a_damaged_artifact_works(
    store: Store, published: ArtifactRef, payload: dict[str, Any], scores: pd.DataFrame
) -> None:
    (place(store, published) / "notes.txt").unlink()
    with pytest.raises(StoreError, match=r"notes\.txt is gone"), store.build(published, payload):
        pass
    shutil.rmtree(place(store, published))
    with store.build(published, payload) as build:
        build.write_table("scores", scores)
    assert store.verify() == []


@pytest.mark.parametrize("damage", [flip_bit, truncate, Path.unlink])
def test_damage_is_seen_before_content_is_handed_out(store: Store, published: ArtifactRef, damage: Damage) -> None:
    damage(place(store, published) / "scores-00000.parquet")
    damage(place(store, published) / "model" / "weights.bin")
    with pytest.raises(StoreError, match=r"scores-00000\.parquet (is gone|does not match its checksum)"):
        store.read_table(published, "scores")
    with pytest.raises(StoreError, match=r"model/weights\.bin (is gone|does not match its checksum)"):
        store.localize(published, "model")
    assert store.localize(published, "notes.txt").is_file()


def test_verify_names_every_damaged_file(store: Store, published: ArtifactRef) -> None:
    assert store.verify() == []
    folder = place(store, published)
    flip_bit(folder / "model" / "weights.bin")
    truncate(folder / "scores-00000.parquet")
    (folder / "notes.txt").unlink()
    size = (folder / "scores-00000.parquet").stat().st_size
    assert sorted(store.verify(published), key=lambda problem: problem.file) == [
        Problem(published, "model/weights.bin", "does not match its checksum"),
        Problem(published, "notes.txt", "is gone"),
        Problem(published, "scores-00000.parquet", f"has {size} bytes instead of {size + 5}"),
    ]
    assert store.verify() == store.verify(published)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "it is not a manifest"),
        (lambda path: path.write_bytes(b""), "it is not a manifest"),
        (lambda path: path.write_bytes(b"[]"), "it is not a manifest"),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b'"clip"', b'"clap"')),
            "does not match its own checksum",
        ),
    ],
)
def test_a_damaged_manifest_is_no_hit(store: Store, published: ArtifactRef, damage: Damage, message: str) -> None:
    damage(place(store, published) / "manifest.json")
    match = rf"/manifest\.json is damaged: .*{message}.*; delete the folder .*/scores/scores-v1-[0-9a-f]+ and run"
    with pytest.raises(StoreError, match=match):
        store.is_published(published)
    assert [problem.file for problem in store.verify()] == ["manifest.json"]


def test_a_manifest_of_another_artifact_is_no_hit(store: Store, published: ArtifactRef) -> None:
    copy = ArtifactRef("scores", "scores-v1-00000000000000000000000000000000")
    place(store, published).rename(place(store, copy))
    with pytest.raises(StoreError, match=rf"{copy} .* is damaged: manifest\.json belongs to {published}"):
        store.is_published(copy)


def test_a_manifest_of_another_format_says_so() -> None:
    body = json.loads(Manifest("s", "k", {}, {}).to_json())
    del body["checksum"]
    body["format"] = 2
    with pytest.raises(StoreError, match=r"x/manifest\.json has format 2, this version reads 1"):
        parse_manifest(json.dumps(body | {"checksum": _checksum(body)}).encode(), "x/manifest.json")


def test_an_artifact_without_its_manifest_is_made_again(
    store: Store, published: ArtifactRef, payload: dict[str, Any], scores: pd.DataFrame
) -> None:
    (place(store, published) / "manifest.json").unlink()
    assert not store.is_published(published)
    assert [(problem.file, problem.what) for problem in store.verify()] == [
        ("manifest.json", "is gone: the artifact counts as not published and will be computed again")
    ]
    with store.build(published, payload) as build:
        assert not build.already_published
        build.write_table("scores", scores)
    assert sorted(path.name for path in place(store, published).iterdir()) == ["manifest.json", "scores.parquet"]
    assert list((Path(store.root) / ".trash").iterdir()) == []
