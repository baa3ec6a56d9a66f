"""Benchmarks by name: what a configuration may say of them, their prompts, and which axes count where."""

import pandas as pd
import pytest

from popalign_core.config import Axis, PipelineConfig, parse_config
from popalign_core.config.axes import AGE, COUPLE, SKIN_TONE
from popalign_core.config.presets import preset
from popalign_core.errors import ConfigError
from popalign_core.prompts.benchmarks import benchmark_prompts, benchmarks_of, evenly

COUPLE_TABLE = {"name": "couple", "classes": ["two men", "two women"], "of": "picture", "only_measured": True}


def config(benchmarks: dict, axes: tuple = (), **more: dict) -> PipelineConfig:
    document = preset("smoke").model_dump(exclude_none=True)
    document["prompts"]["benchmarks"] = benchmarks
    document["axes"] = [*document["axes"], *axes]
    return parse_config(document | more)


def test_a_benchmark_that_ships_needs_no_list():
    made = config(
        {"couples": {}, "descriptor": {"n_images": 7}, "parti": {"list": "PartiPrompts.tsv", "kind": "generic"}},
        [COUPLE_TABLE],
    )
    benchmarks = made.prompts.benchmarks
    assert [each.list for each in benchmarks.values()] == ["couples", "descriptors", "PartiPrompts.tsv"]
    assert benchmarks["couples"].axes == ("couple",)
    assert benchmarks["descriptor"].n_images == 7
    assert made == parse_config(made.model_dump(exclude_none=True))


@pytest.mark.parametrize(
    ("benchmarks", "message"),
    [
        ({"mine": {}}, r"benchmarks\.mine\.list: Field required"),
        ({"couples": {}}, r"benchmarks\.couples measures \['couple'\], but there are the axes \['gender', 'race'\]"),
        ({"neutral": {"list": "ages"}}, r"benchmarks \['neutral'\] are those of eval_lists"),
        ({"a b": {"list": "ages"}}, "should match pattern"),
        ({"x": {"list": "ages", "carrier": "a photo"}}, r"carrier 'a photo' has no \{\}"),
        ({"x": {"list": "ages", "kind": "generic", "axes": ["race"]}}, "its images show no people"),
        ({"x": "ages"}, r"benchmarks\.x: Input should be"),
    ],
)
def test_what_does_not_fit_is_said(benchmarks, message):
    with pytest.raises(ConfigError, match=message):
        config(benchmarks)


def test_an_axis_that_is_only_measured_varies_no_prompt_and_counts_where_it_is_named():
    made = config(
        {"couples": {}, "descriptor": {}, "both": {"list": "ages", "axes": ["couple", "race"]}}, [COUPLE_TABLE]
    )
    assert [axis.name for axis in made.identity_axes] == ["gender", "race"]
    assert made.benchmark_axes == {
        "neutral": ("gender", "race"),
        "specific": ("gender", "race"),
        "couples": ("couple",),
        "descriptor": ("gender", "race"),
        "both": ("race", "couple"),
    }
    assert preset("smoke").benchmark_axes == {}


def test_axes_that_ship_are_given_by_name():
    made = config({"couples": {}, "age": {}}, ["couple", "age", "skin tone"])
    assert made.axes[2:] == (COUPLE, AGE, SKIN_TONE)
    assert made.benchmark_axes["couples"] == ("couple",)
    assert made.benchmark_axes["age"] == ("age",)
    with pytest.raises(
        ConfigError, match=r"there are no axes \['hat'\]; choose from gender, race, couple, age, skin tone"
    ):
        config({}, ["hat"])


def test_a_quick_look_takes_fewer_images_and_prompts():
    made = config({"descriptor": {"n_images": 7}, "p": {"list": "p.tsv", "kind": "generic", "n_prompts": 100}})
    quick = made.scaled(0.1)
    assert (quick.evaluation.n_neutral, quick.evaluation.n_specific, quick.evaluation.n_generic) == (2, 1, 1)
    assert quick.prompts.benchmarks["descriptor"].n_images == 1
    assert quick.prompts.benchmarks["descriptor"].n_prompts is None
    assert quick.prompts.benchmarks["p"].n_prompts == 10
    assert (quick.preferences, quick.training, quick.sampling) == (made.preferences, made.training, made.sampling)
    assert made.scaled(1) == made
    assert made.scaled(3).evaluation.n_neutral == 3 * made.evaluation.n_neutral


def test_prompts_are_taken_evenly():
    assert evenly("abcdefghij", 3) == ["a", "d", "g"]
    assert evenly("abc", None) == evenly("abc", 9) == ["a", "b", "c"]


def test_rows_of_each_kind():
    made = config(
        {
            "people": {"list": "ages"},
            "asked": {"list": "ages", "kind": "specific", "carrier": "a painting of {}"},
            "as-is": {"list": "p.tsv", "kind": "generic"},
            "things": {"list": "p.tsv", "kind": "generic", "carrier": "a photo of {}"},
        }
    )
    tables = [
        benchmark_prompts(name, benchmark, ["tree"], made.prompts.carrier)
        for name, benchmark in made.prompts.benchmarks.items()
    ]
    table = pd.concat(tables)
    assert table[["text", "kind", "split", "benchmark", "source"]].to_numpy().tolist() == [
        ["a photo of a tree", "neutral", "eval", "people", "list"],
        ["a painting of a tree", "specific", "eval", "asked", "list"],
        ["tree", "generic", "eval", "as-is", "list"],
        ["a photo of a tree", "generic", "eval", "things", "list"],
    ]
    assert table["prompt_id"].nunique() == 4
    assert benchmarks_of(table).tolist() == ["people", "asked", "as-is", "things"]
    assert benchmarks_of(table.assign(benchmark=None)).tolist() == table["kind"].tolist()
    assert benchmarks_of(table.drop(columns="benchmark")).tolist() == table["kind"].tolist()


def test_axes_keep_their_documents():
    plain = Axis(name="gender", classes=("a", "b"))
    assert set(plain.model_dump()) == {"name", "classes", "words", "target"}
    assert Axis.model_validate(COUPLE_TABLE).model_dump()["of"] == "picture"
