"""Stage calibration: from the tiny pipeline's own prompts, from people, and on into the metrics."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import InputError, MissingWeightsError
from storage.store import ArtifactRef
from tasks.common.stage_object import open_store
from tasks.stages.calibration import calibrate_classifier
from tasks.stages.evaluate import evaluate_system
from tasks.stages.scores import score_images


@pytest.fixture
def refs(give_artifacts: Callable[[str], dict[str, ArtifactRef]]) -> dict[str, ArtifactRef]:
    found = give_artifacts("attributes-eval:base")
    nodes = {"prompts": "identities", "sample": "sample-eval:base", "attributes": "attributes-eval:base"}
    return {name: found[node] for name, node in nodes.items()}


def test_the_matrix_is_counted_published_and_used(
    refs: dict[str, ArtifactRef], tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    both: dict[str, Any] = {"config": tiny_config, "runtime": tiny_runtime}
    ref = calibrate_classifier(**refs, **both)
    store = open_store(tiny_runtime)
    table = store.read_table(ref, "calibration")
    # 2 evaluation subjects x 2 genders x 3 images
    assert table.groupby("true_class")["n"].sum().to_dict() == {"female": 6, "male": 6}
    assert set(table["classifier"]) == {"pixel-sum@1"}
    assert calibrate_classifier(**refs, **both) == ref

    scores = score_images(refs["prompts"], refs["sample"], **both)
    plain = evaluate_system(**refs, scores=scores, system="base", **both)
    corrected = evaluate_system(**refs, scores=scores, system="base", calibration=ref, **both)
    assert corrected != plain
    names = [set(store.read_table(one, "metrics")["metric"]) for one in (plain, corrected)]
    assert names[1] - names[0] == {
        *("discrepancy_corrected", "share_corrected:male", "share_corrected:female"),
        *("discrepancy_cleam", "share_cleam:male", "share_cleam:female"),
        *("share_weighted:male", "share_weighted:female"),
    }


def test_people_s_labels_count_by_content(
    refs: dict[str, ArtifactRef], tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    store = open_store(tiny_runtime)
    read = store.read_table(refs["attributes"], "attributes")
    read = read[read["class"].notna()]
    # people who agree with the classifier, except on the first image
    said = read[["image_id", "axis", "class"]].reset_index(drop=True)
    said.loc[0, "class"] = "male" if said.loc[0, "class"] == "female" else "female"
    for name in ("one.csv", "two.csv"):
        said.to_csv(tmp_path / name, index=False)
    keys = [
        calibrate_classifier.request(tiny_config, **refs, labels=labels)
        for labels in (None, str(tmp_path / "one.csv"), str(tmp_path / "two.csv"))
    ]
    assert keys[0] != keys[1]
    assert keys[1] == keys[2]
    ref = calibrate_classifier(**refs, labels=str(tmp_path / "one.csv"), config=tiny_config, runtime=tiny_runtime)
    table = store.read_table(ref, "calibration")
    wrong = table[(table["true_class"] != table["read_class"]) & (table["read_class"] != "")]
    assert (table["n"].sum(), wrong["n"].sum()) == (len(said), 1)
    with pytest.raises(MissingWeightsError, match="there is nothing at"):
        calibrate_classifier.request(tiny_config, **refs, labels=str(tmp_path / "gone.csv"))


def test_a_calibration_of_another_classifier_is_refused(
    refs: dict[str, ArtifactRef], tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    both: dict[str, Any] = {"config": tiny_config, "runtime": tiny_runtime}
    store, other = open_store(tiny_runtime), ArtifactRef("calibration", "calibration-v1-other")
    table = store.read_table(calibrate_classifier(**refs, **both), "calibration")
    with store.build(other, {}) as build:
        build.write_table("calibration", table.assign(classifier="deepface@0"))
    scores = score_images(refs["prompts"], refs["sample"], **both)
    with pytest.raises(InputError, match=r"is of the classifier \['deepface@0'\], the images were read by 'pixel-sum"):
        evaluate_system(**refs, scores=scores, system="base", calibration=other, **both)


def test_nothing_labelled_is_said(
    refs: dict[str, ArtifactRef], tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    pd.DataFrame({"image_id": ["elsewhere"], "axis": ["gender"], "class": ["male"]}).to_csv(tmp_path / "l.csv")
    with pytest.raises(InputError, match="of 0 labels 0 are of images that were not read; calibrate with"):
        calibrate_classifier(**refs, labels=str(tmp_path / "l.csv"), config=tiny_config, runtime=tiny_runtime)
