"""A single file from a model site, as a user brings it: fetch what it lacks, evaluate it, and find it again."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import make_original_sdxl
from weights_server import Repository, serve_weights

from popalign_core.models.single_file_export import write_single_file

REPOSITORY = Path(__file__).resolve().parents[3]
FAMILY = "stabilityai/stable-diffusion-xl-base-1.0"
CONFIG = """
[model]
name = "fine-tune.safetensors"

[[axes]]
name = "gender"
classes = ["male", "female"]

[prompts]
train_subjects = ["doctor", "nurse"]
eval_subjects = ["judge", "dancer"]
generic_subjects = ["tree"]

[sampling]
n_steps = 2

[evaluation]
n_neutral = 3
n_specific = 1
n_generic = 1
"""
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the file, its configuration, and beside them the family's repository."""
    make_original_sdxl().save_pretrained(tmp_path / "family")
    write_single_file(tmp_path / "family", tmp_path / "fine-tune.safetensors")
    (tmp_path / "run.toml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def popalign(folder: Path) -> Run:
    def run(*words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        own = {
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_OFFLINE": "0",
            "POPALIGN_CACHE": str(folder / "cache"),
            "PYTHONPATH": str(REPOSITORY),
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return subprocess.run(
            [sys.executable, "-c", "from flows.cli.app import main; main()", *words],
            cwd=folder,
            env=kept | own | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    return run


def test_from_a_file_to_the_leaderboard(popalign: Run, folder: Path) -> None:
    given = ("--config", "run.toml")
    refused = popalign("plan", *given)
    assert refused.returncode == 4
    assert f"those of {FAMILY} are not in the local hub cache; run `popalign fetch`" in " ".join(refused.stderr.split())
    with serve_weights() as server:
        server.repositories = {FAMILY: Repository.of_folder(folder / "family", license="openrail++")}
        fetched = popalign("fetch", *given, "--yes", HF_ENDPOINT=server.url, POPALIGN_FILES_ENDPOINT=server.url)
    assert fetched.returncode == 0, fetched.stderr
    came = {path.name for path in (folder / "hf").rglob("snapshots/*/*/*")}
    assert {"config.json", "scheduler_config.json", "tokenizer_config.json"} <= came
    assert not [name for name in came if name.endswith(".safetensors")]
    planned = popalign("plan", *given)
    assert planned.returncode == 0, planned.stderr
    done = popalign("evaluate", "fine-tune.safetensors", *given)
    assert done.returncode == 0, done.stderr
    assert "fine-tune.safetensors" in done.stdout
    # the same weights as a folder are on the leaderboard already
    (folder / "as-folder").mkdir()
    shutil.copytree(folder / "family", folder / "as-folder" / "model")
    n_artifacts = len(list((folder / "artifacts").rglob("manifest.json")))
    again = popalign("evaluate", "as-folder/model", *given)
    assert again.returncode == 0, again.stderr
    assert len(list((folder / "artifacts").rglob("manifest.json"))) == n_artifacts > 0


def test_a_file_that_is_no_model(popalign: Run, folder: Path) -> None:
    (folder / "fine-tune.safetensors").write_bytes(b"<html>404</html>")
    refused = popalign("plan", "--config", "run.toml")
    assert refused.returncode == 4
    assert "fine-tune.safetensors is damaged or incomplete" in " ".join(refused.stderr.split())
