"""Imported pairs: the better picture is preferred, drops are counted, a stop redoes one shard, training takes them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from pair_files import BRIGHT, DARK, picture, row, ten_pairs, write_pairs
from tiny_models import MODELS

from popalign_core.config import ModelConfig, PipelineConfig, RuntimeConfig, SamplingConfig
from popalign_core.errors import InputError
from popalign_core.models import embeddings
from popalign_core.models import vae as codec
from popalign_core.models.denoisers import predict
from popalign_core.models.loading import load_pipeline
from popalign_core.sampling import engine
from popalign_core.training import objective
from storage.formats.external_files import RowFile
from storage.formats.images import encode_png
from tasks.common.image_tables import NO_SEED
from tasks.common.stage_object import open_store, reference
from tasks.common.tensors import read_embeddings
from tasks.common.trained_models import find_trained
from tasks.stages.encoding import EncodingView
from tasks.stages.pairs import find_pairs, import_pairs
from tasks.stages.round_inputs import TrainingRefs
from tasks.stages.train import train_model
from tasks.stages.train_inputs import read_preferences


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Ten pairs that can be used, and six that cannot."""
    bright, dark = picture(BRIGHT, seed=100), picture(DARK, seed=101)
    bad = [
        row((bright, dark), 0.5, "a tie"),
        row((bright, dark), 0.5, "another tie"),
        row((bright, dark[:200]), 1.0, "a torn picture"),
        row((bright, dark), 1.0, ""),
        row((bright, dark), 1.0, "nobody said", has_label=False),
        row((bright, None), 1.0, "one picture"),
    ]
    good = ten_pairs()
    return write_pairs(tmp_path / "pairs.parquet", [*good[:4], *bad[:3], *good[4:], *bad[3:]])


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures the VAE has encoded, batch by batch."""
    sizes: list[int] = []
    original = codec.encode_pixels

    def counting(vae: Any, pixels: Any) -> Any:
        sizes.append(len(pixels))
        return original(vae, pixels)

    monkeypatch.setattr(codec, "encode_pixels", counting)
    return sizes


def on_portraits(config: PipelineConfig) -> PipelineConfig:
    """With the embedded model, whose VAE is trained: what it encodes it also decodes."""
    return config.model_copy(update={"model": ModelConfig()})


def test_the_preferred_latents_decode_to_the_bright_pictures(
    file: Path, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    config = on_portraits(tiny_config)
    ref = import_pairs(files=[file], config=config, runtime=tiny_runtime)
    data = read_preferences(open_store(tiny_runtime), TrainingRefs(ref, ref, ref), config.axes)
    vae = load_pipeline(config.model, device=torch.device("cpu")).vae
    levels = codec.decode_latents(vae, data.latents[torch.arange(20)]).mean(axis=(1, 2, 3))
    assert data.preferred.sum() == 10
    assert levels[data.preferred.numpy()].min() > 200
    assert levels[~data.preferred.numpy()].max() < 60


def test_the_models_own_pictures_come_back_to_its_own_latents(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    """Drawn, encoded as PNG, imported: nearly what the sampler ended with, and decoded again nearly the picture."""
    config = on_portraits(tiny_config)
    pipeline = load_pipeline(config.model, device=torch.device("cpu"))
    words = embeddings.embed_prompts(pipeline, ["a photo of a doctor", ""], 2)
    doctor, empty = (
        embeddings.PromptEmbeddings(words.prompt_embeds[[n]], words.pooled_prompt_embeds[[n]]) for n in range(2)
    )
    sampling = config.sampling.model_copy(update={"n_steps": 8})
    pixels, latents = engine.sample_images(pipeline, doctor, empty, [0, 0], [1, 2], sampling)
    rows = [row([encode_png(each) for each in pixels], 0.0, "a photo of a doctor")]
    ref = import_pairs(files=[write_pairs(tmp_path / "own.parquet", rows)], config=config, runtime=tiny_runtime)
    data = read_preferences(open_store(tiny_runtime), TrainingRefs(ref, ref, ref), config.axes)
    assert data.preferred.tolist() == [False, True]
    imported = data.latents[torch.arange(2)]
    assert torch.corrcoef(torch.stack([imported.flatten(), latents.flatten()]))[0, 1] > 0.9
    assert imported.std() == pytest.approx(latents.std().item(), rel=0.1)
    decoded = codec.decode_latents(pipeline.vae, imported)
    assert np.abs(decoded.astype(float) - pixels).mean() < 6
    torch.testing.assert_close(data.prompt_embeds, doctor.prompt_embeds)
    torch.testing.assert_close(data.empty_pooled, empty.pooled_prompt_embeds)


def test_one_artifact_holds_prompts_sample_and_preferences(
    file: Path, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    ref = import_pairs(files=[file], config=tiny_config, runtime=tiny_runtime)
    store = open_store(tiny_runtime)
    prompts, images = store.read_table(ref, "prompts"), store.read_table(ref, "images")
    assert prompts["text"].tolist() == [f"a photo of number {number}" for number in range(3)]
    assert set(zip(prompts["kind"], prompts["split"], strict=True)) == {("neutral", "train")}
    ids, embeddings = read_embeddings(store.localize(ref, "embeddings.safetensors"))
    assert ids == [*prompts["prompt_id"], ""]
    assert embeddings.prompt_embeds.shape == (4, 32, 64)

    assert len(images) == images["image_id"].nunique() == 20
    assert images["image"].isna().all()
    assert set(images["seed"]) == {NO_SEED}
    assert set(zip(images["width"], images["height"], strict=True)) == {(64, 64)}
    texts = prompts.set_index("prompt_id")["text"][images["prompt_id"]].tolist()
    assert texts == [each["caption"] for each in ten_pairs() for _ in range(2)]

    members = store.read_table(ref, "preferences")
    assert members["set_id"].nunique() == 10
    for number, (_, sides) in enumerate(members.groupby("set_id", sort=False)):
        assert sides["image_id"].tolist() == images["image_id"][2 * number : 2 * number + 2].tolist()
        roles = ["preferred", "dispreferred"] if number % 2 == 0 else ["dispreferred", "preferred"]
        assert sides["role"].tolist() == roles
        assert sides[["slot", "discrepancy", "balance"]].values.tolist() == [[0, 0, 0]] * 2
    assert store.read_table(ref, "retained").empty


def test_nothing_is_dropped_without_a_reason(
    file: Path, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    ref = import_pairs(files=[file], config=tiny_config, runtime=tiny_runtime)
    store = open_store(tiny_runtime)
    drops = store.read_table(ref, "drops")
    assert set(drops["stage"]) == {"pairs"}
    assert dict(zip(drops["reason"], drops["n"], strict=True)) == {
        **{"empty caption": 1, "missing image": 1, "no label": 1, "tie": 2, "undecodable image": 1}
    }
    assert store.manifest(ref).counts["pairs"] + drops["n"].sum() == 16


def test_no_usable_pair_is_an_error_that_says_why(
    tmp_path: Path, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    ties = [row((picture(BRIGHT), picture(DARK)), 0.5, "a tie")] * 3
    message = r"\[pairs/pairs-v2-.*\] none of the 3 comparison\(s\) can be used: {'tie': 3}; a preference needs label_0"
    with pytest.raises(InputError, match=message):
        import_pairs(files=[write_pairs(tmp_path / "ties.parquet", ties)], config=tiny_config, runtime=tiny_runtime)
    with pytest.raises(InputError, match=r"none\.parquet hold\(s\) no rows; give a file of pairs with some"):
        import_pairs(files=[write_pairs(tmp_path / "none.parquet", [])], config=tiny_config, runtime=tiny_runtime)


def test_a_shard_without_a_usable_pair_does_no_harm(
    tmp_path: Path, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    ties = [row((picture(BRIGHT), picture(DARK)), 0.5, "a tie")] * 4
    path = write_pairs(tmp_path / "pairs.parquet", [*ties, *ten_pairs()[:3]])
    ref = import_pairs(files=[path], config=tiny_config, runtime=tiny_runtime)
    images = open_store(tiny_runtime).read_table(ref, "images")
    assert images["latents_file"].tolist() == ["latents-00001.safetensors"] * 6


def test_the_key_depends_on_content_model_and_size_alone(
    file: Path, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    def key(config: PipelineConfig, *paths: Path) -> str:
        return reference(open_store(tiny_runtime), import_pairs.request(config, files=list(paths))).key

    other = write_pairs(tmp_path / "other.parquet", ten_pairs()[:4])
    (tmp_path / "elsewhere").mkdir()
    copied = Path(shutil.copy(file, tmp_path / "elsewhere" / "copy.parquet"))
    assert key(tiny_config, file) == key(tiny_config, copied)
    assert key(tiny_config, file, other) == key(tiny_config, other, copied)
    wide = tiny_config.sampling.model_copy(update={"width": 128})
    training = tiny_config.training.model_copy(update={"beta": 99.0})
    assert key(tiny_config.model_copy(update={"training": training}), file) == key(tiny_config, file)
    keys = [key(tiny_config, file), key(tiny_config, other), key(on_portraits(tiny_config), file)]
    assert len({*keys, key(tiny_config.model_copy(update={"sampling": wide}), file)}) == 4


def test_a_stopped_import_redoes_no_finished_shard_and_ends_the_same(
    file: Path, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, encoded: list[int], tmp_path: Path
) -> None:
    """Shards of 4 rows: 4 pairs, 1, 4 and 1."""

    def stop(done: int, total: int) -> None:
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_pairs(files=[file], config=tiny_config, runtime=tiny_runtime, on_progress=stop)
    assert encoded == [4, 4, 2, 4]  # two shards, and half of the third
    encoded.clear()
    seen: list[tuple[int, int]] = []
    ref = import_pairs(
        files=[file], config=tiny_config, runtime=tiny_runtime, on_progress=lambda *progress: seen.append(progress)
    )
    assert seen == [(8, 16), *((done, 16) for done in range(9, 17))]
    assert encoded == [4, 4, 2]
    encoded.clear()
    assert import_pairs(files=[file], config=tiny_config, runtime=tiny_runtime) == ref
    assert encoded == []

    whole = tiny_runtime.model_copy(update={"root": str(tmp_path / "undisturbed")})
    assert import_pairs(files=[file], config=tiny_config, runtime=whole) == ref
    ours, theirs = (Path(open_store(runtime).localize(ref)) for runtime in (tiny_runtime, whole))
    names = {path.name for path in ours.iterdir()}
    assert names == {path.name for path in theirs.iterdir()}
    assert [name for name in names if (ours / name).read_bytes() != (theirs / name).read_bytes()] == []


def test_shards_and_batches_change_nothing(
    file: Path, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    other = tiny_runtime.model_copy(update={"root": str(tmp_path / "other"), "shard_size": 1, "batch_size": 1})
    ref = import_pairs(files=[file], config=tiny_config, runtime=tiny_runtime)
    assert import_pairs(files=[file], config=tiny_config, runtime=other) == ref
    one, two = (open_store(runtime) for runtime in (tiny_runtime, other))
    for name in ("prompts", "preferences", "drops"):
        pd.testing.assert_frame_equal(one.read_table(ref, name), two.read_table(ref, name))
    data = [read_preferences(store, TrainingRefs(ref, ref, ref), tiny_config.axes) for store in (one, two)]
    one, other = (each.latents[torch.arange(20)] for each in data)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def dpo(config: PipelineConfig, **more: Any) -> PipelineConfig:
    settings = config.training.model_dump() | {"objective": "diffusion-dpo", "retention": 0.0} | more
    return PipelineConfig.model_validate(config.model_dump() | {"training": settings})


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_diffusion_dpo_trains_on_imported_pairs(
    file: Path, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, lora_rank: int
) -> None:
    config = dpo(tiny_config, lora_rank=lora_rank)
    pairs = import_pairs(files=[file], config=config, runtime=tiny_runtime)
    ref = train_model(preferences=pairs, sample=pairs, prompts=pairs, config=config, runtime=tiny_runtime)
    store = open_store(tiny_runtime)
    log = store.read_table(ref, "training_log")
    assert log.loc[log["name"] == "loss", "step"].tolist() == [1, 2, 3, 4]
    assert np.isfinite(log["value"]).all()
    trained = load_pipeline(config.model, device=torch.device("cpu"), trained=find_trained(store, ref, config.model))
    base = StableDiffusionXLPipeline.from_pretrained(config.model.name, add_watermarker=False)
    before, after = base.unet.state_dict(), trained.unet.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert any(name.startswith("lora/") for name in store.manifest(ref).files) == (lora_rank > 0)


def test_flux_dev_trains_at_the_guidance_scale_that_it_samples_with(
    file: Path, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path, monkeypatch: Any
) -> None:
    """What the transformer is told is nowhere in the latents: it is in the key of the pairs."""
    MODELS["flux-dev"]().save_pretrained(tmp_path / "flux", safe_serialization=True)
    told: list[float] = []

    def watch(model: Any, family: Any, *rest: Any) -> torch.Tensor:
        told.extend(rest[-1].guidance.tolist())
        return predict(model, family, *rest)

    monkeypatch.setattr(objective, "predict", watch)
    config = dpo(tiny_config, lora_rank=2, n_steps=1).model_copy(
        update={"model": ModelConfig(name=str(tmp_path / "flux")), "sampling": SamplingConfig(guidance_scale=3.5)}
    )
    pairs = import_pairs(files=[file], config=config, runtime=tiny_runtime)
    train_model(preferences=pairs, sample=pairs, prompts=pairs, config=config, runtime=tiny_runtime)
    assert set(told) == {3.5}
    store = open_store(tiny_runtime)
    assert find_pairs(store, pairs.key, config) == pairs
    with pytest.raises(InputError, match=r"guidance scale .*'guidance_scale': 3\.5.*'guidance_scale': 2\.5"):
        find_pairs(store, pairs.key, config.model_copy(update={"sampling": SamplingConfig(guidance_scale=2.5)}))


def test_pairs_are_found_by_their_key_if_they_fit_the_model(
    file: Path, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    store = open_store(tiny_runtime)
    with pytest.raises(InputError, match=r"no pairs 'pairs-v2-0' in .*, which has none; `popalign import pairs FILE"):
        find_pairs(store, "pairs-v2-0", tiny_config)
    ref = import_pairs(files=[file], config=tiny_config, runtime=tiny_runtime)
    assert find_pairs(store, ref.key, tiny_config) == find_pairs(store, str(ref), tiny_config) == ref
    with pytest.raises(InputError, match=f"which has {ref.key};"):
        find_pairs(store, "pairs-v2-0", tiny_config)
    with pytest.raises(InputError, match=r"was imported for the base model .*; give the --preset"):
        find_pairs(store, ref.key, on_portraits(tiny_config))
    wide = tiny_config.sampling.model_copy(update={"width": 128})
    with pytest.raises(InputError, match=r"for the image size or guidance scale .*'width': 64.*'width': 128"):
        find_pairs(store, ref.key, tiny_config.model_copy(update={"sampling": wide}))


def test_the_key_is_pinned(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    """Another key here means that everybody's imports are made again: bump VERSION and say so in CHANGELOG."""
    config = tiny_config.model_copy(update={"model": ModelConfig(name="owner/name", revision="0a1b")})
    asked = import_pairs.ask(
        EncodingView.of(
            config, [RowFile(tmp, digit * 64, 1) for tmp, digit in ((Path("one"), "0"), (Path("two"), "f"))]
        ),
        {},
    )
    assert reference(open_store(tiny_runtime), asked).key == "pairs-v2-06fbbea9ae1b12e89784e08a2b282f63"
