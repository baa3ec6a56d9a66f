"""Stage `preferences` out of the store: shards are joined piece by piece, and the cut changes nothing."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from popalign_core.config import Axis, PipelineConfig, PreferencesConfig, PromptsConfig, RuntimeConfig
from popalign_core.identities.augment import augment_prompts
from popalign_core.preferences.set_pairs import build_sets
from popalign_core.prompts.grammar import write_prompts
from storage.store import ArtifactRef
from tasks.common.stage_object import open_store
from tasks.stages import preferences

AXES = (Axis(name="gender", classes=("male", "female")),)
PROMPTS, SAMPLE, ATTRIBUTES = (ArtifactRef(stage, f"{stage}-key") for stage in ("identities", "sample", "attributes"))


@pytest.fixture
def config() -> PipelineConfig:
    return PipelineConfig(
        axes=AXES,
        prompts=PromptsConfig(train_subjects=("doctor", "nurse"), retained_subjects=("moon",)),
        preferences=PreferencesConfig(set_size=6, n_sets=2),
    )


@pytest.fixture
def tables(config: PipelineConfig) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """20 images a prompt in the order of the prompts: neutral ones male but one in ten, specific ones obedient."""
    prompts = augment_prompts(write_prompts(config.prompts), AXES)
    images, readings = [], []
    for prompt_id, kind, identity in zip(prompts["prompt_id"], prompts["kind"], prompts["identity"], strict=True):
        for number in range(20):
            image_id = f"{prompt_id}-{number:02d}"
            images.append((image_id, prompt_id, number))
            if kind != "generic":
                name = dict(identity).get("gender", "female" if number % 10 == 0 else "male")
                readings.append((image_id, name))
    shown = pd.DataFrame(images, columns=["image_id", "prompt_id", "index"])
    read = pd.DataFrame(readings, columns=["image_id", "class"])
    places: dict[str, Any] = {"seed": 0, "width": 8, "height": 8, "image": None, "latents_file": "x", "latents_row": 0}
    common = {"n_faces": 1, "box": None, "detector_score": 0.9, "probability": 0.9, "classifier": "test@1"}
    return prompts, shown.assign(**places), read.assign(axis="gender", drop_reason=None, **common)


def publish(runtime: RuntimeConfig, tables: tuple[pd.DataFrame, ...], *, rows: int, attribute_rows: int) -> None:
    """As the stages do: the attributes of a shard of images are a shard of their own."""
    prompts, images, attributes = tables
    store = open_store(runtime)
    with store.build(PROMPTS, {}) as build:
        build.write_table("prompts", prompts)
    for ref, name, table, size in (
        (SAMPLE, "images", images, rows),
        (ATTRIBUTES, "attributes", attributes, attribute_rows),
    ):
        with store.build(ref, {}) as build:
            if name == "attributes" and size == rows:
                parts = [
                    table[table["image_id"].isin(images["image_id"][start : start + size])]
                    for start in range(0, len(images), size)
                ]
            else:
                parts = [table[start : start + size] for start in range(0, len(table), size)]
            for number, part in enumerate(parts):
                build.write_table(name, part, shard=number)


def build(config: PipelineConfig, runtime: RuntimeConfig) -> ArtifactRef:
    return preferences.build_preferences(PROMPTS, SAMPLE, ATTRIBUTES, config=config, runtime=runtime)


@pytest.mark.parametrize(("rows", "attribute_rows"), [(7, 7), (7, 1000), (1000, 9), (11, 3)])
def test_shards_give_what_the_whole_tables_give(
    rows: int,
    attribute_rows: int,
    config: PipelineConfig,
    tables: tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preferences, "_PIECE_ROWS", 20)
    runtime = RuntimeConfig(root=str(tmp_path / "store"))
    publish(runtime, tables, rows=rows, attribute_rows=attribute_rows)
    store, ref = open_store(runtime), build(config, runtime)
    wanted, drops = build_sets(*tables, AXES, config.preferences)
    pd.testing.assert_frame_equal(store.read_table(ref, "preferences"), wanted)
    pd.testing.assert_frame_equal(store.read_table(ref, "drops"), drops)
    assert len(wanted) == 2 * 2 * 2 * 6
    retained = store.read_table(ref, "retained")
    assert retained["kind"].value_counts().to_dict() == {"specific": 2 * 2 * 6, "generic": 20}
    assert build(config, runtime) == ref


def test_fields_that_came_later_leave_the_old_keys_alone(config: PipelineConfig) -> None:
    def hashed(**fields: Any) -> dict[str, Any]:
        sets = config.preferences.model_copy(update=fields)
        asked = preferences.build_preferences.request(
            config.model_copy(update={"preferences": sets}), prompts=PROMPTS, sample=SAMPLE, attributes=ATTRIBUTES
        )
        return dict(asked.payload["config"]["preferences"])

    old = {"n_neutral": 20, "n_specific": 4, "n_retained": 4, "set_size": 6, "n_sets": 2, "seed": 0}
    assert hashed() == old
    assert hashed(strategy="paper") == old | {"strategy": "paper"}
    assert hashed(target_of="marginal", seed=3) == old | {"target_of": "marginal", "seed": 3}
    assert hashed(mcmc_steps=9) == old | {"mcmc_steps": 9}
