"""The model in a run's folder: diffusers loads it, and it takes little room beside its base."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import s3fs
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from moto.server import ThreadedMotoServer
from safetensors.torch import load_file
from typer.testing import CliRunner

from flows.cli.app import app
from popalign_core.config import ModelConfig, PipelineConfig, RuntimeConfig
from popalign_core.errors import InputError, MissingWeightsError
from popalign_core.models.loading import load_pipeline, model_hash
from storage.store import ArtifactRef, Store
from tasks.common.stage_object import open_store
from tasks.common.trained_models import find_trained
from tasks.publishing.export_model import export_model
from tasks.publishing.finished_run import publish_training
from tasks.stages.train import train_model

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
NODES = {"preferences": "preferences", "sample": "sample", "prompts": "identities", "attributes": "attributes"}
Publish = Callable[..., ArtifactRef]


def changed(config: PipelineConfig, lora_rank: int, model: Path | None = None) -> PipelineConfig:
    training = config.training.model_copy(update={"n_steps": 1, "lora_rank": lora_rank})
    model_config = config.model if model is None else ModelConfig(name=str(model))
    return config.model_copy(update={"training": training, "model": model_config})


@pytest.fixture
def publish(
    give_artifacts: Callable[[str], dict[str, ArtifactRef]], tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> Publish:
    """Trains, and writes the folder of a run by the name "mine"."""
    refs = give_artifacts("preferences")
    inputs = {name: refs[node] for name, node in NODES.items()}

    def run(lora_rank: int, model: Path | None = None) -> ArtifactRef:
        config = changed(tiny_config, lora_rank, model)
        ref = train_model(**inputs, config=config, runtime=tiny_runtime)
        publish_training({"train": ref, **refs}, config, tiny_runtime, "mine")
        return ref

    return run


def folder_of(runtime: RuntimeConfig) -> Path:
    return Path(runtime.root) / "runs" / "mine"


def weights(pipeline: Any) -> dict[str, torch.Tensor]:
    return {f"{part}.{name}": each for part in PARTS for name, each in getattr(pipeline, part).state_dict().items()}


def stock(folder: Path) -> dict[str, torch.Tensor]:
    return weights(StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False))


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name, weight in one.items() if not torch.equal(weight, other[name])] == []


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_diffusers_loads_what_was_sampled_with(
    publish: Publish, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, lora_rank: int
) -> None:
    ref = publish(lora_rank)
    store, folder, base = open_store(tiny_runtime), folder_of(tiny_runtime), Path(tiny_config.model.name)
    sampled = load_pipeline(ModelConfig(), device=CPU, trained=find_trained(store, ref, tiny_config.model))
    found = stock(folder / "model")
    assert_same(found, weights(sampled))
    assert any(not torch.equal(weight, found[name]) for name, weight in stock(base).items())
    links = {
        path.relative_to(folder / "model").as_posix() for path in (folder / "model").rglob("*") if path.is_symlink()
    }
    assert {"vae/config.json", f"vae/{WEIGHTS}", "text_encoder_2/model.safetensors"} <= links
    assert not [name for name in links if name.startswith(("unet/", "model_index"))]
    written = folder / "model" / "unet" / WEIGHTS
    if lora_rank:
        assert [path.name for path in (folder / "lora").iterdir()] == ["pytorch_lora_weights.safetensors"]
    else:
        assert written.samefile(store.localize(ref, "unet") / WEIGHTS)
        assert not (folder / "lora").exists()
    assert load_pipeline(ModelConfig(name=str(folder / "model")), device=CPU).unet is not None


def test_a_later_run_takes_its_place_and_the_same_one_leaves_it(
    publish: Publish, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    folder, number = folder_of(tiny_runtime), iter(range(9))
    seen = [
        ((folder / "model" / "unet" / WEIGHTS).stat().st_ino, (folder / "lora").exists(), next(number))
        for lora_rank in (2, 2, 0, 2)
        if publish(lora_rank)
    ]
    inodes, has_lora, _ = zip(*seen, strict=True)
    assert (inodes[0] == inodes[1], len(set(inodes[1:]))) == (True, 3)
    assert has_lora == (True, True, False, True)
    assert sorted(path.name for path in folder.iterdir()) == ["lora", "model", "run.json"]
    # the base's own files are as they were
    assert model_hash(tiny_config.model) == model_hash(ModelConfig(name=str(shutil.copytree(
        tiny_config.model.name, folder / "copy"))))  # fmt: skip


def test_files_are_for_those_whom_the_umask_lets_read(publish: Publish, tiny_runtime: RuntimeConfig) -> None:
    before = os.umask(0o027)
    try:
        publish(2)
    finally:
        os.umask(before)
    files = [path for path in folder_of(tiny_runtime).rglob("*") if path.is_file() and not path.is_symlink()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}


def test_links_lead_to_files_and_a_variant_gets_the_plain_name(
    publish: Publish, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    """As in the hub's cache, where a snapshot is links to blobs, and half-precision files alone may be there."""
    base, blobs = shutil.copytree(tiny_config.model.name, tmp_path / "snapshot"), tmp_path / "blobs"
    (base / "vae" / WEIGHTS).rename(base / "vae" / WEIGHTS.replace(".safe", ".fp16.safe"))
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in base.rglob("*") if path.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    publish(2, base)
    model = folder_of(tiny_runtime) / "model"
    assert {Path(os.readlink(path)).parent for path in model.rglob("*") if path.is_symlink()} == {blobs}
    assert (model / "vae" / WEIGHTS).is_symlink()
    assert torch.equal(stock(model)["vae.encoder.layers.0.weight"], stock(Path(tiny_config.model.name))[
        "vae.encoder.layers.0.weight"])  # fmt: skip


