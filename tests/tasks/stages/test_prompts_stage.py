"""Stage `prompts` with lists and with a language model: keys, counts, resuming."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from llm_service import Service, answer, completion, serving

from popalign_core.config import LLMConfig, PipelineConfig, PromptsConfig, RuntimeConfig
from popalign_core.config.presets import preset
from popalign_core.errors import InputError, ServiceError
from storage.store import ArtifactRef
from tasks.common.stage_object import open_store, reference
from tasks.stages.benchmarks import add_benchmarks
from tasks.stages.identities import add_identities
from tasks.stages.prompts import write_prompts


@pytest.fixture
def runtime(tmp_path: Path) -> RuntimeConfig:
    return RuntimeConfig(root=str(tmp_path / "store"))


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        yield server


def config(**prompts: Any) -> PipelineConfig:
    return preset("smoke").model_copy(update={"prompts": PromptsConfig.model_validate(prompts)})


def tables(ref: ArtifactRef, runtime: RuntimeConfig) -> dict[str, pd.DataFrame]:
    store = open_store(runtime)
    return {name: store.read_table(ref, name) for name in store.manifest(ref).rows}


@pytest.mark.parametrize(
    ("name", "prompts_key", "identities_key"),
    [
        ("portraits", "prompts-v2-8f4e91d49094f8a0272ad3afd705dfa5", "identities-v2-81cc8d3b7cc5fb4471a0d2ad3a35077b"),
        ("smoke", "prompts-v2-1f60bba2a38d581f7470bb73d9a8052c", "identities-v2-f6e66a499c71171d1abce2c9517d9f30"),
    ],
)
def test_the_keys_of_the_embedded_presets_are_pinned(
    runtime: RuntimeConfig, name: str, prompts_key: str, identities_key: str
) -> None:
    """Lists, phrases and settings of language models came later: who does not use them keeps the artifacts."""
    store, made = open_store(runtime), preset(name)
    ref = reference(store, write_prompts.request(made))
    assert ref.key == prompts_key
    assert reference(store, add_identities.request(made, prompts=ref)).key == identities_key


def test_a_preset_for_sdxl_has_300_and_100_occupations(runtime: RuntimeConfig) -> None:
    made = tables(write_prompts(config=preset("sdxl"), runtime=runtime), runtime)
    counts = made["prompts"].groupby(["kind", "split"]).size().to_dict()
    assert counts == {("neutral", "train"): 300, ("neutral", "eval"): 100, ("generic", "eval"): 60}
    assert made["drops"].empty
    assert made["rejected"].empty


def test_lists_are_kept_or_rejected_with_a_reason(tmp_path: Path, runtime: RuntimeConfig) -> None:
    (tmp_path / "train.txt").write_text("baker\nwaitress\nThe Baker\n\nJudge in court\na cook tasting a soup\n")
    (tmp_path / "hps.json").write_text(json.dumps(["a man 🙂", "a man 🙂", "一只猫"]), encoding="utf-8")
    pd.DataFrame({"caption": ["a dog", None, "a dog", "a cat"], "image": [b"x"] * 4}).to_parquet(
        tmp_path / "pick.parquet"
    )
    made = config(
        train_subjects=["plumber"],
        train_lists=[str(tmp_path / "train.txt")],
        eval_subjects=["judge"],
        generic_lists=[str(tmp_path / "hps.json")],
        retained_lists=[str(tmp_path / "pick.parquet")],
    )
    found = tables(write_prompts(config=made, runtime=runtime), runtime)
    assert found["prompts"][["text", "kind", "split"]].to_numpy().tolist() == [
        ["a photo of a plumber", "neutral", "train"],
        ["a photo of a baker", "neutral", "train"],
        ["a photo of a cook tasting a soup", "neutral", "train"],
        ["a photo of a judge", "neutral", "eval"],
        ["a man 🙂", "generic", "eval"],
        ["一只猫", "generic", "eval"],
        ["a dog", "generic", "train"],
        ["a cat", "generic", "train"],
    ]
    assert dict(zip(found["drops"]["reason"], found["drops"]["n"], strict=True)) == {
        "duplicate": 3, "empty": 2, "held_out": 1, "names_identity": 1,
    }  # fmt: skip
    assert len(found["rejected"]) == 7
    n_given = 1 + 6 + 1 + 3 + 4
    assert len(found["prompts"]) + len(found["rejected"]) == n_given


def test_a_scene_takes_the_identity_behind_its_article(tmp_path: Path, runtime: RuntimeConfig) -> None:
    (tmp_path / "train.txt").write_text("a cook tasting a soup\n")
    made = config(train_lists=[str(tmp_path / "train.txt")])
    ref = add_identities(write_prompts(config=made, runtime=runtime), config=made, runtime=runtime)
    texts = tables(ref, runtime)["prompts"]["text"].tolist()
    assert texts[:3] == [
        "a photo of a cook tasting a soup",
        "a photo of a white male cook tasting a soup",
        "a photo of a black male cook tasting a soup",
    ]


def test_whole_prompts_keep_their_carrier_and_their_children_share_it(tmp_path: Path, runtime: RuntimeConfig) -> None:
    (tmp_path / "eval.csv").write_text(
        'Prompt\n"best quality, a realistic photo of Organ Builder "\n"best quality, a realistic photo of DJ "\n'
    )
    (tmp_path / "train.csv").write_text('Prompt\n"Botanist - Pressing plants, in a forest."\n')
    made = config(train_lists=[str(tmp_path / "train.csv")], eval_lists=[str(tmp_path / "eval.csv")])
    ref = add_identities(write_prompts(config=made, runtime=runtime), config=made, runtime=runtime)
    table = tables(ref, runtime)["prompts"]
    assert table["subject"].tolist()[:3] == ["Botanist - Pressing plants, in a forest", "Organ Builder", "DJ"]
    assert table["text"].tolist()[:4] == [
        "a photo of a botanist - pressing plants, in a forest",
        "best quality, a realistic photo of an organ builder",
        "best quality, a realistic photo of a DJ",
        "a photo of a white male botanist - pressing plants, in a forest",
    ]
    assert table["text"].iloc[-1].startswith("best quality, a realistic photo of a")
    assert set(table["template"][table["split"] == "eval"]) == {"best quality, a realistic photo of {}"}


def test_a_benchmark_of_whole_prompts_keeps_their_carrier(tmp_path: Path, runtime: RuntimeConfig) -> None:
    (tmp_path / "faces.txt").write_text("a portrait of the face of a nurse\na portrait of the face of an engineer\n")
    made = config(train_subjects=["baker"], benchmarks={"faces": {"list": str(tmp_path / "faces.txt")}})
    ref = add_benchmarks(write_prompts(config=made, runtime=runtime), config=made, runtime=runtime)
    texts = tables(ref, runtime)["prompts"].query("benchmark == 'faces'")["text"].tolist()
    assert texts == ["a portrait of the face of a nurse", "a portrait of the face of an engineer"]


def test_a_list_that_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    for name, message in (
        ("pipe.txt", "is not a regular file"),
        (".", "is not a regular file"),
        ("a\0b.txt", "null byte"),
    ):
        with pytest.raises(InputError, match=message):
            write_prompts.request(config(generic_lists=[str(tmp_path / name)]))


def test_a_list_counts_by_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("baker\nroofer\n")
    (tmp_path / "two.csv").write_text("subject,theme\nbaker,food\nroofer,trades\n")
    (tmp_path / "three.txt").write_text("baker\ncook\n")
    requests = [
        write_prompts.request(config(train_lists=[str(tmp_path / name)]))
        for name in ("one.txt", "two.csv", "three.txt")
    ]
    assert requests[0] == requests[1]
    assert requests[0] != requests[2]
    assert write_prompts.request(config(eval_lists=[str(tmp_path / "one.txt")])) != requests[0]
    (tmp_path / "one.txt").write_text("baker\ncook\n")
    assert write_prompts.request(config(train_lists=[str(tmp_path / "one.txt")])) == requests[2]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"url": ["x"]}, r"p\.parquet has the columns 'url'; rename the column that holds the prompts"),
        ({"caption": [1.5]}, r"column 'caption' is of type double; it should hold text"),
    ],
)
def test_parquet_without_prompts_is_refused(tmp_path: Path, columns: dict[str, list[Any]], message: str) -> None:
    pd.DataFrame(columns).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(InputError, match=message):
        write_prompts.request(config(generic_lists=[str(tmp_path / "p.parquet")]))


def test_lists_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"list .*gone\.txt cannot be read \(No such file.*\); give an existing file, or"
    ):
        write_prompts.request(config(generic_lists=[str(tmp_path / "gone.txt")]))
    (tmp_path / "p.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"p\.parquet cannot be read as Parquet"):
        write_prompts.request(config(generic_lists=[str(tmp_path / "p.parquet")]))


def test_a_raised_budget_goes_on_with_what_was_paid(service: Service, runtime: RuntimeConfig) -> None:
    def asking(**llm: Any) -> PipelineConfig:
        settings = {"base_url": service.url, "themes": ("a", "b"), "n_parallel": 1} | llm
        return config(source="llm", n_train=2, eval_subjects=["judge"], llm=LLMConfig.model_validate(settings))

    service.answer_with(lambda request: answer("judge", "baker" if "field of a" in str(request) else "roofer"))
    with pytest.raises(ServiceError, match=r"\[prompts/prompts-v2-.*1 of 2 usable prompts after max_calls = 1 calls"):
        write_prompts(config=asking(max_calls=1), runtime=runtime)
    raised = asking(max_calls=9, max_tokens_total=10**6, n_parallel=3, requests_per_minute=6000)
    ref = write_prompts(config=raised, runtime=runtime)
    assert len(service.requests) == 2
    found = tables(ref, runtime)
    assert found["prompts"]["subject"].tolist() == ["baker", "roofer", "judge"]
    assert found["rejected"].to_numpy().tolist() == [["judge", "held_out"]] * 2
    files = [name for name in open_store(runtime).manifest(ref).files if name.startswith("answers/")]
    assert len(files) == 2


def test_answers_without_subjects_are_kept_and_counted(service: Service, runtime: RuntimeConfig) -> None:
    thought = completion(None, reasoning_content="I would say baker.", finish_reason="stop")
    parts = [{"type": "thinking", "thinking": "Well."}, {"type": "text", "text": '{"subjects": ["baker", "judge"]}'}]
    service.play(thought, completion("\ud800"), completion(parts))
    llm = LLMConfig(base_url=service.url, themes=())
    made = config(source="llm", n_train=1, eval_subjects=["judge"], llm=llm)
    ref = write_prompts(config=made, runtime=runtime)
    found = tables(ref, runtime)
    assert found["prompts"]["subject"].tolist() == ["baker", "judge"]
    assert dict(zip(found["drops"]["reason"], found["drops"]["n"], strict=True)) == {
        "in_reasoning": 1, "not_json": 1, "held_out": 1,
    }  # fmt: skip
    assert len([name for name in open_store(runtime).manifest(ref).files if name.startswith("answers/")]) == 3
