"""Readings of every person's image, drops counted, generic images left out."""

import io
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from chessboards import lit
from face_classifiers import CornerClassifier, seen_gpu
from onnx_files import write_colour_network
from PIL import Image

from popalign_core.attributes.classifier_process import IsolatedClassifier
from popalign_core.config import AttributesConfig, Axis, PipelineConfig, RuntimeConfig
from popalign_core.errors import InputError
from storage.store import ArtifactRef
from tasks.common import measuring
from tasks.common.stage_object import open_store, reference
from tasks.stages.attributes import read_attributes, tabulate_image_drops
from tasks.stages.benchmarks import add_benchmarks
from tasks.stages.evaluate import evaluate_system
from tasks.stages.identities import add_identities
from tasks.stages.prompts import write_prompts
from tasks.stages.sample import sample_images
from tasks.stages.scores import score_images


def sampled(config: PipelineConfig, runtime: RuntimeConfig) -> tuple[ArtifactRef, ArtifactRef]:
    neutral = write_prompts(config=config, runtime=runtime)
    prompts = add_benchmarks(add_identities(neutral, config=config, runtime=runtime), config=config, runtime=runtime)
    return prompts, sample_images(prompts, purpose="evaluation", config=config, runtime=runtime)


def test_every_image_of_a_person_is_read_once(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    # shards of 4: the fourth holds generic images only, and so no row of attributes
    tiny_runtime = tiny_runtime.model_copy(update={"shard_size": 4})
    prompts, sample = sampled(tiny_config, tiny_runtime)
    ref = read_attributes(prompts, sample, config=tiny_config, runtime=tiny_runtime)
    store = open_store(tiny_runtime)
    attributes, drops = store.read_table(ref, "attributes"), store.read_table(ref, "drops")
    kinds = store.read_table(prompts, "prompts").set_index("prompt_id")["kind"]
    images = store.read_table(sample, "images").set_index("image_id")
    assert attributes["image_id"].is_unique
    assert kinds.loc[images.loc[attributes["image_id"], "prompt_id"]].value_counts().to_dict() == {
        "neutral": 12,
        "specific": 12,
    }
    assert set(attributes["classifier"]) == {"pixel-sum@1"}
    assert drops["n"].sum() == attributes["drop_reason"].notna().sum()


def with_couples(config: PipelineConfig, folder: Path) -> PipelineConfig:
    """And a network that reads the tone of whole pictures of couples, beside the embedded classifier."""
    path = write_colour_network(folder / "tone.onnx", np.repeat([[-1.0, 1.0]], 3, axis=0), [0.0, 0.0], (16, 16))
    tone = {
        "kind": "onnx", "path": str(path), "axes": {"tone": {"dark": "dark", "light": "light"}},
        "labels": ["dark", "light"],
    }  # fmt: skip
    document = config.model_dump(exclude_none=True)
    document["axes"] = [
        *document["axes"],
        {"name": "tone", "classes": ["dark", "light"], "of": "picture", "only_measured": True},
    ]
    document["attributes"] = {"classifier": ["portraits", "tone"], "classifiers": {"tone": tone}}
    document["prompts"]["benchmarks"] = {"couples": {"n_prompts": 2, "n_images": 3, "axes": ["tone"]}}
    return PipelineConfig.model_validate(document)


def test_a_benchmark_has_rows_of_its_own_axes_alone(
    tmp_path: Path, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    """Whole pictures are read, with a class for each, where the classifier of faces finds none in noise."""
    config = with_couples(tiny_config, tmp_path)
    prompts, sample = sampled(config, tiny_runtime)
    store = open_store(tiny_runtime)
    attributes = read_attributes(prompts, sample, config=config, runtime=tiny_runtime)
    read = store.read_table(attributes, "attributes")
    images = store.read_table(sample, "images", ["image_id", "prompt_id"]).set_index("image_id")["prompt_id"]
    benchmarks = store.read_table(prompts, "prompts").set_index("prompt_id")["benchmark"]
    rows = read.assign(benchmark=images[read["image_id"]].map(benchmarks).to_numpy())
    assert rows.groupby(["benchmark", "axis"]).size().to_dict() == {
        ("couples", "tone"): 6,
        ("neutral", "gender"): 12,
        ("specific", "gender"): 12,
    }
    couples = rows[rows["benchmark"] == "couples"]
    assert couples["drop_reason"].isna().all()
    assert couples["class"].isin(["dark", "light"]).all()
    assert set(rows.loc[rows["axis"] == "gender", "drop_reason"]) == {"no_face"}

    scored = score_images(prompts, sample, config=config, runtime=tiny_runtime)
    metrics = evaluate_system(prompts, sample, attributes, scored, system="base", config=config, runtime=tiny_runtime)
    table = store.read_table(metrics, "metrics")
    assert set(table.loc[table["axis"] == "tone", "benchmark"]) == {"couples"}
    found = table[(table["benchmark"] == "couples") & (table["axis"] == "tone")].set_index("metric")
    share = (couples["class"] == "light").mean()
    assert found.loc["share:light", "value"] == pytest.approx(share)
    assert found.loc["share:light", "n"] == 6
    assert "no_face_share" not in found.index
    assert set(table.loc[table["metric"] == "no_face_share", "benchmark"]) == {"neutral", "specific"}
    assert "gender" not in set(table.loc[table["benchmark"] == "couples", "axis"])


def test_an_image_counts_once_for_a_reason() -> None:
    table = pd.DataFrame(
        {
            "image_id": ["a", "a", "b", "b", "c", "c"],
            "axis": ["gender", "race"] * 3,
            "drop_reason": ["no_face", "no_face", None, "unsure", None, None],
        }
    )
    assert tabulate_image_drops(table).values.tolist() == [["attributes", "no_face", 1], ["attributes", "unsure", 1]]


def test_a_class_the_classifier_lacks_is_refused(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    axis = Axis(name="gender", classes=("male", "female", "non-binary"))
    config = tiny_config.model_copy(update={"axes": (axis,)})
    prompts, sample = sampled(config, tiny_runtime)
    with pytest.raises(InputError, match=r"\[attributes/attributes-v1-.*non-binary"):
        read_attributes(prompts, sample, config=config, runtime=tiny_runtime)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, format=kind)
    return sink.getvalue()


def publish_images(runtime: RuntimeConfig, prompt_id: str, pictures: dict[str, bytes]) -> ArtifactRef:
    """An artifact with a picture an id, in shards of two, whatever the bytes are."""
    store, ref = open_store(runtime), ArtifactRef("sample", "sample-v1-odd")
    names = list(pictures)
    with store.build(ref, {"test": "odd pictures"}) as build:
        for number, start in enumerate(range(0, len(names), 2)):
            rows = names[start : start + 2]
            table = pd.DataFrame({"image_id": rows, "image": [{"bytes": pictures[n], "path": None} for n in rows]})
            table = table.assign(prompt_id=prompt_id, seed=0, width=8, height=8, latents_file="", latents_row=0)
            build.write_table("images", table.assign(index=range(len(rows))), shard=number)
            build.mark_shard(number, {"images": len(rows)})
    return ref


def test_odd_pictures_never_stop_a_shard(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    prompts = add_identities(
        write_prompts(config=tiny_config, runtime=tiny_runtime), config=tiny_config, runtime=tiny_runtime
    )
    table = open_store(tiny_runtime).read_table(prompts, "prompts")
    prompt_id = table.loc[table["kind"] == "neutral", "prompt_id"].iloc[0]
    good = lit(np.full((8, 8, 3), 9, np.uint8), "male")
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, format="PNG")
    noise = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), "JPEG")
    sample = publish_images(
        tiny_runtime,
        prompt_id,
        {
            "good": encoded(good),
            "empty": b"",
            "truncated": noise[:200],
            "wide": encoded(lit(np.full((8, 33, 3), 9, np.uint8), "female")),
            "bomb": bomb.getvalue(),
            "grey": encoded(lit(np.full((9, 9), 11, np.uint8), "male")),
            "sixteen": encoded(lit(np.full((9, 9), 20, np.uint8), "female").astype(np.uint16) * 257),
        },
    )
    ref = read_attributes(prompts, sample, config=tiny_config, runtime=tiny_runtime)
    store = open_store(tiny_runtime)
    rows = store.read_table(ref, "attributes").set_index("image_id")
    reasons = {name: None if pd.isna(reason) else reason for name, reason in rows["drop_reason"].items()}
    assert reasons == {
        "good": None,
        "empty": "undecodable image",
        "truncated": "undecodable image",
        "wide": None,
        "bomb": "too large image",
        "grey": None,
        "sixteen": None,
    }
    assert rows.loc[["good", "wide", "grey", "sixteen"], "class"].tolist() == ["male", "female", "male", "female"]
    drops = store.read_table(ref, "drops")
    assert dict(zip(drops["reason"], drops["n"], strict=True)) == {"too large image": 1, "undecodable image": 2}


