"""`popalign fetch` as a user runs it: a process of its own, the hub's real client, servers on this machine."""

import hashlib
import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from weights_server import COMMIT, TOKEN, Repository, WeightsServer, serve_weights

REPOSITORY = Path(__file__).resolve().parents[3]
MODEL = "owner/tiny"
DEEPFACE = "/serengil/deepface_models/releases/download/v1.0"
_MAIN = "from flows.cli.app import main; main()"
Start = Callable[..., "subprocess.Popen[str]"]
Fetch = Callable[..., "subprocess.CompletedProcess[str]"]

CONFIG = f"""
[model]
name = "{MODEL}"
revision = "{COMMIT}"
lora = "loras/sdxl_lightning_4step_lora.safetensors"

[[axes]]
name = "gender"
classes = ["male", "female"]

[prompts]
train_subjects = ["doctor", "nurse"]
eval_subjects = ["judge", "dancer"]
generic_subjects = ["tree"]

[attributes]
classifier = "deepface"
detector_backend = "retinaface"

[evaluation.scorers.clip_score]
kind = "clip"
path = "scorers/clip-vit-large-patch14"

[evaluation.scorers.aesthetics]
kind = "aesthetics"
path = "scorers/sac+logos+ava1-l14-linearMSE.pth"
clip = "scorers/clip-vit-large-patch14"

[evaluation.scorers.image_reward]
kind = "image-reward"
path = "scorers/ImageReward.pt"
tokenizer = "scorers/bert-base-uncased"
"""
BULKY = ("unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin", "unet/model.onnx",
         "text_encoder/flax_model.msgpack", "sd_xl_base_1.0.safetensors", "README.md")  # fmt: skip


DEFAULT = ("fetch", "--config", "run.toml", "--yes")


