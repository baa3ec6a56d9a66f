"""The rehearsal: layouts of the published sizes, files written piece by piece, all stages at a small scale."""

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file

REPOSITORY = Path(__file__).resolve().parents[1]
PUBLISHED = {
    "sdxl": (123060480, 694659840, 2567463684, 83653863),
    "sd15": (123060480, 859520964, 83653863),
    "sd3": (123650304, 694659840, 4762310656, 2028328000, 83819683),
    "flux": (123060480, 4762310656, 11901408320, 83819683),
}
"""Parameters of the public models: text encoders, denoiser, VAE."""


@pytest.fixture
def layouts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return import_module("published_layouts")


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return import_module("random_weights")


@pytest.mark.parametrize("family", PUBLISHED)
def test_a_full_layout_has_the_published_size(family: str, layouts: ModuleType) -> None:
    parts = layouts.build_parts(family, layouts.SCALES["full"])
    assert tuple(layouts.count_parameters(parts).values()) == PUBLISHED[family]
    networks = [part for part in parts.values() if isinstance(part, torch.nn.Module)]
    assert {weight.device.type for network in networks for weight in network.parameters()} == {"meta"}


def test_weights_keep_the_size_of_a_signal(weights: ModuleType, tmp_path: Path) -> None:
    shapes = {"a.weight": (64, 400), "conv.weight": (32, 16, 3, 3), "norm.weight": (7,), "norm.bias": (7,), "one": ()}
    weights.write_random(tmp_path / "a.safetensors", shapes)
    tensors = load_file(tmp_path / "a.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert tensors["a.weight"].float().std().item() == pytest.approx(1 / 20, rel=0.03)
    assert tensors["conv.weight"].float().std().item() == pytest.approx(1 / 12, rel=0.05)
    assert (tensors["norm.weight"].tolist(), tensors["norm.bias"].tolist()) == ([1.0] * 7, [0.0] * 7)
    weights.write_random(tmp_path / "b.safetensors", shapes)
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


def test_what_is_too_large_for_a_file_lies_in_several(
    layouts: ModuleType, weights: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "LARGEST_FILE", 8_000_000)
    counts = layouts.write_model("sd15", layouts.SCALES["small"], tmp_path)
    index = json.loads((tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "unet").glob("*.safetensors"))
    assert files == [f"diffusion_pytorch_model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == 2 * counts["unet"]
    assert all((tmp_path / "unet" / name).stat().st_size < 8_100_000 for name in files)
    unet, said = UNet2DConditionModel.from_pretrained(tmp_path / "unet", output_loading_info=True)
    assert sum(weight.numel() for weight in unet.parameters()) == counts["unet"]
    assert said["missing_keys"] == said["unexpected_keys"] == []
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path)
    assert pipeline.tokenizer("a judge").input_ids[0] == pipeline.text_encoder.config.bos_token_id


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_model_goes_through_all_stages(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "rehearsal.py"), "--px", "64", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if re.search(r"\| \d", line)]
    assert [row[0] for row in rows] == [
        "write the weights",
        "import pairs",
        "train a LoRA, 2 step(s)",
        "sample 5 images",
        "read attributes",
        "score",
        "evaluate the trained model: sample, read, score",
        "all",
    ]
    figures = [[float(cell.replace(",", "")) for cell in row[1:]] for row in rows]
    assert all(seconds > 0 and peak > 100 for seconds, peak, _ in figures)
    assert figures[0][2] == pytest.approx(17, abs=3)  # 9 million weights in float16
    assert figures[-1][0] == pytest.approx(sum(row[0] for row in figures[:-1]), abs=0.5)
    assert (tmp_path / "store" / "runs" / "trained" / "lora").is_dir()