def test_a_link_that_leads_nowhere_is_named_with_the_model_that_is_gone(
    publish: Publish, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    there = shutil.copytree(tiny_config.model.name, tmp_path / "there")
    publish(2, there)
    moved, model = there.rename(tmp_path / "moved"), folder_of(tiny_runtime) / "model"
    with pytest.raises(
        MissingWeightsError, match=rf"is a link to {there}/.*, which is gone: it is of .* {there} "
    ) as e:
        load_pipeline(ModelConfig(name=str(model)), device=CPU)
    assert "run again with model.name where it is now" in str(e.value)
    with pytest.raises(MissingWeightsError, match="which is gone"):
        model_hash(ModelConfig(name=str(model)))
    publish(2, moved)
    assert stock(model).keys() == stock(moved).keys()


def test_an_export_needs_nothing_else(
    publish: Publish, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    there = shutil.copytree(tiny_config.model.name, tmp_path / "there")
    publish(2, there)
    expected, base = stock(folder_of(tiny_runtime) / "model"), stock(there)
    words = ["export", "model", "mine", "--root", tiny_runtime.root]
    apart = CliRunner().invoke(app, [*words, str(tmp_path / "apart")])
    assert apart.exit_code == 0, apart.output
    assert f"the base model is in {tmp_path / 'apart'}, and its adapter in" in apart.stdout
    merged = CliRunner().invoke(app, [*words, str(tmp_path / "merged"), "--merge"])
    assert merged.exit_code == 0, merged.output
    shutil.rmtree(there)
    assert [path for name in ("apart", "merged") for path in (tmp_path / name).rglob("*") if path.is_symlink()] == []
    assert_same(stock(tmp_path / "merged"), expected)
    assert_same(stock(tmp_path / "apart"), base)
    fused = ModelConfig(name=str(tmp_path / "apart"), lora=str(tmp_path / "apart" / "lora"))
    assert_same(weights(load_pipeline(fused, device=CPU)), expected)
    again = CliRunner().invoke(app, [*words, str(tmp_path / "merged")])
    assert (again.exit_code, "already exists" in again.stderr) == (3, True)
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".partial")] == []


