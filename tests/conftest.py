"""The pipeline's stand-ins: tiny random models in the real formats, and a reader that compares sums of pixels.

What is costly and only read is made once for all processes of pytest-xdist (`make_once`): the weights, and a whole run
whose artifacts a test gets copies of (`give_artifacts`).
"""

import atexit
import gc
import json
import logging
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

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
from storage.store import ArtifactRef

# Before torch and prefect are imported: one thread (two spin beside other work), offline, no calls home.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    DO_NOT_TRACK="1",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="120",
)
# What a Prefect server does by the clock costs time and serves no test here.
for service in (
    "SCHEDULER",
    "LATE_RUNS",
    "FOREMAN",
    "CANCELLATION_CLEANUP",
    "PAUSE_EXPIRATIONS",
    "REPOSSESSOR",
    "TRIGGERS",
):
    os.environ[f"PREFECT_SERVER_SERVICES_{service}_ENABLED"] = "false"

# What tests learn of speed is nobody's: a folder of the session's own, which its subprocesses share.
os.environ["POPALIGN_CACHE"] = tempfile.mkdtemp(prefix="popalign-cache-")
atexit.register(shutil.rmtree, os.environ["POPALIGN_CACHE"], ignore_errors=True)

# What is started in the background may have been started with Ctrl-C ignored, and hands that on to its children.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

WIDTH = 32
GENDERS = ("male", "female")


class PixelSumClassifier:
    """Male where the red on the white squares of a chessboard sums to more than that on the black ones. No model.

    Even-handed over the tiny pipeline's pictures, and a measure of a whole picture: a pixel that is rounded to the next
    grey level, as on other processors and in other batches, moves it by 1/4096. Those pictures are ten times farther
    than that from another answer. Where the sums are nearer to each other than `MARGIN` there is no face.
    """

    name = "pixel-sum"
    version = "1"
    axes = {"gender": GENDERS}  # noqa: RUF012 (as the protocol has it)
    MARGIN = 0.012

    def read(self, pictures: Any, image_ids: Any = ()) -> list[Any]:
        from chessboards import chessboard

        from popalign_core.attributes.classifier_interface import FaceReading

        readings = []
        for pixels in pictures:
            difference = float((chessboard(*pixels.shape[:2]) * pixels[..., 0]).mean(dtype=np.float64))
            if abs(difference) < self.MARGIN:
                readings.append(FaceReading(0, None, 0.0, {}))
            else:
                probabilities = {"male": 0.9, "female": 0.1} if difference > 0 else {"male": 0.1, "female": 0.9}
                readings.append(FaceReading(1, (8.0, 8.0, 48.0, 48.0), 0.9, {"gender": probabilities}))
        return readings


MakeOnce = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """Makes a folder of a name once a session: the first process that asks fills it, the others wait. For reading."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # each process has a folder of its own in it

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        folder = root / "made-once" / name
        folder.parent.mkdir(exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                unfinished = folder.with_name(f"{name}.unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                fill(unfinished)
                unfinished.rename(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_weights(make_once: MakeOnce) -> Path:
    """A folder with `pipeline/` (64 px, 4 x 8 x 8 latents) and `clip/`."""
    return make_once("weights", _save_weights)


@pytest.fixture(scope="session")
def prefect_database() -> Iterator[None]:
    """A Prefect server with a database of its own: 15 seconds of work, so one for all who ask."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


def pytest_unconfigure() -> None:
    """Prefect's temporary server says at exit that it stops, to a stream that pytest has closed by then."""
    logging.raiseExceptions = False


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look at it again and again."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who needs a Prefect server comes first: side by side they go to one process, and one server does."""
    items.sort(key=lambda item: "prefect_database" not in getattr(item, "fixturenames", ()))


