"""Stage `benchmarks`: prompts of named benchmarks beside all others, rejected ones with reasons, keys."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from popalign_core.config import PipelineConfig, PromptsConfig, RuntimeConfig
from popalign_core.config.presets import preset
from popalign_core.errors import InputError
from storage.store import ArtifactRef
from tasks.common.stage_object import open_store, reference
from tasks.stages.benchmarks import add_benchmarks
from tasks.stages.identities import add_identities
from tasks.stages.prompts import write_prompts

P = ArtifactRef("identities", "identities-key")


@pytest.fixture
def runtime(tmp_path: Path) -> RuntimeConfig:
    return RuntimeConfig(root=str(tmp_path / "store"))


def config(**prompts: Any) -> PipelineConfig:
    return preset("smoke").model_copy(update={"prompts": PromptsConfig.model_validate(prompts)})


def made(config: PipelineConfig, runtime: RuntimeConfig) -> dict[str, pd.DataFrame]:
    neutral = write_prompts(config=config, runtime=runtime)
    prompts = add_identities(neutral, config=config, runtime=runtime)
    ref = add_benchmarks(prompts, config=config, runtime=runtime)
    store = open_store(runtime)
    return {name: store.read_table(ref, name) for name in store.manifest(ref).rows}


def test_benchmarks_by_name_have_prompts_of_their_own(tmp_path: Path, runtime: RuntimeConfig) -> None:
    (tmp_path / "people.txt").write_text("beekeeper\nwaitress\nplumber in a kitchen\n")
    (tmp_path / "PartiPrompts.tsv").write_text("Prompt\tCategory\n" + "".join(f"thing {i}\tx\n" for i in range(10)))
    pd.DataFrame({"caption": ["the moon", "a cat", "a photo of the moon"]}).to_parquet(tmp_path / "pick.parquet")
    found = made(
        config(
            train_subjects=["plumber"],
            eval_subjects=["judge"],
            retained_subjects=["the moon"],
            benchmarks={
                "people": {"list": str(tmp_path / "people.txt"), "kind": "specific", "axes": ["gender"]},
                "parti": {"list": str(tmp_path / "PartiPrompts.tsv"), "kind": "generic", "n_prompts": 2},
                "pick-a-pic": {"list": str(tmp_path / "pick.parquet"), "kind": "generic"},
                "descriptor": {"n_prompts": 4},
            },
        ),
        runtime,
    )
    prompts = found["prompts"]
    assert prompts.groupby(["benchmark", "kind", "split"]).size().to_dict() == {
        ("generic", "generic", "train"): 1,
        ("neutral", "neutral", "train"): 1,
        ("neutral", "neutral", "eval"): 1,
        ("specific", "specific", "train"): 6,
        ("specific", "specific", "eval"): 6,
        ("people", "specific", "eval"): 2,
        ("parti", "generic", "eval"): 2,
        ("pick-a-pic", "generic", "eval"): 1,
        ("descriptor", "neutral", "eval"): 4,
    }
    people = prompts[prompts["benchmark"] == "people"]
    assert people["text"].tolist() == ["a photo of a male beekeeper", "a photo of a female beekeeper"]
    assert people["identity"].tolist() == [{"gender": "male"}, {"gender": "female"}]
    assert people["parent_id"].nunique() == 1
    assert prompts.loc[prompts["benchmark"] == "parti", "text"].tolist() == ["thing 0", "thing 5"]
    assert prompts["prompt_id"].is_unique
    # what is trained on is not measured on
    assert found["rejected"].to_numpy().tolist() == [
        ["waitress", "names_identity"], ["plumber in a kitchen", "held_out"], ["the moon", "held_out"],
        ["a photo of the moon", "held_out"],
    ]  # fmt: skip
    assert dict(zip(found["drops"]["reason"], found["drops"]["n"], strict=True)) == {"held_out": 3, "names_identity": 1}


@pytest.mark.parametrize(("name", "n_prompts"), [("descriptor", 40), ("age", 40), ("couples", 40)])
def test_the_benchmarks_that_ship_lose_no_prompt_beside_the_occupations(
    name: str, n_prompts: int, runtime: RuntimeConfig
) -> None:
    document = preset("sdxl").model_dump(exclude_none=True)
    document["axes"] = [*document["axes"], "couple", "age"]
    document["prompts"]["benchmarks"] = {name: {}}
    found = made(PipelineConfig.model_validate(document), runtime)
    assert (found["prompts"]["benchmark"] == name).sum() == n_prompts
    assert found["rejected"].empty


def test_the_same_prompt_in_two_benchmarks_is_two_prompts(runtime: RuntimeConfig) -> None:
    lists: dict[str, Any] = {"list": "ages", "n_prompts": 3}
    benchmarks = {"painted": lists | {"carrier": "a painting of {}"}, "again": lists}
    table = made(config(eval_lists=["ages"], benchmarks=benchmarks), runtime)["prompts"]
    table = table[table["kind"] == "neutral"]
    assert table["benchmark"].value_counts().to_dict() == {"neutral": 40, "painted": 3, "again": 3}
    assert table["prompt_id"].nunique() == 46
    assert table["text"].nunique() == 43


def test_a_benchmark_of_which_nothing_is_left_is_an_error(tmp_path: Path, runtime: RuntimeConfig) -> None:
    (tmp_path / "p.txt").write_text("waitress\nplumber\n")
    asked = config(train_subjects=["plumber"], benchmarks={"p": {"list": str(tmp_path / "p.txt")}})
    with pytest.raises(InputError, match=r"\[benchmarks/.* none of the 2 prompt\(s\) in .*p\.txt .*'held_out': 1"):
        made(asked, runtime)
    gone = config(train_subjects=["plumber"], benchmarks={"p": {"list": str(tmp_path / "gone.txt")}})
    with pytest.raises(InputError, match=r"gone\.txt cannot be read"):
        made(gone, runtime)


def test_without_named_benchmarks_the_prompts_are_the_answer(runtime: RuntimeConfig) -> None:
    plain = config(eval_subjects=["judge"])
    assert add_benchmarks.request(plain, prompts=P) == P
    prompts = write_prompts(config=plain, runtime=runtime)
    assert add_benchmarks(prompts, config=plain, runtime=runtime) == prompts


def test_benchmarks_count_by_their_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("tree\ncat\n")
    store = open_store(RuntimeConfig(root=str(tmp_path / "store")))

    def key(**more: Any) -> str:
        benchmark = {"list": str(tmp_path / "p.txt"), "kind": "neutral"} | more
        asked = config(eval_subjects=["judge"], benchmarks={"things": benchmark})
        return reference(store, add_benchmarks.request(asked, prompts=P)).key

    assert key() == key(n_images=9) == key(n_prompts=2)
    others: tuple[dict[str, Any], ...] = ({"n_prompts": 1}, {"carrier": "{}!"}, {"kind": "generic"}, {"axes": ["race"]})
    assert len({key(), *(key(**more) for more in others)}) == 5
    assert key() == "benchmarks-v2-5f8a6376146e1f255b3e487ae08155fa"
