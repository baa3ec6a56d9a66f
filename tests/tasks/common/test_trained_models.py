"""A training in the store is as large as what it trained, and is loaded on its base model, wherever that lies."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flows.plan.checkpoints import evaluate_checkpoints, find_checkpoints
from flows.plan.execution import call_directly
from popalign_core.config import ModelConfig, PipelineConfig, RuntimeConfig
from popalign_core.errors import ConfigError, MissingWeightsError, StoreError
from popalign_core.models import file_hashes
from popalign_core.models.loading import load_pipeline, model_hash
from storage.store import ArtifactRef, Store
from tasks.common.stage_object import open_store
from tasks.common.trained_models import find_trained, read_training, trained_hash, training_chain
from tasks.stages.train import train_model

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"
Train = Callable[..., ArtifactRef]


def trained_with(config: PipelineConfig, **training: Any) -> PipelineConfig:
    return config.model_copy(update={"training": config.training.model_copy(update={"n_steps": 1} | training)})


def on_model(config: PipelineConfig, folder: Path | str) -> PipelineConfig:
    return config.model_copy(update={"model": ModelConfig(name=str(folder))})


@pytest.fixture
def train(
    give_artifacts: Callable[[str], dict[str, ArtifactRef]], tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> Train:
    """Trains on what a run has prepared: `train(config=..., start=..., lora_rank=2)`."""
    refs = give_artifacts("preferences")
    nodes = {"preferences": "preferences", "sample": "sample", "prompts": "identities", "attributes": "attributes"}
    inputs = {name: refs[node] for name, node in nodes.items()}

    def run(config: PipelineConfig = tiny_config, start: ArtifactRef | None = None, **training: Any) -> ArtifactRef:
        more = {} if start is None else {"start": start}
        return train_model(**inputs, **more, config=trained_with(config, **training), runtime=tiny_runtime)

    return run


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def unet(store: Store, ref: ArtifactRef, model: ModelConfig) -> dict[str, Any]:
    loaded = load_pipeline(model, device=CPU, trained=find_trained(store, ref, model), components=("unet",))
    assert (loaded.vae, loaded.text_encoder) == (None, None)
    found: dict[str, Any] = loaded.unet.state_dict()
    return found


def test_an_artifact_is_as_large_as_what_was_trained(
    train: Train, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, base = open_store(tiny_runtime), Path(tiny_config.model.name)
    adapted, whole = train(lora_rank=32), train(lora_rank=0)
    adapter = store.localize(adapted, "lora/pytorch_lora_weights.safetensors").stat().st_size
    assert size_of(store.localize(adapted)) < 2 * adapter
    assert size_of(store.localize(whole)) < 1.1 * (base / "unet" / WEIGHTS).stat().st_size
    assert sorted(path.name for path in store.localize(whole).iterdir()) == [
        *("README.md", "manifest.json", "trained.json", "training_log.parquet", "unet"),
    ]
    modes = {path.stat().st_mode & 0o777 for path in store.localize(whole).rglob("*") if path.is_file()}
    probe = Path(tiny_runtime.root) / "probe"
    probe.touch()
    assert modes == {probe.stat().st_mode & 0o777}


def test_ten_adapters_take_less_than_another_model(
    train: Train, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    root = Path(tiny_runtime.root)
    for beta in range(10, 20):
        train(lora_rank=1, beta=float(beta))
    assert len(list((root / "train").iterdir())) == 10
    left = sum(size_of(root / name) for name in ("train", "models", ".scratch"))
    assert left < 0.5 * size_of(Path(tiny_config.model.name))


def test_one_training_goes_on_from_another(
    train: Train, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    """Full, then an adapter, then an adapter on that: what is sampled from is the sum of them."""
    store, model = open_store(tiny_runtime), tiny_config.model
    first = train(lora_rank=0)
    second = train(start=first, lora_rank=2)
    third = train(start=second, lora_rank=2, seed=5)
    assert training_chain(store, third) == [first, second, third]
    assert {read_training(store, ref).base for ref in (first, second, third)} == {model_hash(model)}  # type: ignore[union-attr]
    denoiser = load_file(store.localize(first, "unet") / WEIGHTS)
    assert all(torch.equal(weight, denoiser[name]) for name, weight in unet(store, first, model).items())
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    expected = denoiser[name].clone()
    for ref in (second, third):
        adapter = load_file(store.localize(ref, "lora/pytorch_lora_weights.safetensors"))
        ends = (f"unet.{name.removesuffix('.weight')}.lora_{side}.weight" for side in "BA")
        expected += torch.matmul(*(adapter[end] for end in ends))
        torch.testing.assert_close(unet(store, ref, model)[name], expected)
    assert trained_hash(store, third).startswith(f"{model_hash(model)}+trained:")
    shutil.rmtree(Path(tiny_runtime.root) / str(first))
    with pytest.raises(StoreError, match=f"{second} started from {first}, which .* no longer has"):
        find_trained(store, third, model)


def test_the_base_is_found_where_the_configuration_or_the_store_says(
    train: Train, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    store = open_store(tiny_runtime)
    there = shutil.copytree(tiny_config.model.name, tmp_path / "there")
    ref = train(on_model(tiny_config, there), lora_rank=2)
    content = b"".join(path.read_bytes() for path in store.localize(ref).rglob("*") if path.is_file())
    assert str(tmp_path).encode() not in content
    record = json.loads(next((Path(tiny_runtime.root) / "models").iterdir()).read_text())
    assert (record["hash"], record["models"][0]["name"]) == (model_hash(tiny_config.model), str(there))
    # who knows nothing of it is told by the store; who has the same weights elsewhere needs no record
    assert find_trained(store, ref, ModelConfig()).base.name == str(there)
    assert find_trained(store, ref, tiny_config.model).base == tiny_config.model
    moved = there.rename(tmp_path / "moved")
    file_hashes._MADE.clear()
    assert find_trained(store, ref, ModelConfig(name=str(moved))).base.name == str(moved)
    with pytest.raises(
        MissingWeightsError, match=f"{ref} was trained from the model {there} with the hash .*there"
    ) as e:
        find_trained(store, ref, ModelConfig())
    assert "If it lies elsewhere, give it as model.name" in str(e.value)


def test_a_base_with_other_weights_is_refused(
    train: Train, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    store = open_store(tiny_runtime)
    there = shutil.copytree(tiny_config.model.name, tmp_path / "there")
    ref = train(on_model(tiny_config, there), lora_rank=2)
    settings = there / "scheduler" / "scheduler_config.json"
    settings.write_text(settings.read_text().replace("0.012", "0.013"))
    wanted, found = model_hash(tiny_config.model)[:20], model_hash(ModelConfig(name=str(there)))[:20]
    with pytest.raises(ConfigError, match=f"hash {wanted}, but .* has {found}.*: give the model .* as model.name") as e:
        find_trained(store, ref, ModelConfig(name=str(there)))
    assert "popalign fetch" in str(e.value)


def test_what_an_evaluation_needs_is_kept_and_its_base_need_not_be_configured(
    train: Train, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    """As `new-checkpoints` finds trainings: no run speaks of them, and the configuration has another base."""
    first = train(lora_rank=0)
    second = train(start=first, lora_rank=2)
    other = shutil.copytree(tiny_config.model.name, tmp_path / "other")
    settings = other / "scheduler" / "scheduler_config.json"
    settings.write_text(settings.read_text().replace("0.012", "0.013"))
    store, config = open_store(tiny_runtime), on_model(tiny_config, other)
    found = [each for each in find_checkpoints(None, tiny_runtime) if each.name == second.key]
    assert [each.model_hash for each in found] == [trained_hash(store, second)]
    rows = evaluate_checkpoints(found, config, tiny_runtime, call=call_directly())
    assert set(rows["checkpoint"]) == {second.key}
    assert {first, second}.isdisjoint(store.collect_garbage(dry_run=False).artifacts)
    assert find_trained(store, second, config.model).base.name == tiny_config.model.name


def test_an_artifact_of_a_version_before_is_still_a_model(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    store, payload = open_store(tiny_runtime), {"stage": "train", "version": "3", "config": {}, "inputs": {}}
    ref = ArtifactRef("train", store.key(**payload))
    with store.build(ref, payload) as build:
        shutil.copytree(tiny_config.model.name, build.folder / "model")
    assert trained_hash(store, ref) == model_hash(tiny_config.model)
    expected = load_file(Path(tiny_config.model.name) / "unet" / WEIGHTS)
    found = unet(store, ref, ModelConfig())
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())