P, S = ArtifactRef("identities", "identities-key"), ArtifactRef("sample", "sample-key")


def with_attributes(config: PipelineConfig, **changes: object) -> PipelineConfig:
    document = config.model_dump()
    document["attributes"] |= changes
    return PipelineConfig.model_validate(document)


def test_keys_of_before_stay_and_new_settings_change_them(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    """Another key here means that everybody's artifacts are made again."""
    store, asked = open_store(tiny_runtime), read_attributes.request(tiny_config, prompts=P, sample=S)
    assert set(asked.payload["config"]["attributes"]) == {
        "classifier", "detector_backend", "min_face_score", "min_face_share", "min_probability",
    }  # fmt: skip
    assert asked.payload["config"]["classifier"] == "pixel-sum@1"
    keys = {
        reference(store, read_attributes.request(with_attributes(tiny_config, **changes), prompts=P, sample=S)).key
        for changes in (
            {},
            {"several_faces": "largest"},
            {"age_bands": {"young": 0, "old": 60}},
            {"classifier": "deepface"},
            {"classifier": ["portraits", "deepface"]},
        )
    }
    assert len(keys) == 5
    assert reference(store, asked).key == "attributes-v1-e74a046a1b94dde718a3c0735fd6dfd5"


@pytest.mark.parametrize(
    ("device", "visible", "seen"),
    [("cuda:1", "", "cuda of 1"), ("cuda:1", "4,GPU-5", "cuda of GPU-5"), ("cpu", "4,GPU-5", "cpu of 4,GPU-5")],
)
def test_a_reader_sees_the_gpu_of_its_worker_alone(
    device: str, visible: str, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some detectors and ONNX take the first GPU they see, whatever device is asked for."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    described = measuring.Classifier(lambda: "1", lambda config, device: measuring._isolate(seen_gpu, device))
    monkeypatch.setitem(measuring.CLASSIFIERS, "portraits", described)
    assert measuring.load_attribute_classifier(AttributesConfig(classifier="portraits"), device).version == seen


def test_kill_minus_9_in_the_middle_of_the_stage_changes_nothing(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, sample = sampled(tiny_config, tiny_runtime)
    log = tmp_path / "log"

    def use(load: Any) -> None:
        reader = measuring.Classifier(lambda: "corner@1", lambda config, device: load())
        monkeypatch.setitem(measuring.CLASSIFIERS, "portraits", reader)

    def kill_in_its_third_batch() -> None:
        while not log.exists() or len(log.read_text().splitlines()) < 3:
            time.sleep(0.01)
        os.kill(int(log.read_text().split()[0]), signal.SIGKILL)

    store = open_store(tiny_runtime)
    killer = threading.Thread(target=kill_in_its_third_batch)
    killer.start()
    use(lambda: IsolatedClassifier(partial(CornerClassifier, dies=False, log=log, delay_s=0.4)))
    killed = store.read_table(read_attributes(prompts, sample, config=tiny_config, runtime=tiny_runtime), "attributes")
    killer.join()
    processes = [line.split()[0] for line in log.read_text().splitlines()]
    assert len(set(processes)) == 2
    assert len(processes) == 7  # 24 images in batches of 4, one of them twice
    use(lambda: CornerClassifier(dies=False))
    other = with_attributes(tiny_config, several_faces="largest")  # another key, the same readings
    whole = store.read_table(read_attributes(prompts, sample, config=other, runtime=tiny_runtime), "attributes")
    pd.testing.assert_frame_equal(killed, whole)


def test_votes_are_counted(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path) -> None:
    prompts, sample = sampled(tiny_config, tiny_runtime)
    store = open_store(tiny_runtime)
    alone = store.read_table(read_attributes(prompts, sample, config=tiny_config, runtime=tiny_runtime), "attributes")
    ids = alone["image_id"].tolist()
    # the network says male whatever it sees; people say so of all but two, and saw all but one
    network = write_colour_network(tmp_path / "net.onnx", np.zeros((3, 2)), [5.0, 0.0], (8, 8))
    said = pd.DataFrame({"image_id": ids[:-1], "axis": "gender", "class": ["female"] * 2 + ["male"] * (len(ids) - 3)})
    said.to_csv(tmp_path / "people.csv", index=False)
    gender = {"male": "male", "female": "female"}
    described = {
        "net": {"kind": "onnx", "path": str(network), "labels": list(gender), "axes": {"gender": gender}},
        "crowd": {"kind": "people", "path": str(tmp_path / "people.csv"), "axes": {"gender": list(gender)}},
    }
    config = with_attributes(tiny_config, classifier=("net", "crowd"), detector_backend="skip", classifiers=described)
    ref = read_attributes(prompts, sample, config=config, runtime=tiny_runtime)
    table = store.read_table(ref, "attributes").set_index("image_id").loc[ids]
    assert table["drop_reason"].fillna("").tolist() == ["unsure"] * 2 + [""] * (len(ids) - 3) + ["unsure"]
    assert table["class"].dropna().unique().tolist() == ["male"]
    assert table["classifier"].unique().tolist()[0].startswith("net+crowd@")
    assert store.read_table(ref, "agreement").values.tolist() == [["gender", len(ids) - 3, 3]]