@pytest.mark.filterwarnings("ignore")
def test_one_file_is_the_merged_model(
    publish: Publish, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    with_kl, file = shutil.copytree(tiny_config.model.name, tmp_path / "with-kl"), tmp_path / "one.safetensors"
    publish(2)
    words = ["export", "model", "mine", "--single-file", "--root", tiny_runtime.root]
    for path, code, message in (
        (file, 2, "single files have an AutoencoderKL, and this model has AutoencoderTiny"),
        (tmp_path / "one", 2, "does not end in .safetensors"),
    ):
        refused = CliRunner().invoke(app, [*words, str(path)])
        assert (refused.exit_code, message in refused.stderr) == (code, True), refused.output
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    vae = AutoencoderKL(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4, **kinds)
    shutil.rmtree(with_kl / "vae")
    vae.save_pretrained(with_kl / "vae")
    index = (with_kl / "model_index.json").read_text()
    (with_kl / "model_index.json").write_text(index.replace("AutoencoderTiny", "AutoencoderKL"))
    publish(2, with_kl)
    done = CliRunner().invoke(app, [*words, str(file)])
    assert (done.exit_code, done.stdout) == (0, f"the model is in {file}\n"), done.output
    model = folder_of(tiny_runtime) / "model"
    found = load_file(file)
    key = "middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    expected = stock(model)["unet." + key.replace("middle_block.1", "mid_block.attentions.0")]
    assert torch.equal(found[f"model.diffusion_model.{key}"], expected)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert CliRunner().invoke(app, [*words, str(file)]).exit_code == 3


def test_a_run_that_trained_nothing_has_no_model(tiny_runtime: RuntimeConfig, tmp_path: Path) -> None:
    open_store(tiny_runtime).run_folder("none").record([], {"nodes": {}})
    for name in ("none", "nowhere", "train-v4-0"):
        with pytest.raises(InputError, match=f"has no run '{name}' that trained a model"):
            export_model(name, tmp_path / "out", merge=False, runtime=tiny_runtime)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        **{"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"},
        **{"AWS_DEFAULT_REGION": "us-east-1", "XDG_CACHE_HOME": str(tmp_path / "cache")},
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield boto3.resource("s3").create_bucket(Bucket="popalign-models")
    server.stop()


def test_an_object_store_has_what_was_trained_and_an_index(
    give_artifacts: Callable[[str], dict[str, ArtifactRef]],
    tiny_config: PipelineConfig,
    tiny_runtime: RuntimeConfig,
    bucket: Any,
    tmp_path: Path,
) -> None:
    elsewhere = {"root": "s3://popalign-models/a", "log_folder": str(tmp_path / "logs")}
    refs, runtime = give_artifacts("preferences"), tiny_runtime.model_copy(update=elsewhere)
    for ref in set(refs.values()):
        for path in (Path(tiny_runtime.root) / str(ref)).rglob("*"):
            if path.is_file():
                bucket.upload_file(str(path), f"a/{path.relative_to(tiny_runtime.root)}")
    for lora_rank, expected in (
        (0, {"model/README.md", "model/trained-model.json", "model/unet/config.json", f"model/unet/{WEIGHTS}"}),
        (2, {"model/README.md", "model/trained-model.json", "lora/pytorch_lora_weights.safetensors"}),
    ):
        config = changed(tiny_config, lora_rank)
        inputs = {name: refs[node] for name, node in NODES.items()}
        ref = train_model(**inputs, config=config, runtime=runtime)
        publish_training({"train": ref}, config, runtime, "mine")
        keys = {each.key.removeprefix("a/runs/mine/") for each in bucket.objects.filter(Prefix="a/runs/mine/")}
        assert keys == expected | {"run.json"}
    # another machine, where the base lies where the store's record says
    other = Store(runtime.root, scratch=str(tmp_path / "elsewhere"))
    trained = find_trained(other, ref, ModelConfig())
    assert trained.base.name == tiny_config.model.name
    assert not export_model("mine", tmp_path / "out", merge=True, runtime=runtime)
    assert_same(stock(tmp_path / "out"), weights(load_pipeline(ModelConfig(), device=CPU, trained=trained)))
