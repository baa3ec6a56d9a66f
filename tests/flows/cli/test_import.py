"""Pairs from the command line: import, train, and a model that the pipeline goes on from."""

import json
from pathlib import Path

import pandas as pd
import pytest
from diffusers import StableDiffusionXLPipeline
from pair_files import BRIGHT, DARK, picture, row, ten_pairs, write_pairs
from set_files import bad_members, two_sets, write_sets
from typer.testing import CliRunner, Result

from flows.cli.app import app
from storage.store import ArtifactRef, Store


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tie = row((picture(BRIGHT), picture(DARK)), 0.5, "a tie")
    return write_pairs(tmp_path / "pairs.parquet", [*ten_pairs(), tie])


@pytest.fixture
def options(tmp_path: Path, tiny_weights: Path) -> list[str]:
    """The smoke preset on the tiny model, and two steps of Diffusion-DPO."""
    settings = {
        "model.name": tiny_weights / "pipeline",
        "training.objective": "diffusion-dpo",
        "training.retention": 0,
        "training.n_steps": 2,
        "runtime.device": "cpu",
    }
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    return ["--preset", "smoke", "--root", str(tmp_path / "store"), *words]


def invoke(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def imported(file: Path, options: list[str]) -> str:
    result = invoke("import", "pairs", str(file), *options)
    assert result.exit_code == 0, result.output
    assert "10 pair(s) to train on; dropped: 1 tie\n" in result.stderr
    return result.stdout.strip()


def test_pairs_are_imported_trained_on_and_gone_on_from(file: Path, options: list[str], tmp_path: Path) -> None:
    key = imported(file, options)
    store = Store(str(tmp_path / "store"))
    assert store.is_published(ArtifactRef("pairs", key))
    result = invoke("train", key, "--name", "tiny-dpo", *options)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "store" / "runs" / "tiny-dpo"
    model = folder / "model"
    assert result.stdout == f"The model is in {model}; `popalign run --set model.name={model}` continues from there\n"
    StableDiffusionXLPipeline.from_pretrained(model, add_watermarker=False)
    assert sorted(path.name for path in folder.iterdir()) == ["model", "reserved.json", "run.json"]

    recorded = json.loads((folder / "run.json").read_text())["artifacts"]
    assert ["pairs", key] in recorded
    assert [stage for stage, _ in recorded] == ["pairs", "train"]
    assert invoke("gc", "--root", store.root).exit_code == 0
    assert sorted([ref.stage, ref.key] for ref in store.list_artifacts()) == sorted(recorded)

    planned = invoke("plan", "--preset", "smoke", "--root", store.root, "--set", f"model.name={model}")
    assert planned.exit_code == 0
    assert "16 of 16 stages to run" in planned.stdout


def test_pairs_of_other_programs_are_the_same_pairs(options: list[str], tmp_path: Path) -> None:
    """Image structs, a categorical and an index, as HF `datasets` and pandas write them."""
    frame = pd.DataFrame(ten_pairs()).astype({"caption": "category", "label_0": "bool"}).set_index("image_0_uid")
    for name in ("jpg_0", "jpg_1"):
        frame[name] = [{"bytes": data, "path": "gone.jpg"} for data in frame[name]]
    frame.to_parquet(tmp_path / "pairs.parquet")
    result = invoke("import", "pairs", str(tmp_path / "pairs.parquet"), *options)
    assert result.exit_code == 0, result.output
    assert "10 pair(s) to train on; dropped: none\n" in result.stderr


def test_sets_are_imported_and_trained_on(options: list[str], tmp_path: Path) -> None:
    rows = [*two_sets(), *(row for _, row in bad_members())]
    (tmp_path / "sets").mkdir()
    write_sets(tmp_path / "sets" / "train-00000-of-00001.parquet", rows)
    result = invoke("import", "sets", str(tmp_path / "sets"), *options)
    assert result.exit_code == 0, result.output
    assert (
        "14 member(s) of 2 pair(s) of sets to train on; dropped: 2 captions of a set differ, 1 empty" in result.stderr
    )
    key = result.stdout.strip()
    trained = invoke("train", key, "--name", "sets", *options, "--set", "training.objective=popalign")
    assert trained.exit_code == 0, trained.output
    recorded = json.loads((tmp_path / "store" / "runs" / "sets" / "run.json").read_text())["artifacts"]
    assert recorded[0] == ["sets", key]
    assert [stage for stage, _ in recorded] == ["sets", "train"]


def test_an_adapter_comes_with_the_model_and_goes_with_it(file: Path, options: list[str], tmp_path: Path) -> None:
    key = imported(file, options)
    lora = tmp_path / "store" / "runs" / "mine" / "lora"
    assert invoke("train", key, *options, "--name", "mine", "--set", "training.lora_rank=2").exit_code == 0
    assert [path.name for path in lora.iterdir()] == ["pytorch_lora_weights.safetensors"]
    refused = invoke("train", key, *options, "--name", "mine")
    assert (refused.exit_code, "differs in training" in refused.stderr) == (2, True)
    assert lora.exists()
    assert invoke("train", key, *options, "--name", "mine", "--replace").exit_code == 0
    assert not lora.exists()


def test_a_folder_with_a_whole_run_is_left_alone(file: Path, options: list[str], tmp_path: Path) -> None:
    key = imported(file, options)
    run = Store(str(tmp_path / "store")).run_folder("whole")
    run.record([], {"nodes": {"report": "report/report-v1-0"}})
    result = invoke("train", key, "--name", "whole", *options)
    assert result.exit_code == 2
    assert "runs/whole holds a complete run with its report; give another --name" in result.stderr


def test_mistakes_have_a_message_and_a_code(file: Path, options: list[str], tmp_path: Path) -> None:
    other = write_pairs(tmp_path / "other.parquet", ten_pairs(), without=["label_0"])
    retain = ["--set", "training.retention=1"]
    for words, more, code, message in (
        (["train", "sets-v2-0"], [], 3, "there are no sets 'sets-v2-0' in"),
        (["train", "pairs-v2-0"], [], 3, "there are no pairs 'pairs-v2-0' in"),
        (["import", "pairs", str(other)], [], 3, "lacks the columns ['label_0'], it has ['are_different', 'caption'"),
        (["import", "pairs", "/not/there.parquet"], [], 3, "/not/there.parquet is not there; give a Parquet file"),
        (["import", "pairs"], [], 2, "Missing argument 'FILE...'"),
        (["train", imported(file, options)], retain, 3, "the data holds no retained image; set it to 0"),
    ):
        result = invoke(*words, *options, *more)
        assert (result.exit_code, message in result.stderr) == (code, True), result.output
        assert "Traceback" not in result.output
