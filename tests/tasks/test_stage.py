"""The shared body: key, hit, build, publish, and errors with their place."""

from pathlib import Path

import pandas as pd
import pytest

from popalign_core.config import RuntimeConfig
from popalign_core.errors import InputError
from storage.store import ArtifactRef, Build, Store
from tasks.stage import Request, open_store, produce, reference

REQUEST = Request("drops", "1", {"seed": 3}, {"prompts": "prompts-v1-abc"})


def write_drops(store: Store, build: Build, ref: ArtifactRef) -> None:
    build.write_table("drops", pd.DataFrame({"stage": ["drops"], "reason": ["none"], "n": [1]}))


def never(store: Store, build: Build, ref: ArtifactRef) -> None:
    raise AssertionError("built although published")


def test_a_miss_builds_and_the_next_request_is_a_hit(tiny_runtime: RuntimeConfig) -> None:
    first = produce(REQUEST, tiny_runtime, write_drops)
    assert produce(REQUEST, tiny_runtime, never) == first == reference(open_store(tiny_runtime), REQUEST)
    assert open_store(tiny_runtime).read_table(first, "drops")["n"].tolist() == [1]


def test_the_manifest_holds_what_the_key_is_a_hash_of(tiny_runtime: RuntimeConfig) -> None:
    ref = produce(REQUEST, tiny_runtime, write_drops)
    payload = open_store(tiny_runtime).manifest(ref).payload
    assert payload["config"] == {"seed": 3}
    assert payload["inputs"] == {"prompts": "prompts-v1-abc"}


def test_the_projects_errors_gain_stage_and_key(tiny_runtime: RuntimeConfig) -> None:
    def fail(store: Store, build: Build, ref: ArtifactRef) -> None:
        raise InputError("0 prompts; add one")

    key = reference(open_store(tiny_runtime), REQUEST).key
    with pytest.raises(InputError) as caught:
        produce(REQUEST, tiny_runtime, fail)
    assert str(caught.value) == f"[drops/{key}] 0 prompts; add one"
    assert not open_store(tiny_runtime).is_published(ArtifactRef("drops", key))


def test_another_root_is_another_store(tiny_runtime: RuntimeConfig, tmp_path: Path) -> None:
    ref = produce(REQUEST, tiny_runtime, write_drops)
    other = tiny_runtime.model_copy(update={"root": str(tmp_path / "other")})
    assert produce(REQUEST, other, write_drops) == ref
