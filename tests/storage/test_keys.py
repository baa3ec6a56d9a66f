"""Keys are pinned: whoever changes how they are made throws away every cached artifact, and sees it here."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import StoreError
from storage.keys import ArtifactRef, canonical_json, is_key, key_of, key_payload
from storage.store import Store

CONFIG: dict[str, Any] = {"n_steps": 16, "guidance_scale": 2.5, "axes": ["gender", "race"], "revision": None}
INPUTS = {"prompts": "prompts-v1-0123456789abcdef0123456789abcdef"}


def test_golden_key(store: Store) -> None:
    text = (
        '{"config":{"axes":["gender","race"],"guidance_scale":2.5,"n_steps":16,"revision":null},'
        '"inputs":{"prompts":"prompts-v1-0123456789abcdef0123456789abcdef"},"stage":"sample","version":"3"}'
    )
    assert store.key("sample", "3", CONFIG, INPUTS) == "sample-v3-ac86bf549cd213e5c0d79b2fbec53736"
    assert hashlib.sha256(text.encode()).hexdigest()[:32] == "ac86bf549cd213e5c0d79b2fbec53736"


def test_the_order_of_fields_and_the_kind_of_sequence_do_not_matter(store: Store) -> None:
    shuffled = dict(reversed(CONFIG.items())) | {"axes": ("gender", "race")}
    assert store.key("sample", "3", shuffled, INPUTS) == store.key("sample", "3", CONFIG, INPUTS)


def test_root_and_scratch_do_not_matter(store: Store, tmp_path: Path) -> None:
    other = Store(str(tmp_path / "elsewhere"), scratch=str(tmp_path / "scratch"))
    assert other.key("sample", "3", CONFIG, INPUTS) == store.key("sample", "3", CONFIG, INPUTS)


def test_no_runtime_knob_is_part_of_what_is_hashed() -> None:
    def fields(model: Any) -> set[str]:
        nested = [
            field.annotation for field in model.model_fields.values() if hasattr(field.annotation, "model_fields")
        ]
        return set(model.model_fields).union(*(fields(each) for each in nested))

    assert fields(PipelineConfig) & set(RuntimeConfig.model_fields) == set()


@pytest.mark.parametrize(
    ("stage", "version", "config", "inputs"),
    [
        ("other", "3", CONFIG, INPUTS),
        ("sample", "4", CONFIG, INPUTS),
        ("sample", "3", CONFIG | {"n_steps": 17}, INPUTS),
        ("sample", "3", CONFIG | {"axes": ["race", "gender"]}, INPUTS),
        ("sample", "3", CONFIG, {"prompts": "prompts-v1-ffffffffffffffffffffffffffffffff"}),
        ("sample", "3", CONFIG, {}),
    ],
)
def test_what_changes_the_result_changes_the_key(
    store: Store, stage: str, version: str, config: dict[str, Any], inputs: dict[str, str]
) -> None:
    assert store.key(stage, version, config, inputs) != store.key("sample", "3", CONFIG, INPUTS)


def test_a_forced_version_has_a_key_of_its_own_and_can_be_forced_again(store: Store) -> None:
    keys = []
    for _ in range(3):
        keys.append(store.key("sample", "3", CONFIG, INPUTS))
        store.bump("sample", keys[-1])
    assert len(set(keys)) == 3
    assert keys == [key_of(key_payload("sample", "3", CONFIG, INPUTS, revision)) for revision in range(3)]
    assert store.key("sample", "4", CONFIG, INPUTS) == key_of(key_payload("sample", "4", CONFIG, INPUTS))


def test_forcing_the_same_key_twice_at_once_makes_one_new_version(store: Store) -> None:
    old = store.key("sample", "3", CONFIG, INPUTS)
    store.bump("sample", old)
    store.bump("sample", old)
    assert store.key("sample", "3", CONFIG, INPUTS) == key_of(key_payload("sample", "3", CONFIG, INPUTS, 1))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"path": Path("/tmp/x")}, r"payload\.config\.path is PosixPath\('/tmp/x'\), a PosixPath; .*JSON only"),
        ({"shares": [0.5, float("nan")]}, r"payload\.config\.shares\.1 is nan"),
        ({"axes": {1: "x"}}, r"payload\.config\.axes has the key 1, which is not a string"),
    ],
)
def test_what_is_not_json_is_refused(store: Store, config: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        store.key("sample", "3", config, INPUTS)


def test_canonical_json_is_ascii_without_spaces() -> None:
    assert canonical_json({"b": "é", "a": [1, True, None, 0.1]}) == '{"a":[1,true,null,0.1],"b":"\\u00e9"}'


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a b"])
def test_a_ref_never_leaves_its_folder(name: str) -> None:
    with pytest.raises(StoreError, match="cannot name a folder"):
        ArtifactRef("sample", name)


def test_a_ref_survives_json() -> None:
    ref = ArtifactRef("sample", "sample-v1-00")
    assert ArtifactRef(**json.loads(json.dumps(vars(ref)))) == ref
    assert str(ref) == "sample/sample-v1-00"


def test_only_key_shaped_folders_are_artifacts(store: Store) -> None:
    assert is_key("sample", store.key("sample", "1.2", {}, {}))
    assert not is_key("photos", "2024-v1-summer")
    assert not is_key("photos", store.key("sample", "1", {}, {}))
