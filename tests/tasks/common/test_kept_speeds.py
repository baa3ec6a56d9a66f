"""What is kept of this machine's speed: found again where the same decides it, and lost without harm."""

from pathlib import Path
from typing import Any

import pytest

from popalign_core import machine
from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.config.presets import preset
from popalign_core.machine import describe_machine
from tasks.common.kept_speeds import FILE, Rate, find_kept, find_rate, keep_rate, keep_value, read_kept, stage_speed

RATE = Rate(first_s=14.0, again_s=1.5, unit_s=0.125, unit_bytes=9000.0)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POPALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def changed(config: PipelineConfig, part: str, **values: Any) -> PipelineConfig:
    return config.model_copy(update={part: getattr(config, part).model_copy(update=values)})


def test_a_rate_is_found_where_the_same_decides_the_speed() -> None:
    config, runtime = preset("smoke"), RuntimeConfig()
    keep_rate(stage_speed("sample", config, runtime), RATE)
    assert find_rate(stage_speed("sample", changed(config, "sampling", seed=7), runtime)) == RATE
    assert find_rate(stage_speed("sample", changed(config, "training", n_steps=9), runtime)) == RATE
    assert find_rate(stage_speed("train", config, runtime)) is None
    for other in (changed(config, "sampling", n_steps=5), changed(config, "model", dtype="bfloat16")):
        assert find_rate(stage_speed("sample", other, runtime)) is None
    for other_runtime in (RuntimeConfig(batch_size=8), RuntimeConfig(n_threads=7), RuntimeConfig(fuse_qkv=True)):
        assert find_rate(stage_speed("sample", config, other_runtime)) is None


@pytest.mark.parametrize(
    ("field", "value", "is_same"),
    [
        ("beta", 9.0, True),
        ("learning_rate", 1e-9, True),
        ("seed", 4, True),
        ("n_pairs", 6, False),
        ("retention", 0, False),
    ],
)
def test_a_training_step_is_as_fast_whatever_beta_is(field: str, value: float, is_same: bool) -> None:
    config, runtime = preset("smoke"), RuntimeConfig()
    keep_rate(stage_speed("train", config, runtime), RATE)
    found = find_rate(stage_speed("train", changed(config, "training", **{field: value}), runtime))
    assert (found == RATE) == is_same


def test_older_instructions_are_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    own = describe_machine("cpu", 2)
    assert (own["threads"], own["gpu"]) == (2, "")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert describe_machine("cpu", 2) == own | {"ONEDNN_MAX_CPU_ISA": "AVX2"}


def test_the_gpu_is_part_of_the_machine_unless_the_cpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpu_name", lambda: "NVIDIA H200")
    assert describe_machine("auto", 1)["gpu"] == "NVIDIA H200"
    assert describe_machine("cpu", 1)["gpu"] == ""


def test_the_newest_counts_and_the_oldest_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.common.kept_speeds._MOST_ENTRIES", 2)
    for name, value in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        keep_value("layouts", {"of": name}, {"n": value})
    assert [find_kept("layouts", {"of": name}) for name in "abc"] == [{"n": 3}, None, {"n": 4}]
    assert (folder / FILE).is_file()


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 0}', '{"format": 1, "rates": [{}], "layouts": []}', "\\ud800"])
def test_a_damaged_file_is_none_and_is_written_anew(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / FILE).write_text(text, encoding="utf-8")
    assert read_kept() == {"rates": {}, "layouts": {}}
    keep_value("layouts", {"of": "a"}, {"n": 1})
    assert find_kept("layouts", {"of": "a"}) == {"n": 1}


def test_a_folder_that_cannot_be_written_keeps_nothing_and_harms_nothing(folder: Path) -> None:
    folder.write_text("a file", encoding="utf-8")
    keep_rate({"of": "a"}, RATE)
    assert find_rate({"of": "a"}) is None
