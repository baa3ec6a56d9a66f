"""Stage calibration: from the tiny pipeline's own prompts, from people, and on into the metrics."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import InputError, MissingWeightsError
from storage.store import ArtifactRef
from tasks.attributes import read_attributes
from tasks.calibration import calibrate_classifier
from tasks.evaluate import evaluate_system
from tasks.identities import add_identities
from tasks.prompts import write_prompts
from tasks.sample import sample_images
from tasks.scores import score_images
from tasks.stage import open_store


def measured(config: PipelineConfig, runtime: RuntimeConfig) -> dict[str, ArtifactRef]:
    both: dict[str, Any] = {"config": config, "runtime": runtime}
    prompts = add_identities(write_prompts(**both), **both)
    sample = sample_images(prompts, purpose="evaluation", **both)
    return {"prompts": prompts, "sample": sample, "attributes": read_attributes(prompts, sample, **both)}


def test_the_matrix_is_counted_published_and_used(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    refs = measured(tiny_config, tiny_runtime)
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
    }


def test_people_s_labels_count_by_content(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    refs = measured(tiny_config, tiny_runtime)
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
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    refs = measured(tiny_config, tiny_runtime)
    both: dict[str, Any] = {"config": tiny_config, "runtime": tiny_runtime}
    store, other = open_store(tiny_runtime), ArtifactRef("calibration", "calibration-v1-other")
    table = store.read_table(calibrate_classifier(**refs, **both), "calibration")
    with store.build(other, {}) as build:
        build.write_table("calibration", table.assign(classifier="deepface@0"))
    scores = score_images(refs["prompts"], refs["sample"], **both)
    with pytest.raises(InputError, match=r"is of the classifier \['deepface@0'\], the images were read by 'pixel-sum"):
        evaluate_system(**refs, scores=scores, system="base", calibration=other, **both)


def test_nothing_labelled_is_said(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path) -> None:
    refs = measured(tiny_config, tiny_runtime)
    pd.DataFrame({"image_id": ["elsewhere"], "axis": ["gender"], "class": ["male"]}).to_csv(tmp_path / "l.csv")
    with pytest.raises(InputError, match="of 0 labels 0 are of images that were not read; calibrate with"):
        calibrate_classifier(**refs, labels=str(tmp_path / "l.csv"), config=tiny_config, runtime=tiny_runtime)
