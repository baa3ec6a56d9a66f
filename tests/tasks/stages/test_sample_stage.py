"""Images: counts, seeds, latents beside them; the second run is a hit; a killed run redoes one shard."""

import gc
import subprocess
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from safety_checkers import save_checker

from popalign_core.config import PipelineConfig, RuntimeConfig, SamplingConfig
from popalign_core.errors import ConfigError, InputError, StoreError
from popalign_core.ids import content_id, image_seed
from popalign_core.models import loading
from popalign_core.models.pixels import fit_image
from popalign_core.models.vae import encode_pixels
from popalign_core.sampling import engine, sampler
from popalign_core.sampling.safety import load_safety_checker, unsafe_images
from storage.formats.images import decode_png
from storage.store import ArtifactRef
from tasks.common.stage_object import open_store, reference
from tasks.common.tensors import read_embeddings
from tasks.stages.attributes import read_attributes
from tasks.stages.evaluate import evaluate_system
from tasks.stages.identities import add_identities
from tasks.stages.prompts import write_prompts
from tasks.stages.sample import list_images, sample_images, sampling_config
from tasks.stages.scores import score_images


@pytest.fixture
def prompts(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> ArtifactRef:
    neutral = write_prompts(config=tiny_config, runtime=tiny_runtime)
    return add_identities(neutral, config=tiny_config, runtime=tiny_runtime)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of every image that the engine has drawn."""
    seeds: list[int] = []
    original = engine.sample_images

    def counting(
        pipeline: Any, embeddings: Any, unconditional: Any, index: Any, batch: Any, config: Any, **more: Any
    ) -> Any:
        seeds.extend(batch)
        return original(pipeline, embeddings, unconditional, index, batch, config, **more)

    monkeypatch.setattr(engine, "sample_images", counting)
    return seeds


def table_bytes(runtime: RuntimeConfig, ref: ArtifactRef) -> dict[str, bytes]:
    folder = Path(open_store(runtime).localize(ref))
    return {path.name: path.read_bytes() for path in folder.rglob("*.parquet")}


def test_images_are_listed_prompt_by_prompt_with_seeds_of_their_own() -> None:
    prompts = pd.DataFrame({"prompt_id": ["p1", "p2", "p3"], "kind": ["neutral", "generic", "specific"]})
    images = list_images(prompts, {"neutral": 2, "specific": 1}, "sample-key", SamplingConfig(seed=7))
    assert images[["prompt_id", "index"]].values.tolist() == [["p1", 0], ["p1", 1], ["p3", 0]]
    assert images["seed"].tolist() == [image_seed(7, "p1", 0), image_seed(7, "p1", 1), image_seed(7, "p3", 0)]
    assert images["image_id"][1] == content_id("image", "sample-key", "p1", 1)


def test_no_prompt_of_the_kinds_asked_for_is_an_error() -> None:
    prompts = pd.DataFrame({"prompt_id": ["p1"], "kind": ["generic"]})
    with pytest.raises(InputError, match="no image to sample: 0 of 1 prompts"):
        list_images(prompts, {"neutral": 2}, "key", SamplingConfig())


def test_preference_images_come_with_latents_and_embeddings(
    prompts: ArtifactRef, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, drawn: list[int]
) -> None:
    ref = sample_images(prompts, purpose="preferences", config=tiny_config, runtime=tiny_runtime)
    store = open_store(tiny_runtime)
    images = store.read_table(ref, "images")
    # 2 training subjects: 6 neutral and 2 classes x 6 specific images each; 4 of the retained subject
    assert len(images) == 2 * (6 + 2 * 6) + 4 == len(drawn)
    assert images["latents_file"].value_counts().to_dict() == {f"latents-{n:05d}.safetensors": 8 for n in range(5)}
    assert load_file(store.localize(ref, "latents-00004.safetensors"))["latents"].shape == (8, 4, 8, 8)
    ids, embeddings = read_embeddings(store.localize(ref, "embeddings.safetensors"))
    assert ids[-1] == ""
    assert set(ids[:-1]) == set(images["prompt_id"])
    assert embeddings.prompt_embeds.shape == (len(ids), 32, 64)


def test_the_second_run_is_a_hit(
    prompts: ArtifactRef, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, drawn: list[int]
) -> None:
    first = sample_images(prompts, purpose="evaluation", config=tiny_config, runtime=tiny_runtime)
    n_drawn = len(drawn)
    bigger = tiny_runtime.model_copy(update={"batch_size": 16, "shard_size": 64})
    assert sample_images(prompts, purpose="evaluation", config=tiny_config, runtime=bigger) == first
    # 2 subjects x (6 neutral + 2 x 3 specific) + 2 things x 2, none of them twice
    assert n_drawn == len(drawn) == len(set(drawn)) == 28


def test_a_killed_run_redoes_one_shard_and_ends_the_same(
    prompts: ArtifactRef, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, drawn: list[int], tmp_path: Path
) -> None:
    def stop(done: int, total: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_images(prompts, purpose="preferences", config=tiny_config, runtime=tiny_runtime, on_progress=stop)
    assert len(drawn) == 20  # two shards of 8 and half of the third
    seen: list[tuple[int, int]] = []
    ref = sample_images(
        prompts,
        purpose="preferences",
        config=tiny_config,
        runtime=tiny_runtime,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[0] == (16, 40)
    assert seen[-1] == (40, 40)
    assert len(drawn) == 20 + 24
    whole = tiny_runtime.model_copy(update={"root": str(tmp_path / "undisturbed")})
    again = add_identities(write_prompts(config=tiny_config, runtime=whole), config=tiny_config, runtime=whole)
    assert sample_images(again, purpose="preferences", config=tiny_config, runtime=whole) == ref
    assert table_bytes(whole, ref) == table_bytes(tiny_runtime, ref)


def changed(config: PipelineConfig, **sampling: Any) -> PipelineConfig:
    document = config.model_dump()
    return PipelineConfig.model_validate(document | {"sampling": document["sampling"] | sampling})


def test_text_encoders_are_gone_before_the_denoiser_comes(
    prompts: ArtifactRef, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    original = loading.load_pipeline

    def load_and_look(*args: Any, **kwargs: Any) -> Any:
        assert all(text_encoder() is None for text_encoder in loaded)
        pipeline = original(*args, **kwargs)
        if pipeline.text_encoder is not None:
            assert pipeline.unet is None
            loaded.append(weakref.ref(pipeline.text_encoder))
        return pipeline

    for module in (loading, sampler):
        monkeypatch.setattr(module, "load_pipeline", load_and_look)
    gc.collect()
    sample_images(prompts, purpose="evaluation", config=tiny_config, runtime=tiny_runtime)
    assert len(loaded) == 1


def test_images_the_safety_checker_flags_are_withheld_and_counted(
    prompts: ArtifactRef, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    """Down to the metrics: nobody sees them, nothing scores them, and the drops say how many they were."""
    store = open_store(tiny_runtime)
    plain = store.read_table(
        sample_images(prompts, purpose="evaluation", config=tiny_config, runtime=tiny_runtime), "images"
    )
    pictures = np.stack([decode_png(cell["bytes"]) for cell in plain["image"]])
    folder = save_checker(tmp_path / "checker", pictures, 0.85)
    flagged = unsafe_images(load_safety_checker(str(folder)), pictures)
    assert 3 < flagged.sum() < 20
    config = changed(tiny_config, safety_checker=str(folder))
    ref = sample_images(prompts, purpose="evaluation", config=config, runtime=tiny_runtime)
    images = store.read_table(ref, "images")
    assert images["image"].isna().tolist() == flagged.tolist()
    assert store.read_table(ref, "drops").values.tolist() == [["sample", "unsafe", int(flagged.sum())]]
    attributes = read_attributes(prompts, ref, config=config, runtime=tiny_runtime)
    scores = score_images(prompts, ref, config=config, runtime=tiny_runtime)
    people = images["prompt_id"].isin(prompt_ids(store, prompts, "neutral", "specific"))
    rows = store.read_table(attributes, "attributes")
    unsafe = set(rows.loc[rows["drop_reason"] == "unsafe", "image_id"])
    assert unsafe == set(images.loc[flagged & people, "image_id"])
    assert set(store.read_table(scores, "scores")["image_id"]) == set(images.loc[~flagged, "image_id"])
    metrics = store.read_table(
        evaluate_system(prompts, ref, attributes, scores, system="base", config=config, runtime=tiny_runtime), "metrics"
    )
    clip = metrics[metrics["metric"] == "clip_score"].set_index("benchmark")["n"]
    neutral = images["prompt_id"].isin(prompt_ids(store, prompts, "neutral")).to_numpy()
    assert clip["neutral"] == int((~flagged & neutral).sum())


def prompt_ids(store: Any, prompts: ArtifactRef, *kinds: str) -> list[str]:
    table = store.read_table(prompts, "prompts")
    return list(table.loc[table["kind"].isin(kinds), "prompt_id"])


def test_sdedit_starts_from_the_layouts_in_turn(
    prompts: ArtifactRef, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "layouts"
    folder.mkdir()
    for name, colour in (("a.png", "red"), ("b.jpg", "blue")):
        Image.new("RGB", (128, 64), colour).save(folder / name)
    config = changed(tiny_config, n_steps=4, sdedit={"folder": str(folder), "strength": 0.5})
    ref = sample_images(prompts, purpose="evaluation", config=config, runtime=tiny_runtime)
    store = open_store(tiny_runtime)
    images = store.read_table(ref, "images")
    pipeline = loading.load_pipeline(config.model, device=torch.device("cpu"))
    ids, embeddings = read_embeddings(store.localize(ref, "embeddings.safetensors"))
    layouts = [fit_image((folder / name).read_bytes(), 64, 64) for name in ("a.png", "b.jpg")]
    start = encode_pixels(pipeline.vae, np.stack([layout for layout in layouts if layout is not None]))
    for image in images[images["index"].isin([3, 4])].itertuples():
        found = load_file(store.localize(ref, image.latents_file))["latents"][image.latents_row]
        _, expected = engine.sample_images(
            pipeline,
            embeddings.rows([ids.index(image.prompt_id)]),
            embeddings.rows([-1]),
            [0],
            [image.seed],
            sampling_config(config, "evaluation"),
            start_latents=start[[image.index % 2]],
        )
        torch.testing.assert_close(found, expected[0], rtol=0, atol=1e-4)
    # the folder's name is nothing, its content is all
    moved = folder.rename(tmp_path / "elsewhere")
    same = changed(tiny_config, n_steps=4, sdedit={"folder": str(moved), "strength": 0.5})
    assert sample_images(prompts, purpose="evaluation", config=same, runtime=tiny_runtime) == ref
    Image.new("RGB", (64, 64), "green").save(moved / "b.jpg")
    assert reference(store, sample_images.request(same, prompts=prompts, purpose="evaluation")) != ref
    (moved / "c.txt").write_text("no picture")
    with pytest.raises(InputError, match=r"c\.txt is not an image"):
        sample_images(prompts, purpose="evaluation", config=same, runtime=tiny_runtime)
    with pytest.raises(InputError, match="'nowhere' is not a folder with images"):
        sample_images.request(changed(same, sdedit={"folder": "nowhere"}), prompts=prompts, purpose="evaluation")


def test_an_injected_identity_is_what_is_embedded(
    prompts: ArtifactRef, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    """The same seed, and the picture of the specific prompt's text: only the caption has changed."""
    config = changed(tiny_config, inject_identity=True)
    ref = sample_images(prompts, purpose="evaluation", config=config, runtime=tiny_runtime)
    store = open_store(tiny_runtime)
    ids, embeddings = read_embeddings(store.localize(ref, "embeddings.safetensors"))
    table = store.read_table(prompts, "prompts")
    table = table[table["split"] == "eval"]
    specific = dict(zip(table["text"], table["prompt_id"], strict=True))
    wanted = specific["a photo of a female judge"]
    injected = content_id("caption", "a photo of a female judge")
    assert torch.equal(embeddings.prompt_embeds[ids.index(injected)], embeddings.prompt_embeds[ids.index(wanted)])
    assert ids[-1] == ""
    plain = sample_images(prompts, purpose="evaluation", config=tiny_config, runtime=tiny_runtime)
    ours, theirs = (store.read_table(each, "images").set_index(["prompt_id", "index"]) for each in (ref, plain))
    differs = ours["image"].map(lambda cell: cell["bytes"]) != theirs["image"].map(lambda cell: cell["bytes"])
    neutral = prompt_ids(store, prompts, "neutral")
    assert differs.index[differs].get_level_values("prompt_id").isin(neutral).all()
    assert differs[differs].index.get_level_values("prompt_id").nunique() == 2


def test_the_axes_count_only_where_an_identity_is_drawn(prompts: ArtifactRef, tiny_config: PipelineConfig) -> None:
    axis = tiny_config.axes[0].model_copy(update={"target": {"male": 0.2, "female": 0.8}})
    moved = tiny_config.model_copy(update={"axes": (axis,)})
    for sampling, differ in (({}, False), ({"inject_identity": True}, True), ({"fair_diffusion": {}}, True)):
        asked = [
            sample_images.request(changed(config, **sampling), prompts=prompts, purpose="evaluation")
            for config in (tiny_config, moved)
        ]
        assert (asked[0] != asked[1]) is differ


def test_a_watermark_that_cannot_be_is_refused_before_anything_is_drawn(
    prompts: ArtifactRef, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, drawn: list[int]
) -> None:
    with pytest.raises(ConfigError, match="64 x 64 px is too small for the watermark"):
        sample_images(prompts, purpose="evaluation", config=changed(tiny_config, watermark=True), runtime=tiny_runtime)
    assert drawn == []


def test_a_full_disk_in_the_middle_loses_no_shard(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, drawn: list[int], make_disk: Any
) -> None:
    disk = make_disk("200k")
    runtime = tiny_runtime.model_copy(update={"root": str(disk / "store")})
    prompts = add_identities(write_prompts(config=tiny_config, runtime=runtime), config=tiny_config, runtime=runtime)
    with pytest.raises(StoreError, match="the disk is full; free some space and run the same command again"):
        sample_images(prompts, purpose="preferences", config=tiny_config, runtime=runtime)
    first = len(drawn)
    assert 8 < first <= 40
    subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
    ref = sample_images(prompts, purpose="preferences", config=tiny_config, runtime=runtime)
    assert len(drawn) - first == 40 - 8 * ((first - 1) // 8)
    assert open_store(runtime).verify() == []
    assert len(open_store(runtime).read_table(ref, "images")) == 40
