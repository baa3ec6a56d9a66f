"""The pipeline's stand-ins: tiny random models in the real formats, and a reader that compares sums of pixels."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from popalign_core.config import (
    AttributesConfig,
    Axis,
    EvaluationConfig,
    ModelConfig,
    PipelineConfig,
    PreferencesConfig,
    PromptsConfig,
    RuntimeConfig,
    SamplingConfig,
    TrainingConfig,
)

# Before torch and prefect are imported: one thread (two spin beside other work), offline, no calls home.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    DO_NOT_TRACK="1",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="120",
)

# What is started in the background may have been started with Ctrl-C ignored, and hands that on to its children.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

WIDTH = 32
GENDERS = ("male", "female")


class PixelSumReader:
    """Male where the quarters on one diagonal are the brighter ones, female where the others are. No model.

    Even-handed over the tiny pipeline's pictures, and a measure of a whole picture: rounding that moves a pixel by a
    grey level, as other processors and batch shapes do, moves it by 1/3072. Where the diagonals are nearer to each
    other than `MARGIN`, which is one picture of seven, there is no face.
    """

    name = "pixel-sum"
    version = "1"
    axes = {"gender": GENDERS}  # noqa: RUF012 (as the protocol has it)
    MARGIN = 0.05

    def read(self, pictures: Any, image_ids: Any = ()) -> list[Any]:
        from popalign_core.attributes.reader import FaceReading

        readings = []
        for pixels in pictures:
            difference = diagonal_difference(pixels)
            if abs(difference) < self.MARGIN:
                readings.append(FaceReading(0, None, 0.0, {}))
            else:
                probabilities = {"male": 0.9, "female": 0.1} if difference > 0 else {"male": 0.1, "female": 0.9}
                readings.append(FaceReading(1, (8.0, 8.0, 48.0, 48.0), 0.9, {"gender": probabilities}))
        return readings


def diagonal_difference(pixels: Any) -> float:
    """Mean grey level of the upper left and lower right quarters, summed, less that of the other two."""
    row, column = (side // 2 for side in pixels.shape[:2])
    parts = (pixels[:row, :column], pixels[row:, column:], pixels[:row, column:], pixels[row:, :column])
    one, two, three, four = (float(part.mean(dtype=np.float64)) for part in parts)
    return one + two - three - four


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `pipeline/` (64 px, 4 x 8 x 8 latents) and `clip/`, saved once a session."""
    import torch

    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _pipeline().save_pretrained(folder / "pipeline", safe_serialization=True)
        _save_clip(folder / "clip")
    return folder


@pytest.fixture
def stand_ins(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader and the tiny CLIP in place of the embedded classifier and CLIP."""
    from tasks import measuring

    reader = measuring.Classifier(lambda: "pixel-sum@1", lambda config, device: PixelSumReader())
    monkeypatch.setitem(measuring.CLASSIFIERS, "portraits", reader)
    monkeypatch.setattr(measuring, "clip_folder", lambda: tiny_weights / "clip")


@pytest.fixture
def tiny_config(tiny_weights: Path, stand_ins: None) -> PipelineConfig:
    """Every stage in a second or two: 2 training, 2 evaluation, 2 generic and 1 retained subjects."""
    return PipelineConfig(
        model=ModelConfig(name=str(tiny_weights / "pipeline")),
        axes=(Axis(name="gender", classes=GENDERS),),
        prompts=PromptsConfig(
            train_subjects=("doctor", "nurse"),
            eval_subjects=("judge", "dancer"),
            generic_subjects=("tree", "cat"),
            retained_subjects=("moon",),
        ),
        sampling=SamplingConfig(n_steps=2, seed=1),
        attributes=AttributesConfig(),
        preferences=PreferencesConfig(n_neutral=6, n_specific=6, set_size=2, n_sets=1),
        training=TrainingConfig(lora_rank=0, n_steps=4, n_warmup_steps=1, n_pairs=2, checkpoint_every=1, retention=1),
        evaluation=EvaluationConfig(n_neutral=6, n_specific=3, n_generic=2, n_bootstrap=100),
    )


@pytest.fixture
def tiny_runtime(tmp_path: Path) -> RuntimeConfig:
    """A store of the test's own, on the CPU; shards of 8 images, batches of 4."""
    return RuntimeConfig(root=str(tmp_path / "store"), device="cpu", batch_size=4, shard_size=8)


@pytest.fixture
def make_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a file system of a size of its own, as `mount` spells it."""
    folder = tmp_path / "disk"

    def make(size: str) -> Path:
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("needs root and mount for a small file system; see the test with a file size limit")
        return folder

    yield make
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


def _pipeline() -> Any:
    from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH + 6 * 8,
        cross_attention_dim=2 * WIDTH,
    )
    blocks: dict[str, Any] = dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (8, 8, 8, 8))
    blocks |= dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), (1, 1, 1, 1))
    return StableDiffusionXLPipeline(
        vae=AutoencoderTiny(**blocks, latent_channels=4, scaling_factor=0.5),
        text_encoder=CLIPTextModel(_text_config()).eval(),
        text_encoder_2=CLIPTextModelWithProjection(_text_config()).eval(),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def _save_clip(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=64,
        patch_size=16,
        projection_dim=WIDTH,
    )
    config = CLIPConfig(text_config=_text_config().to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH)
    CLIPModel(config).eval().save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 64},
        "crop_size": {"height": 64, "width": 64},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")


def _pieces() -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    vocabulary = {piece: index for index, piece in enumerate(_pieces())}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=32)


def _text_config() -> Any:
    from transformers import CLIPTextConfig

    n_pieces = len(_pieces())
    return CLIPTextConfig(
        vocab_size=n_pieces,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        projection_dim=WIDTH,
        bos_token_id=n_pieces - 2,
        eos_token_id=n_pieces - 1,
        pad_token_id=n_pieces - 1,
    )
