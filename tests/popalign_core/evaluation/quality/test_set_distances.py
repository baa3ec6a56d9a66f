"""Rows that compare the pictures of two systems as sets."""

import numpy as np
import pandas as pd
import pytest
import torch

from popalign_core.config import EvaluationConfig
from popalign_core.errors import InputError
from popalign_core.evaluation.quality.feature_distances import frechet_distance
from popalign_core.evaluation.quality.features import CLIP, INCEPTION, Features
from popalign_core.evaluation.quality.set_distances import FeaturedSystem, compare_sets, unmeasured_rows

CONFIG = EvaluationConfig()
PROMPTS = pd.DataFrame({"prompt_id": ["a", "b", "c", "tree"], "kind": ["neutral"] * 3 + ["generic"]})


def system(name: str, shift: float, seed: int, n_replicates: int = 1, n: int = 6, version: str = "v") -> FeaturedSystem:
    rows = [
        {"image_id": f"{prompt}{i}@{r}", "prompt_id": prompt, "replicate": r}
        for r in range(n_replicates)
        for prompt in PROMPTS["prompt_id"]
        for i in range(n)
    ]
    images = pd.DataFrame(rows)
    generator = torch.Generator().manual_seed(seed)
    values = (
        torch.randn(len(rows), 4, generator=generator)
        + shift * (1 + torch.tensor(images["replicate"].tolist()))[:, None]
    )
    features = Features(version, images["image_id"].tolist(), values)
    # In any order: rows are found by id.
    return FeaturedSystem(name, images.sample(frac=1, random_state=0), {CLIP: features, INCEPTION: features})


def rows_of(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.set_index(["benchmark", "metric"])


def test_distances_of_every_benchmark_with_intervals() -> None:
    base, moved = system("base", 0, 0), system("aligned", 3, 1)
    found = rows_of(compare_sets(PROMPTS, base, moved, CONFIG, {}))
    assert set(found.index) == {(b, m) for b in ("neutral", "generic") for m in ("cmmd", "kid", "fid")}
    assert set(found["system"]) == {"aligned"}
    cmmd, kid, fid = (found.loc[("neutral", metric)] for metric in ("cmmd", "kid", "fid"))
    assert cmmd["ci_low"] < cmmd["value"] < cmmd["ci_high"]
    assert 0 < cmmd["floor"] < cmmd["value"]
    assert kid["ci_low"] < kid["value"] < kid["ci_high"]
    assert (cmmd["n"], cmmd["scorer"], cmmd["note"]) == (18, "cmmd@v", "")
    people = [i for i, image_id in enumerate(base.features[CLIP].image_ids) if not image_id.startswith("tree")]
    expected = frechet_distance(moved.features[CLIP].values[people], base.features[CLIP].values[people])
    assert fid["value"] == pytest.approx(expected)
    assert np.isnan([fid["ci_low"], fid["ci_high"], fid["floor"]]).all()
    assert kid["floor"] == 0
    # One prompt says nothing about others.
    assert np.isnan(found.loc[("generic", "cmmd"), ["ci_low", "ci_high"]].astype(float)).all()
    assert found.loc[("generic", "cmmd"), "note"] == "no interval: all images are of one prompt"


def test_near_the_floor_there_is_no_interval_but_a_note() -> None:
    found = rows_of(compare_sets(PROMPTS, system("base", 0, 0), system("same", 0, 1), CONFIG, {}))
    for metric in ("cmmd", "kid"):
        row = found.loc[("neutral", metric)]
        assert np.isfinite(row["value"])
        assert np.isnan([row["ci_low"], row["ci_high"]]).all()
        assert row["note"] == "no interval: too near the floor for one that holds"


def test_replicates_are_compared_each_with_its_own() -> None:
    base, moved = system("base", 0, 0, 2), system("aligned", 1, 1, 2)
    row = rows_of(compare_sets(PROMPTS, base, moved, CONFIG, {})).loc[("neutral", "fid")]
    values = [float(value) for value in row["note"].removeprefix("seeds: ").split()]
    assert row["value"] == pytest.approx(np.mean(values), rel=0.01)
    assert values[1] > 2 * values[0]  # moved twice as far
    assert row["n"] == 36


def test_features_of_other_networks_or_images_are_refused() -> None:
    base = system("base", 0, 0)
    with pytest.raises(InputError, match=r"cmmd of 'aligned' against 'base': .* different networks, w and v"):
        compare_sets(PROMPTS, base, system("aligned", 1, 1, version="w"), CONFIG, {})
    strange = FeaturedSystem("aligned", base.images.iloc[:20], base.features)
    with pytest.raises(InputError, match="4 of 24 features are of images that are not among its 20 images"):
        compare_sets(PROMPTS, base, strange, CONFIG, {})


def test_what_has_no_weights_is_a_row_with_the_reason() -> None:
    base, moved = (FeaturedSystem(one.name, one.images, {CLIP: one.features[CLIP]}) for one in
                   (system("base", 0, 0), system("aligned", 1, 1)))  # fmt: skip
    why = "not measured: there is nothing at inception-2015-12-05.pt"
    found = rows_of(compare_sets(PROMPTS, base, moved, CONFIG, {"fid": why, "kid": why, "pick_score": "x"}))
    row = found.loc[("neutral", "fid")]
    assert (row["n"], row["note"], row["scorer"]) == (0, why, "fid")
    assert np.isnan(row["value"])
    assert "pick_score" not in found.index.get_level_values("metric")
    assert found.loc[("neutral", "cmmd"), "n"] == 18


def test_a_system_without_features_is_noted() -> None:
    base, withheld = system("base", 0, 0), system("aligned", 1, 1)
    found = compare_sets(PROMPTS, base, FeaturedSystem("aligned", withheld.images, {}), CONFIG, {})
    assert set(found["metric"]) == {"cmmd", "kid", "fid"}
    assert found["value"].isna().all()
    assert set(found["note"]) == {"not measured: no features of aligned"}


def test_without_networks_and_reasons_there_is_no_row() -> None:
    base, moved = (FeaturedSystem(one.name, one.images, {}) for one in (system("base", 0, 0), system("aligned", 1, 1)))
    assert compare_sets(PROMPTS, base, moved, CONFIG, {}).empty


def test_scores_that_could_not_be_taken_are_rows_of_every_benchmark() -> None:
    reasons = {
        "pick_score": "not measured: gone",
        "subject_accuracy": "not measured: no CLIP",
        "fid": "not measured: x",
    }
    found = rows_of(unmeasured_rows("base", PROMPTS, system("base", 0, 0).images, reasons))
    assert set(found.index) == {("neutral", "pick_score"), ("generic", "pick_score"), ("generic", "subject_accuracy")}
    assert found["value"].isna().all()
    assert (found["n"] == 0).all()
    assert found.loc[("neutral", "pick_score"), "note"] == "not measured: gone"
    assert unmeasured_rows("base", PROMPTS, system("base", 0, 0).images, {}).empty
