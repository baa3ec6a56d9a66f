"""Images: counts, seeds, latents beside them; the second run is a hit; a killed run redoes one shard."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from popalign_core.config import PipelineConfig, RuntimeConfig, SamplingConfig
from popalign_core.errors import InputError
from popalign_core.ids import content_id, image_seed
from popalign_core.sampling import engine
from storage.store import ArtifactRef
from tasks.identities import add_identities
from tasks.prompts import write_prompts
from tasks.sample import list_images, sample_images
from tasks.stage import open_store
from tasks.tensors import read_embeddings, read_tensor


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
    with pytest.raises(InputError, match="no image to draw: 0 of 1 prompts"):
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
    assert read_tensor(store.localize(ref, "latents-00004.safetensors"), "latents").shape == (8, 4, 8, 8)
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