@pytest.fixture
def stand_ins(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader and the tiny CLIP in place of the embedded classifier and CLIP."""
    _stand_in(tiny_weights, monkeypatch)


@pytest.fixture
def tiny_config(tiny_weights: Path, stand_ins: None) -> PipelineConfig:
    """Every stage in a second or two: 2 training, 2 evaluation, 2 generic and 1 retained subjects."""
    return _tiny_config(tiny_weights)


@pytest.fixture
def tiny_runtime(tmp_path: Path) -> RuntimeConfig:
    """A store of the test's own, on the CPU; shards of 8 images, batches of 4."""
    return _tiny_runtime(tmp_path)


@pytest.fixture(scope="session")
def tiny_run(make_once: MakeOnce, tiny_weights: Path) -> Path:
    """The store of a whole run of `tiny_config` by the name "run", for reading."""

    def fill(folder: Path) -> None:
        from flows.plan.execution import call_directly
        from flows.plan.runs import run_pipeline

        with pytest.MonkeyPatch.context() as patch:
            _stand_in(tiny_weights, patch)
            refs = run_pipeline(_tiny_config(tiny_weights), _tiny_runtime(folder), "run", call=call_directly())
        (folder / "nodes.json").write_text(json.dumps({node: str(ref) for node, ref in refs.items()}))

    return make_once("run", fill) / "store"


@pytest.fixture
def give_artifacts(tiny_run: Path, tiny_runtime: RuntimeConfig) -> Callable[[str], dict[str, ArtifactRef]]:
    """Copies what `tiny_run` had made when a node was done into the store of `tiny_runtime`; each node's artifact."""
    nodes: dict[str, str] = json.loads((tiny_run.parent / "nodes.json").read_text())

    def give(node: str) -> dict[str, ArtifactRef]:
        names = list(nodes)
        refs = {name: ArtifactRef(*nodes[name].split("/")) for name in names[: names.index(node) + 1]}
        for ref in set(refs.values()):
            target = Path(tiny_runtime.root) / ref.stage / ref.key
            shutil.copytree(tiny_run / ref.stage / ref.key, target, dirs_exist_ok=True)
        return refs

    return give


@pytest.fixture
def finished(tiny_run: Path, tiny_runtime: RuntimeConfig) -> None:
    """The test's store is that of `tiny_run`: what a run of `tiny_config` makes is there."""
    shutil.copytree(tiny_run, tiny_runtime.root)


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


def _stand_in(weights: Path, patch: pytest.MonkeyPatch) -> None:
    from tasks.common import measuring

    reader = measuring.Classifier(lambda: "pixel-sum@1", lambda config, device: PixelSumClassifier())
    patch.setitem(measuring.CLASSIFIERS, "portraits", reader)
    patch.setattr(measuring, "clip_folder", lambda: weights / "clip")


def _tiny_config(weights: Path) -> PipelineConfig:
    return PipelineConfig(
        model=ModelConfig(name=str(weights / "pipeline")),
        axes=(Axis(name="gender", classes=GENDERS),),
        prompts=PromptsConfig(
            train_subjects=("doctor", "nurse"),
            eval_subjects=("judge", "dancer"),
            generic_subjects=("tree", "cat"),
            retained_subjects=("moon",),
        ),
        sampling=SamplingConfig(n_steps=2, seed=2),
        attributes=AttributesConfig(),
        preferences=PreferencesConfig(n_neutral=6, n_specific=6, set_size=2, n_sets=1),
        training=TrainingConfig(lora_rank=0, n_steps=4, n_warmup_steps=1, n_pairs=2, checkpoint_every=2, retention=1),
        evaluation=EvaluationConfig(n_neutral=6, n_specific=3, n_generic=2, n_bootstrap=100),
    )


def _tiny_runtime(folder: Path) -> RuntimeConfig:
    return RuntimeConfig(root=str(folder / "store"), device="cpu", batch_size=4, shard_size=8)


def _save_weights(folder: Path) -> None:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        _pipeline().save_pretrained(folder / "pipeline", safe_serialization=True)
        _save_clip(folder / "clip")


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