def weights_of(n: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(n)


@pytest.fixture
def server(tiny_weights: Path) -> Iterator[WeightsServer]:
    """All that the configuration needs, among other files that nobody reads."""
    from safetensors.numpy import save

    with serve_weights() as server:
        pipeline = Repository.of_folder(tiny_weights / "pipeline", license="openrail++")
        pipeline.files |= dict.fromkeys(BULKY, b"not to be read" * 1000)
        clip = Repository.of_folder(tiny_weights / "clip")
        clip.files |= {"pytorch_model.bin": b"pickle" * 1000, "tf_model.h5": b"other" * 1000}
        words = {"tokenizer.json": b'{"model": {}}', "vocab.txt": b"a\nb\n", "model.safetensors": b"unread" * 1000}
        import numpy as np

        lora = save({"lora": np.zeros(50_000, np.float32)})
        server.repositories = {
            MODEL: pipeline,
            "openai/clip-vit-large-patch14": clip,
            "google-bert/bert-base-uncased": Repository(words),
            "THUDM/ImageReward": Repository({"ImageReward.pt": weights_of(200_000, 1), "other.pt": b"unread"}),
            "ByteDance/SDXL-Lightning": Repository({"sdxl_lightning_4step_lora.safetensors": lora}),
        }
        server.files = {
            f"{DEEPFACE}/gender_model_weights.pth": weights_of(700_000, 2),
            f"{DEEPFACE}/race_model_single_batch.pth": weights_of(300_000, 3),
            f"{DEEPFACE}/retinaface.pth": weights_of(100_000, 4),
            "/christophschuhmann/improved-aesthetic-predictor/raw/main/sac+logos+ava1-l14-linearMSE.pth": weights_of(
                9, 5
            ),
        }
        yield server


@pytest.fixture
def start(tmp_path: Path, server: WeightsServer) -> Start:
    """Starts the command in a folder with the configuration, on a machine that has nothing."""
    (tmp_path / "run.toml").write_text(CONFIG)

    def launch(
        *words: str, code: str = _MAIN, stdin: int = subprocess.DEVNULL, **variables: str
    ) -> "subprocess.Popen[str]":
        own = {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "hf"),
            "DEEPFACE_HOME": str(tmp_path / "home"),
            "POPALIGN_FILES_ENDPOINT": server.url,
            "HF_HUB_OFFLINE": "0",
            "PYTHONPATH": str(REPOSITORY),
        }
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return subprocess.Popen(
            [sys.executable, "-c", code, *words],
            cwd=tmp_path,
            env=environment | own | variables,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return launch


@pytest.fixture
def fetch(start: Start) -> Fetch:
    def call(*words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        process = start(*(words or DEFAULT), **variables)
        out, errors = process.communicate(timeout=120)
        return subprocess.CompletedProcess(words, process.returncode, out, errors)

    return call


def fetched_files(folder: Path) -> dict[str, bytes]:
    """What lies there for use, without locks, records, blobs and the hub's own notes."""
    found = [path for root in ("hf", "home", "loras", "scorers") for path in (folder / root).rglob("*")]
    notes = (".", "popalign-files", "CACHEDIR")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in found
        if path.is_file() and not path.name.startswith(notes) and not {"blobs", ".locks"} & set(path.parts)
    }


def expected_files(server: WeightsServer) -> dict[str, bytes]:
    """What a run reads, and where it looks for it."""
    snapshot = f"hf/hub/models--owner--tiny/snapshots/{COMMIT}"
    clip, bert = "openai/clip-vit-large-patch14", "google-bert/bert-base-uncased"
    at = {f"{snapshot}/{name}": (MODEL, name) for name in server.repositories[MODEL].files if name not in BULKY}
    at |= {
        f"scorers/clip-vit-large-patch14/{name}": (clip, name)
        for name in server.repositories[clip].files
        if name.endswith((".json", ".safetensors"))
    }
    at |= {f"scorers/bert-base-uncased/{name}": (bert, name) for name in ("tokenizer.json", "vocab.txt")}
    at["scorers/ImageReward.pt"] = ("THUDM/ImageReward", "ImageReward.pt")
    lora = "sdxl_lightning_4step_lora.safetensors"
    at[f"loras/{lora}"] = ("ByteDance/SDXL-Lightning", lora)
    files = {place: server.repositories[repo].files[name] for place, (repo, name) in at.items()}
    for path, content in server.files.items():
        folder = "home/.deepface/weights" if path.startswith(DEEPFACE) else "scorers"
        files[f"{folder}/{path.rpartition('/')[2]}"] = content
    return files


def test_from_nothing_to_a_clean_preflight(fetch: Fetch, server: WeightsServer, tmp_path: Path) -> None:
    server.repositories["THUDM/ImageReward"].is_gated = True
    before = fetch("doctor", "--config", "run.toml")
    assert before.returncode == 4
    missing = [line for line in before.stdout.splitlines() if line.startswith("missing")]
    assert len(missing) == 10
    assert all("popalign fetch" in line for line in missing)

    told = fetch(HF_TOKEN=TOKEN)
    assert (told.returncode, told.stderr.count("Traceback")) == (0, 0), told.stderr
    assert fetched_files(tmp_path) == expected_files(server)
    after = fetch("doctor", "--config", "run.toml", HF_ENDPOINT="http://127.0.0.1:9")
    assert after.returncode == 0, after.stdout
    assert "missing" not in after.stdout

    load = "from popalign_core.models.loading import *; import torch; print(type(load_pipeline(ModelConfig(name="
    load += f"{MODEL!r}, revision={COMMIT!r}), device=torch.device('cpu'))).__name__)"
    assert fetch(code=load, HF_ENDPOINT="http://127.0.0.1:9").stdout == "StableDiffusionXLPipeline\n"

    n_asked = len(server.asked)
    again = fetch("fetch", "--config", "run.toml")
    assert (again.returncode, again.stdout) == (0, "nothing to download: 10 item(s) present\n")
    assert len(server.asked) == n_asked
    assert TOKEN not in told.stdout + told.stderr


def test_nothing_is_downloaded_unasked(fetch: Fetch, server: WeightsServer, tmp_path: Path) -> None:
    shown = fetch("fetch", "--config", "run.toml", "--dry-run")
    assert shown.returncode == 0
    for text in (
        f"model {MODEL}: ",
        f"from     {MODEL} at {COMMIT}",
        "license  openrail++ by its card: what it forbids is not known here",
        "license  Open RAIL++: commercial use allowed; forbids the harmful uses",
        "DeepFace gender_model_weights.pth: 683.6 KiB, 1 file(s)",
        "license  DeepFace's code is MIT; weights trained on VGG-Face, non-commercial",
    ):
        assert text in shown.stdout, shown.stdout
    assert f" to download, {len(expected_files(server))} file(s); 0 other item(s) already present" in shown.stdout
    refused = fetch("fetch", "--config", "run.toml")
    assert refused.returncode == 2
    assert "nothing was downloaded: no terminal to ask on; pass --yes" in refused.stderr
    assert fetched_files(tmp_path) == {}
    looked_at = [path for method, path, _ in server.asked if method == "GET" and not path.startswith("/api/")]
    assert looked_at == [f"/{MODEL}/resolve/{COMMIT}/model_index.json"] * 2


def test_who_declines_gets_nothing(start: Start, server: WeightsServer, tmp_path: Path) -> None:
    keyboard, terminal = pty.openpty()
    process = start("fetch", "--config", "run.toml", stdin=terminal)
    os.write(keyboard, b"n\n")
    out, errors = process.communicate(timeout=120)
    os.close(keyboard)
    os.close(terminal)
    assert process.returncode == 130
    assert "Download under these licenses? [y/N]" in out
    assert errors == "nothing was downloaded\n"
    assert fetched_files(tmp_path) == {}


def test_a_part_of_it(fetch: Fetch, server: WeightsServer, tmp_path: Path) -> None:
    told = fetch("fetch", "--config", "run.toml", "--yes", "--what", "lora,classifiers")
    assert told.returncode == 0, told.stderr
    expected = expected_files(server)
    assert fetched_files(tmp_path) == {place: expected[place] for place in expected if place.startswith(("lo", "ho"))}
    wrong = fetch("fetch", "--config", "run.toml", "--what", "modell")
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "popalign: --what has unknown groups ['modell']; choose from model, denoiser, vae, lora, safety-checker, "
        "classifiers, scorers\n",
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_ten_times_every_byte_is_right(
    start: Start, fetch: Fetch, server: WeightsServer, tmp_path: Path
) -> None:
    server.faults.bytes_per_s = 400_000
    chance, n_killed, n_before = random.Random(7), 0, 0
    while n_killed < 10:
        process = start(*DEFAULT)
        deadline, n_before = time.monotonic() + 60, server.n_sent
        target = chance.randrange(20_000, 200_000)
        while server.n_sent - n_before < target and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        n_killed += 1
    server.faults.bytes_per_s = 0
    told = fetch()
    assert told.returncode == 0, told.stderr
    expected = expected_files(server)
    assert fetched_files(tmp_path) == expected
    blobs = tmp_path / "hf" / "hub" / "models--owner--tiny" / "blobs"
    assert [path.name for path in blobs.iterdir() if path.suffix] == []
    resumed = [headers["range"] for method, _, headers in server.asked if "range" in headers]
    assert resumed != []
    # a kill costs what was on its way, and no file that was whole
    assert server.n_sent < 1.5 * sum(map(len, expected.values())) + 11 * 50_000


def test_offline_is_obeyed(fetch: Fetch, server: WeightsServer) -> None:
    told = fetch(HF_HUB_OFFLINE="1")
    assert (told.returncode, server.asked) == (2, [])
    assert "HF_HUB_OFFLINE forbids every download" in told.stderr


def test_proxies_are_used(fetch: Fetch, server: WeightsServer, tmp_path: Path) -> None:
    proxy = {"HTTP_PROXY": server.url, "NO_PROXY": "", "no_proxy": ""}
    addresses = {"HF_ENDPOINT": "http://hub.example", "POPALIGN_FILES_ENDPOINT": "http://files.example"}
    server.faults.other_host = "http://cdn.example"
    told = fetch("fetch", "--config", "run.toml", "--yes", "--what", "lora,classifiers", **proxy, **addresses)
    assert told.returncode == 0, told.stderr
    hosts = {path.split("/")[2] for _, path, _ in server.asked}
    assert hosts == {"hub.example", "cdn.example", "files.example"}
    gender = tmp_path / "home" / ".deepface" / "weights" / "gender_model_weights.pth"
    assert hashlib.sha256(gender.read_bytes()).digest() == hashlib.sha256(weights_of(700_000, 2)).digest()
