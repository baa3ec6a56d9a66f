"""Broken pipelines end in one error by name, another noise schedule is refused, and what is published loads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from broken_models import Damage, load, lost, rewrite, settings, text, weights_file
from safetensors.torch import load_file

from popalign_core.errors import DamagedWeightsError
from popalign_core.models.file_hashes import hash_folder

CopyFamily = Callable[[str], Path]


@pytest.fixture
def copy_family(family_folder: Callable[[str], Path], tmp_path: Path) -> CopyFamily:
    """Copies one of `tiny_models.MODELS`, to be changed."""
    return lambda name: shutil.copytree(family_folder(name), tmp_path / name)


def _other_scheduler(kind: Any) -> Damage:
    def change(folder: Path) -> None:
        shutil.rmtree(folder / "scheduler")
        kind().save_pretrained(folder / "scheduler")
        settings("model_index.json", scheduler=["diffusers", kind.__name__])(folder)

    return change


def schedule(**changes: Any) -> Damage:
    return settings("scheduler/scheduler_config.json", **changes)


@pytest.mark.parametrize(
    ("family", "damage", "problem"),
    [
        ("sdxl", _other_scheduler(diffusers.EDMDPMSolverMultistepScheduler), "EDMDPM.*give a model whose noise levels"),
        ("sdxl", _other_scheduler(diffusers.EDMEulerScheduler), "EDMEulerScheduler"),
        ("sd15", _other_scheduler(diffusers.IPNDMScheduler), "IPNDMScheduler"),
        ("sd3", _other_scheduler(diffusers.DDIMScheduler), "DDIMScheduler for this model; .* those of a flow"),
        ("sdxl", schedule(_class_name="EDMEulerScheduler"), "is of EDMEulerScheduler, but .* EulerDiscreteScheduler"),
        ("sdxl", text("scheduler/scheduler_config.json", "{}"), "has no settings"),
        ("sdxl", lost("scheduler/scheduler_config.json"), r"no file named scheduler_config\.json"),
        ("sd15", schedule(beta_end=...), "lacks beta_end; restore its files"),
        ("sd15", schedule(num_train_timesteps=...), "lacks num_train_timesteps"),
        ("sd3", schedule(shift=...), "lacks shift"),
        ("flux-dev", schedule(max_shift=None), "lacks max_shift"),
        ("sdxl", schedule(beta_schedule="nope"), "beta_schedule 'nope'; known are linear, scaled_linear"),
        ("sdxl", schedule(beta_start="0.1"), "beta_start '0.1', which is no positive number"),
        ("sdxl", schedule(beta_end=2.0), "beta_end 2.0, which is not between"),
        ("sdxl", schedule(num_train_timesteps=9.5), "num_train_timesteps 9.5, which is not an integer"),
        ("sdxl", schedule(prediction_type="flow_prediction"), "prediction_type 'flow_prediction'; known are epsilon"),
        ("sdxl", schedule(timestep_type="continuous"), "timestep_type 'continuous'"),
        ("sdxl", schedule(final_sigmas_type="one"), "final_sigmas_type 'one'; known are zero, sigma_min"),
        ("sdxl", schedule(interpolation_type="cubic"), "interpolation_type 'cubic'"),
        ("flux-dev", schedule(base_image_seq_len=256, max_image_seq_len=256), "_image_seq_len 256: they must differ"),
        ("sdxl", schedule(timestep_spacing="wide"), "timestep_spacing 'wide'"),
        ("sdxl", schedule(steps_offset="x"), "steps_offset 'x', which is no number of steps"),
        ("sdxl", schedule(trained_betas=[0.1, 0.2]), "no list of num_train_timesteps 1000"),
        ("sdxl", schedule(use_flow_sigmas=True), "use_flow_sigmas"),
    ],
)
def test_another_noise_schedule_is_refused(family: str, damage: Damage, problem: str, copy_family: CopyFamily) -> None:
    folder = copy_family(family)
    damage(folder)
    with pytest.raises(DamagedWeightsError, match=f"cannot load scheduler of .*{problem}"):
        load(folder, "scheduler")


@pytest.mark.parametrize(
    "name",
    ["DDPM", "DDIM", "PNDM", "EulerAncestralDiscrete", "DPMSolverSinglestep", "UniPCMultistep", "LCM"],
)
@pytest.mark.filterwarnings(
    "ignore:The configuration file of this:FutureWarning", "ignore:__array__ impl:DeprecationWarning"
)
def test_schedulers_of_betas_load(name: str, copy_family: CopyFamily) -> None:
    folder = copy_family("sd15")
    kind = getattr(diffusers, f"{name}Scheduler")
    _other_scheduler(kind)(folder)
    assert type(load(folder, "scheduler").scheduler) is kind


def test_published_settings_of_stable_diffusion_1_5_load(copy_family: CopyFamily) -> None:
    """Its file is older than prediction types and spacings."""
    folder = copy_family("sd15")
    old = ["_class_name", "_diffusers_version", "beta_end", "beta_schedule", "beta_start", "num_train_timesteps"]
    old += ["set_alpha_to_one", "skip_prk_steps", "steps_offset", "trained_betas"]
    document = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    schedule(clip_sample=False, **{name: ... for name in document if name not in old})(folder)
    assert load(folder, "scheduler").scheduler.config.prediction_type == "epsilon"


def _wider(part: str) -> Damage:
    def change(folder: Path) -> None:
        file = weights_file(folder / part)
        name = sorted(load_file(file))[0]
        rewrite(file, lambda tensors: tensors | {name: torch.zeros([n + 1 for n in tensors[name].shape])})

    return change


def _pickled(folder: Path) -> None:
    torch.save(load_file(weights_file(folder / "unet")), folder / "unet" / "diffusion_pytorch_model.bin")
    weights_file(folder / "unet").unlink()


def index(**changes: Any) -> Damage:
    return settings("model_index.json", **changes)


BROKEN: dict[str, tuple[Damage, str]] = {
    "wrong shape of the unet": (_wider("unet"), r"cannot load unet of .* has shape \[\d+\], expected shape"),
    "wrong shape of the text encoder": (_wider("text_encoder"), r"cannot load text_encoder of .* expected shape"),
    "wrong shape of the vae": (_wider("vae"), "cannot load vae of .* expected shape"),
    "unet of nothing": (text("unet/config.json", "{}"), r"cannot load unet of .* config\.json has no settings"),
    "text encoder of nothing": (text("text_encoder/config.json", "{}"), r"text_encoder of .* config\.json has no sett"),
    "a list as settings": (text("vae/config.json", "[]"), r"cannot load vae of .* config\.json has no settings"),
    "no configuration": (lost("unet/config.json"), r"cannot load unet of .* no file named config\.json"),
    "unknown block": (settings("unet/config.json", down_block_types=["No", "No"]), "cannot load unet of"),
    "no heads": (settings("text_encoder/config.json", num_attention_heads=0), "cannot load text_encoder of"),
    "unknown activation": (settings("text_encoder/config.json", hidden_act="no"), "text_encoder of .*KeyError 'no'"),
    "more layers": (settings("text_encoder/config.json", num_hidden_layers=3), "lacks 16 weights, such as .*layers.2"),
    "fewer layers by default": (
        lambda folder: (
            rewrite(
                weights_file(folder / "text_encoder"),
                lambda all_: all_
                | {
                    name.replace("layers.1.", f"layers.{n}."): tensor.clone()
                    for n in range(2, 14)
                    for name, tensor in all_.items()
                    if "layers.1." in name
                },
            ),
            settings("text_encoder/config.json", num_hidden_layers=...)(folder),
        ),
        "no place for 32 weights, such as .*layers.12",
    ),
    "pipeline unknown": (index(_class_name="NoPipeline"), "pipeline 'NoPipeline', which diffusers does not know"),
    "no pipeline": (index(_class_name="UNet2DConditionModel"), "which diffusers does not know"),
    "class unknown": (index(unet=["diffusers", "UNet9"]), "cannot load unet of .* class 'UNet9' of 'diffusers'"),
    "library unknown": (index(vae=["nolib", "AutoencoderKL"]), "class 'AutoencoderKL' of 'nolib'"),
    "no class": (index(vae="AutoencoderKL"), "'AutoencoderKL' as vae, not its library and class"),
    "no unet": (index(unet=[None, None]), r"\[None, None\] as unet"),
    "nothing as a part": (index(unet=[]), r"has \[\] as unet, not its library and class"),
    "nothing as another's part": (index(scribbler=[]), r"has \[\] as scribbler, not its library"),
    "one word as a part": (index(image_encoder=["diffusers"]), r"has \['diffusers'\] as image_encoder, not its lib"),
    "a list as pipeline": (index(_class_name=[]), r"the pipeline \[\], which diffusers does not know"),
    "part unlisted": (index(text_encoder_2=...), "has None as text_encoder_2"),
    "index of nothing": (text("model_index.json", "{}"), r"model_index\.json has no settings"),
    "index cut": (text("model_index.json", "{"), r"model_index\.json is not JSON"),
    "no folder": (lost("vae"), "cannot load vae of .* no such folder; restore its files"),
    "no weights": (lost("text_encoder/model.safetensors"), r"no file named model\.safetensors; restore its files"),
    "pickles alone": (_pickled, r"only diffusion_pytorch_model\.bin, which is not read here: save it again"),
    "a pointer of git-lfs": (text("text_encoder/model.safetensors", "version https://git-lfs"), "load text_encoder of"),
    "an empty file": (text("vae/diffusion_pytorch_model.safetensors", ""), "cannot load vae of"),
    "more weights than the unet has": (
        lambda folder: rewrite(weights_file(folder / "unet"), lambda all_: all_ | {"mid.weight": torch.zeros(1)}),
        r"no place for 1 weights, such as mid\.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders_are_refused(name: str, copy_family: CopyFamily) -> None:
    damage, problem = BROKEN[name]
    folder = copy_family("sdxl")
    damage(folder)
    with pytest.raises(DamagedWeightsError, match=problem):
        load(folder)


@pytest.mark.parametrize("name", ["sdxl", "sd15", "sd3", "flux-dev"])
def test_half_precision_variants_and_shards_load(
    name: str, family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    whole = load(family_folder(name))
    whole.save_pretrained(tmp_path / "variant", variant="fp16")
    whole.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert not list((tmp_path / "variant").rglob("model.safetensors"))
    assert len(list((tmp_path / "shards").rglob("*.index.json"))) >= 2
    for kind in ("variant", "shards"):
        found = load(tmp_path / kind)
        for part in found.components:
            network = getattr(found, part)
            if isinstance(network, torch.nn.Module):
                expected = getattr(whole, part).state_dict()
                assert all(torch.equal(tensor, expected[key]) for key, tensor in network.state_dict().items())
    next((tmp_path / "shards" / "text_encoder").glob("model-00002-*.safetensors")).unlink()
    with pytest.raises(DamagedWeightsError, match="cannot load text_encoder"):
        load(tmp_path / "shards", "text_encoder")


def test_what_old_and_larger_files_have_besides_is_left_out(copy_family: CopyFamily) -> None:
    """Position numbers, a projection or a whole image tower: the file may be that of a CLIP."""
    folder = copy_family("sdxl")
    more = {"text_model.embeddings.position_ids": torch.arange(16)[None], "text_projection.weight": torch.zeros(4, 4)}
    more |= {"logit_scale": torch.ones(1), "vision_model.encoder.layers.0.mlp.fc1.bias": torch.zeros(4)}
    rewrite(
        weights_file(folder / "text_encoder"),
        lambda tensors: {f"text_model.{name}": tensor for name, tensor in tensors.items()} | more,
    )
    expected = load_file(weights_file(copy_family("sdxl-v") / "text_encoder"))
    found = load(folder, "text_encoder").text_encoder.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_padded_embeddings_load_and_short_ones_do_not(copy_family: CopyFamily) -> None:
    """T5 has 32,128 embeddings for 32,100 words."""
    folder = copy_family("sd3")
    for n_embeddings in (32, 29):
        settings("text_encoder_3/config.json", vocab_size=n_embeddings)(folder)
        rewrite(
            weights_file(folder / "text_encoder_3"),
            lambda tensors, n=n_embeddings: tensors | {"shared.weight": torch.zeros(n, 64)},
        )
        if n_embeddings == 32:
            assert load(folder, "text_encoder_3", "tokenizer_3").tokenizer_3 is not None
    with pytest.raises(DamagedWeightsError, match="its word 'z' has no embedding: the text encoder has 29"):
        load(folder, "text_encoder_3", "tokenizer_3")


def test_fewer_layers_on_purpose_load(copy_family: CopyFamily) -> None:
    """Known as CLIP skip: the configuration itself gives the number."""
    folder = copy_family("sd15")
    settings("text_encoder/config.json", num_hidden_layers=1)(folder)
    assert load(folder, "text_encoder").text_encoder.config.num_hidden_layers == 1


def test_what_is_not_wanted_may_be_broken(copy_family: CopyFamily) -> None:
    folder = copy_family("sdxl")
    for damage in (_pickled, lost("scheduler"), text("vae/config.json", "{}")):
        damage(folder)
    assert load(folder, "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2").text_encoder_2 is not None


def test_a_saved_pipeline_is_that_of_diffusers(family_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Down to the bytes: what training writes is hashed."""
    for name in ("sdxl", "sd3"):
        load(family_folder(name)).save_pretrained(tmp_path / "ours" / name)
        theirs = diffusers.DiffusionPipeline.from_pretrained(family_folder(name), dtype=torch.float32)
        theirs.save_pretrained(tmp_path / "theirs" / name)
    assert hash_folder(tmp_path / "ours") == hash_folder(tmp_path / "theirs")
