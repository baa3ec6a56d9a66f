"""What can be known before the first image is refused before it: everything at once, and nothing that is there."""

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import text_of
from safetensors.numpy import save_file
from typer.testing import CliRunner

from flows.cli.app import app
from flows.plan import preflight
from flows.plan.compare_systems import plan_systems
from flows.plan.planning import plan_run
from flows.plan.runs import run_stage
from flows.plan.steps import needed_for
from flows.plan.sweep import plan_sweep
from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import PopAlignError, StoreError
from tasks.common import needs
from tasks.common.stage_object import open_store

Make = Callable[[Path, Path], tuple[dict[str, Any], dict[str, Any]]]
"""From a folder of one's own and a copy of the tiny pipeline to changes of the configuration and of the runtime."""


def changed(config: PipelineConfig, changes: dict[str, Any]) -> PipelineConfig:
    document = config.model_dump(exclude_none=True)
    for field, value in changes.items():
        *parents, last = field.split(".")
        table = document
        for parent in parents:
            table = table.setdefault(parent, {})
        table[last] = value
    return PipelineConfig.model_validate(document)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _without_weights(folder: Path, pipeline: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    (pipeline / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    return {"model.name": str(pipeline)}, {}


def _cut_weights(folder: Path, pipeline: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    _cut(pipeline / "vae" / "diffusion_pytorch_model.safetensors")
    return {"model.name": str(pipeline)}, {}


def _lost_shard(folder: Path, pipeline: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    unet = pipeline / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "diffusion_pytorch_model-00001-of-00002.safetensors")
    shards = {f"weight {n}": f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)}
    index = unet / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    return {"model.name": str(pipeline)}, {}


def _without(part: str, *files: str) -> Make:
    def make(folder: Path, pipeline: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        for file in files:
            (pipeline / part / file).unlink(missing_ok=True)
        return {"model.name": str(pipeline)}, {}

    return make


def _cut_lora(folder: Path, pipeline: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    file = folder / "lora.safetensors"
    save_file({"a": np.zeros(100, np.float32)}, file)
    _cut(file)
    return {"model.lora": str(file)}, {}


def _classifier(kind: str, path: str, axes: dict[str, Any], **more: Any) -> Make:
    settings = {"kind": kind, "path": path, "axes": axes} | more
    return lambda folder, pipeline: (
        {"attributes.classifier": "mine", "attributes.classifiers": {"mine": settings}},
        {},
    )


def _half_a_classifier(folder: Path, pipeline: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return _classifier("image-classifier", str(folder), {"gender": {"m": "male", "f": "female"}})(folder, pipeline)


def _people_who_differ(folder: Path, pipeline: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    (folder / "labels.csv").write_text("image_id,axis,class\n")
    people = {"kind": "people", "path": str(folder / "labels.csv"), "axes": {"gender": ["man", "woman"]}}
    return {"attributes.classifier": ["portraits", "people"], "attributes.classifiers": {"people": people}}, {}


def _set(**runtime: Any) -> Make:
    return lambda folder, pipeline: ({}, runtime)


def _give(**changes: Any) -> Make:
    fields = {name.replace("__", "."): value for name, value in changes.items()}
    return lambda folder, pipeline: (fields, {})


GENDER = {"gender": {"m": "male", "f": "female"}}
OPENAI = {"source": "llm", "n_train": 2, "llm": {"base_url": "https://api.openai.com/v1"}}
FAULTS: dict[str, tuple[Make, str, int]] = {
    "no model": (_give(model__name="nowhere"), r"model 'nowhere' is no folder", 4),
    "not in the hub cache": (
        _give(model__name="owner/name", model__revision="f" * 40),
        r"not in the local hub cache; run `popalign fetch` with the --preset.*, or `hf download owner/name",
        4,
    ),
    "no weights": (_without_weights, r"unet of .* no file named diffusion_pytorch_model.safetensors", 4),
    "weights cut off": (_cut_weights, r"vae.*is damaged or incomplete", 4),
    "a shard lost": (_lost_shard, r"names diffusion_pytorch_model-00002-of-00002.safetensors, which is not there", 4),
    "no vocabulary": (
        _without("tokenizer_2", "tokenizer.json", "vocab.json", "merges.txt"),
        r"tokenizer_2 of .* no files of its vocabulary",
        4,
    ),
    "no length of a text": (_without("tokenizer", "tokenizer_config.json"), r"no file named tokenizer_config.json", 4),
    "no noise schedule": (_without("scheduler", "scheduler_config.json"), r"no file named scheduler_config.json", 4),
    "no denoiser": (_give(model__denoiser="nowhere"), r"model.denoiser 'nowhere' holds no denoiser", 4),
    "no LoRA": (_give(model__lora="nowhere.safetensors"), r"the LoRA 'nowhere.safetensors'", 4),
    "a LoRA cut off": (_cut_lora, r"lora.safetensors is damaged or incomplete", 4),
    "no safety checker": (_give(sampling__safety_checker="nowhere"), r"the safety checker nowhere has no", 4),
    "no layouts": (_give(sampling__sdedit={"folder": "nowhere", "strength": 0.5}), r"not a folder with images", 3),
    "no DeepFace weights": (
        _give(attributes__classifier="deepface"),
        r"(?s)gender_model_weights.pth are not at.*race_model_single_batch.pth are not at",
        4,
    ),
    "no detector": (
        _give(attributes__classifier="deepface", attributes__detector_backend="retinaface"),
        r"retinaface.pth are not at",
        4,
    ),
    "no image processor": (_half_a_classifier, r"'mine' has no preprocessor_config.json", 4),
    "no ONNX file": (_classifier("onnx", "nowhere.onnx", GENDER, labels=["m", "f"]), r"nothing at nowhere.onnx", 4),
    "an axis that nobody reads": (
        _give(axes=[{"name": "mood", "classes": ["glad", "sad"]}]),
        r"does not read the axis 'mood'",
        3,
    ),
    "a class that nobody knows": (
        _give(axes=[{"name": "gender", "classes": ["male", "female", "diverse"]}]),
        r"has no class \['diverse'\] for the axis 'gender'",
        3,
    ),
    "classifiers that cannot agree": (_people_who_differ, r"have no class in common", 3),
    "a device of no such name": (_set(device="gpu"), r"device 'gpu' is unknown", 2),
    "a device that is not there": (_set(device="cuda:7"), r"device 'cuda:7' is not on this machine", 2),
    "no key": (_give(prompts=OPENAI), r"\$OPENAI_API_KEY holds no key", 2),
    "no prompt list": (_give(prompts__eval_lists=["nowhere.txt"]), r"prompt list nowhere.txt cannot be read", 3),
    "no runner": (
        _set(runner="ray", n_workers=2),
        r"'ray' needs the package prefect_ray, which is not installed; pip install",
        2,
    ),
    "no open_clip": (
        _classifier("open-clip", __file__, {"gender": {"male": "a man", "female": "a woman"}}, architecture="ViT-B-32"),
        r"needs the package open_clip, which is not installed; pip install 'popalign\[clip\]'",
        2,
    ),
    "no tracker": (_set(trackers=("wandb",)), r"names 'wandb', which is not installed", 2),
    "pairs that do not divide": (_set(micro_pairs=3), r"training.n_pairs is 2", 2),
}


@pytest.fixture
def make_fault(
    tmp_path: Path, tiny_weights: Path, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Make], tuple[PipelineConfig, RuntimeConfig]]:  # fmt: skip
    """The tiny configuration with one thing wrong, on a machine that has no weights, keys or extras."""
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(needs, "find_spec", lambda name: None)
    monkeypatch.setattr("popalign_core.training.settings_check.find_spec", lambda name: name == "tensorboard" or None)

    def make(change: Make) -> tuple[PipelineConfig, RuntimeConfig]:
        folder, pipeline = tmp_path / "own", tmp_path / "pipeline"
        folder.mkdir(exist_ok=True)
        shutil.copytree(tiny_weights / "pipeline", pipeline, dirs_exist_ok=True)
        changes, runtime = change(folder, pipeline)
        return changed(tiny_config, changes), RuntimeConfig(**tiny_runtime.model_dump() | runtime)

    return make


MakeFault = Callable[[Make], tuple[PipelineConfig, RuntimeConfig]]


@pytest.mark.parametrize("name", FAULTS)
def test_what_can_be_known_is_refused_before_anything_is_run(name: str, make_fault: MakeFault) -> None:
    change, message, exit_code = FAULTS[name]
    config, runtime = make_fault(change)
    with pytest.raises(PopAlignError, match=message) as caught:
        plan_run(config, runtime)
    assert caught.value.exit_code == exit_code
    assert open_store(runtime).list_artifacts() == []


def test_all_that_is_missing_is_said_at_once(make_fault: MakeFault) -> None:
    def five(folder: Path, pipeline: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        _cut_weights(folder, pipeline)
        changes = {
            "model.name": str(pipeline),
            "prompts.eval_lists": ["nowhere.txt"],
            "attributes.classifier": "deepface",
            "attributes.detector_backend": "yunet",
        }
        return changes, {"device": "gpu"}

    config, runtime = make_fault(five)
    with pytest.raises(PopAlignError) as caught:
        plan_run(config, runtime)
    first, *said = str(caught.value).splitlines()
    assert first == "6 items are missing or wrong; nothing was run:"
    for text in ("nowhere.txt", "incomplete", "'gpu'", "gender_model", "race_model", "face_detection_yunet"):
        assert len([line for line in said if line.startswith("- ") and text in line]) == 1
    assert len(said) == 6


def test_every_part_of_a_model_that_is_not_whole_is_named(make_fault: MakeFault) -> None:
    def three(folder: Path, pipeline: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        _cut_weights(folder, pipeline)
        _without_weights(folder, pipeline)
        return _without("tokenizer_2", "tokenizer.json", "vocab.json", "merges.txt")(folder, pipeline)

    config, runtime = make_fault(three)
    with pytest.raises(PopAlignError, match="3 parts of the model are incomplete") as caught:
        plan_run(config, runtime)
    said = str(caught.value).splitlines()[1:]
    for line, text in zip(said, ("tokenizer_2", "unet", "vae"), strict=True):
        assert line.startswith("- ")
        assert text in line


def test_of_what_lies_in_the_store_nothing_is_asked(
    finished: None, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images read before: the report can be written again on a machine without classifier or device."""
    monkeypatch.setattr(needs, "classes_read", lambda name, config: {})
    elsewhere = tiny_runtime.model_copy(update={"device": "gpu"})
    assert all(node.is_hit for node in plan_run(tiny_config, elsewhere))
    fewer = tiny_config.model_copy(
        update={"evaluation": tiny_config.evaluation.model_copy(update={"n_bootstrap": 101})}
    )
    missing = [node.node for node in plan_run(fewer, elsewhere) if not node.is_hit]
    assert missing == ["calibration", "evaluate:base", "evaluate:aligned", "report"]
    with pytest.raises(PopAlignError, match="does not read the axis 'gender'"):
        plan_run(changed(tiny_config, {"attributes.min_face_share": 0.03}), tiny_runtime)


def test_a_disk_that_is_too_small_is_said_before_the_first_image(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage(2**40, 2**40 - 2**20, 2**20))
    with pytest.raises(
        PopAlignError, match=r"images of 64 x 64 px take \d.\d GiB and training \d.\d GiB, and .* has 0.0 GiB left"
    ) as caught:
        plan_run(changed(tiny_config, {"preferences.n_neutral": 60}), tiny_runtime)
    assert caught.value.exit_code == 5
    plan_run(tiny_config, tiny_runtime, needed_for("prompts"))
    # the images are few, and the training with its checkpoints is what does not fit
    with pytest.raises(StoreError, match=r"px take 0\.0 GiB and training 0\.0 GiB, and .* has 0\.0 GiB left"):
        plan_run(tiny_config, tiny_runtime)


def test_every_way_to_run_looks_first(make_fault: MakeFault) -> None:
    config, runtime = make_fault(_give(attributes__classifier="deepface"))

    def never(*args: Any) -> Any:
        raise AssertionError("something was run")

    for run in (
        lambda: run_stage("attributes-eval:base", config, runtime, call=never),
        lambda: plan_systems(["base", "popalign"], config, runtime),
        lambda: plan_sweep({"training.beta": [1.0, 2.0]}, config, runtime),
    ):
        with pytest.raises(PopAlignError, match="2 items are missing"):
            run()


@pytest.mark.usefixtures("stand_ins")
def test_the_doctor_shows_what_a_configuration_needs(
    tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(app, ["doctor", "--preset", "sdxl"])
    lines = text_of(told.output).splitlines()
    assert told.exit_code == 4
    for what in ("model stabilityai/", "DeepFace gender_", "DeepFace race_", "face detector retinaface", "scorer hps"):
        assert next(line[:8].strip() for line in lines if line[9:].startswith(what)) == "missing", what
    assert [line[:2] for line in lines if line[9:].startswith(("device auto", "classifier deepface for"))] == ["ok"] * 2
    assert list(tmp_path.iterdir()) == []  # it looks, and makes nothing
    told = CliRunner().invoke(app, ["doctor", "--set", f"model.name={tiny_weights / 'pipeline'}"])
    assert told.exit_code == 0
    assert "missing" not in told.output
