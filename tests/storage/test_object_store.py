"""The store on s3://, against a real HTTP server on this machine (moto) through s3fs."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pandas as pd
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from popalign_core.errors import StoreError
from storage.publish import attempt_name
from storage.store import ArtifactRef, Build, Problem, Store


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    for name, value in {
        **{"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"},
        **{"AWS_DEFAULT_REGION": "us-east-1", "XDG_CACHE_HOME": str(tmp_path / "cache")},
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # it would remember the endpoint of an earlier test
    bucket = boto3.resource("s3").create_bucket(Bucket="popalign-test")
    yield bucket
    bucket.objects.all().delete()
    bucket.delete()


@pytest.fixture
def store(bucket: Any, tmp_path: Path) -> Store:
    return Store("s3://popalign-test/team", scratch=str(tmp_path / "scratch"))


def objects(bucket: Any, ref: ArtifactRef) -> list[str]:
    return sorted(each.key for each in bucket.objects.filter(Prefix=f"team/{ref}/"))


def write_shard(build: Build, scores: pd.DataFrame) -> None:
    build.write_table("scores", scores, shard=0)
    build.mark_shard(0, {"images": 2})


def test_an_artifact_is_read_back(store: Store, published: ArtifactRef, tmp_path: Path) -> None:
    other = Store("s3://popalign-test/team")  # of another machine: nothing local
    assert other.is_published(published)
    assert other.list_artifacts() == [published]
    assert other.read_table(published, "scores")["value"].tolist() == [0.25, 0.5, 1.25, 1.5]
    assert other.rows_by_shard(published, "scores") == [2, 2]
    folder = other.localize(published)
    assert folder.is_relative_to(tmp_path / "cache")
    assert (folder / "model" / "weights.bin").read_bytes() == b"weights"
    assert other.verify() == []
    assert list((tmp_path / "scratch").rglob("*.parquet")) == []


def test_a_torn_download_is_fetched_again(store: Store, published: ArtifactRef) -> None:
    path = store.localize(published, "notes.txt")
    path.write_bytes(b"other")
    assert store.localize(published, "notes.txt").read_bytes() == b"notes"


def test_the_manifest_is_uploaded_last(
    store: Store, bucket: Any, ref: ArtifactRef, payload: dict[str, Any], scores: pd.DataFrame, monkeypatch: Any
) -> None:
    def refuse(*_: object) -> None:
        raise StoreError("the network is down")

    with monkeypatch.context() as patch:
        patch.setattr("storage.roots.Root.create", refuse)
        with pytest.raises(StoreError, match="the network is down"), store.build(ref, payload) as build:
            write_shard(build, scores)
    assert [key.rpartition("/")[2] for key in objects(bucket, ref)] == ["scores-00000.parquet"]
    assert not store.is_published(ref)
    with store.build(ref, payload) as build:
        assert build.shard_done(0)
    assert store.verify() == []


def test_two_machines_at_once_end_well_with_one_result(
    store: Store, bucket: Any, ref: ArtifactRef, payload: dict[str, Any], scores: pd.DataFrame, tmp_path: Path
) -> None:
    """Locks do not reach across machines: the first manifest wins."""
    other = Store(store.root, scratch=str(tmp_path / "other-machine"))
    with store.build(ref, payload) as mine:
        mine.write_table("scores", scores.assign(value=1.0))
        with other.build(ref, payload) as theirs:
            assert not theirs.already_published
            theirs.write_table("scores", scores.assign(value=2.0))
    assert store.read_table(ref, "scores")["value"].tolist() == [2.0, 2.0]
    assert store.verify() == []
    assert len(objects(bucket, ref)) == 2


def test_damage_is_seen(store: Store, bucket: Any, published: ArtifactRef) -> None:
    short, gone, flipped = (
        next(key for key in objects(bucket, published) if key.endswith(name))
        for name in ("notes.txt", "scores-00000.parquet", "weights.bin")
    )
    bucket.Object(flipped).put(Body=b"Weights")
    assert store.is_published(published)  # only content tells
    with pytest.raises(StoreError, match=r"model/weights\.bin does not match its checksum"):
        store.localize(published, "model")
    bucket.Object(gone).delete()
    bucket.Object(short).put(Body=b"note")
    with pytest.raises(
        StoreError, match=r"notes\.txt has 4 bytes instead of 5.*delete the folder popalign-test/team/scores"
    ):
        store.is_published(published)
    with pytest.raises(StoreError, match=r"scores-00000\.parquet is gone"):
        store.read_table(published, "scores")
    assert sorted(store.verify(), key=lambda problem: problem.file) == [
        Problem(published, "model/weights.bin", "does not match its checksum"),
        Problem(published, "notes.txt", "has 4 bytes instead of 5"),
        Problem(published, "scores-00000.parquet", "is gone"),
    ]


def test_a_forced_version(store: Store, published: ArtifactRef) -> None:
    store.bump(published.stage, published.key)
    assert store.key("scores", "1", {"scorer": "clip"}, {}) != published.key


def test_a_run_folder(store: Store, bucket: Any, published: ArtifactRef) -> None:
    run = store.run_folder("first")
    run.copy_tree(store.localize(published, "model"), "model")
    run.copy_tree(store.localize(published, "model"), "model")
    run.record([published], {})
    assert run.references() == {published}
    assert run.url == "s3://popalign-test/team/runs/first"
    assert sorted(each.key for each in bucket.objects.filter(Prefix="team/runs/")) == [
        *("team/runs/first/model/weights.bin", "team/runs/first/run.json"),
    ]


def test_garbage(store: Store, bucket: Any, published: ArtifactRef, monkeypatch: pytest.MonkeyPatch) -> None:
    young = attempt_name()
    with monkeypatch.context() as patch:
        yesterday = time.time() - 25 * 3600
        patch.setattr(time, "time", lambda: yesterday)
        old = attempt_name()
    for name in (young, old):
        bucket.Object(f"team/{published}/{name}/x").put(Body=b"x")
    store.run_folder("first").record([published], {})
    store.localize(published, "notes.txt")
    report = store.collect_garbage(dry_run=False)
    assert (report.artifacts, report.leftovers, report.scratch) == (
        *([], [f"popalign-test/team/{published}/{old}"], []),
    )
    assert store.verify() == []

    bucket.Object("team/runs/first/run.json").delete()
    report = store.collect_garbage(dry_run=False)
    assert report.artifacts == [published]
    assert [folder.rpartition("/downloads/")[2] for folder in report.scratch] == [str(published)]
    assert objects(bucket, published) == []


def test_a_bucket_that_is_not_there(bucket: Any) -> None:
    with pytest.raises(
        StoreError, match=r"cannot write no-such-bucket/x/\.probe-.*: .*check the path, the credentials"
    ):
        Store("s3://no-such-bucket/x")


def test_an_endpoint_that_is_down(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:9.*check the path, the credentials and the network"):
        Store("s3://popalign-test/down")
