"""Stages made by workers: the bytes of one process, whoever works and whoever dies."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from onnx_files import write_colour_network
from prefect.settings import PREFECT_API_URL
from scorer_files import (
    aesthetic_state,
    bert_tokenizer,
    clip_tokenizer,
    open_clip_state,
    reward_state,
    save_clip_folder,
)

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import InputError
from storage.store import ArtifactRef
from tasks.common.stage_object import open_store
from tasks.stages.attributes import read_attributes
from tasks.stages.identities import add_identities
from tasks.stages.prompts import write_prompts
from tasks.stages.sample import sample_images
from tasks.stages.scores import read_unmeasured, score_images

pytestmark = pytest.mark.usefixtures("forked_workers")  # test_fanout has spawned ones

REPOSITORY = Path(__file__).resolve().parents[3]
CLUSTERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("ray", "dask")]
WORKERS = {"processes": "multiprocessing.forkserver", "ray": "ray::", "dask": "multiprocessing.forkserver"}
"""What the command line of a worker has in it."""
STAGES: dict[str, Callable[..., ArtifactRef]] = {"attributes": read_attributes, "scores": score_images}


@pytest.fixture
def runtime(tiny_runtime: RuntimeConfig) -> RuntimeConfig:
    return tiny_runtime.model_copy(update={"shard_size": 4, "n_threads": 1})


def draw(
    config: PipelineConfig,
    runtime: RuntimeConfig,
    on_progress: Any = lambda done, total: None,
) -> tuple[ArtifactRef, ArtifactRef]:
    prompts = add_identities(write_prompts(config=config, runtime=runtime), config=config, runtime=runtime)
    return prompts, sample_images(
        prompts, purpose="evaluation", config=config, runtime=runtime, on_progress=on_progress
    )


def files(runtime: RuntimeConfig, ref: ArtifactRef) -> dict[str, bytes]:
    folder = Path(open_store(runtime).localize(ref))
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".parquet", ".safetensors")}


@dataclass
class KillOne:
    """Kills a worker as soon as the first shard is there, if it is to."""

    runner: str
    dies: bool = True
    is_done: bool = False
    seen: list[int] = field(default_factory=list)

    def __call__(self, done: int, total: int) -> None:
        self.seen.append(done)
        if done and not self.is_done:
            worker = working(self.runner)[0].pid
            if self.dies:
                os.kill(worker, signal.SIGKILL)
            self.is_done = True


def working(runner: str) -> list[psutil.Process]:
    """Processes below this one that have a model loaded; a pool's come before those that they start themselves."""
    found, level = [], [psutil.Process()]
    while level:
        level = [child for process in level for child in process.children()]
        for process in level:
            try:
                is_worker = WORKERS[runner] in " ".join(process.cmdline())
                if runner != "ray":  # not the one that they are forked off
                    is_worker &= process.ppid() != os.getpid()
                if is_worker and process.memory_info().rss > 300 * 2**20:
                    found.append(process)
            except psutil.Error:
                continue
    return found


def test_threads_make_what_one_does(tiny_config: PipelineConfig, runtime: RuntimeConfig, tmp_path: Path) -> None:
    """Each with readers and judges of its own: tokenizers and what a judge remembers of a batch are not shared."""
    alone = runtime.model_copy(update={"root": str(tmp_path / "alone")})
    threads = runtime.model_copy(update={"runner": "threads", "n_workers": 2})
    made = {}
    for how in (threads, alone):
        prompts, sample = draw(tiny_config, how)
        refs = [stage(prompts, sample, config=tiny_config, runtime=how) for stage in STAGES.values()]
        made[how.runner] = {ref: files(how, ref) for ref in (sample, *refs)}
    assert made["threads"] == made["inline"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("runner", ["processes", *CLUSTERS])
def test_a_worker_killed_in_the_middle_of_a_sample_costs_nothing(
    tiny_config: PipelineConfig, runtime: RuntimeConfig, tmp_path: Path, runner: str
) -> None:
    alone = runtime.model_copy(update={"root": str(tmp_path / "alone")})
    many = runtime.model_copy(update={"runner": runner, "n_workers": 2})
    kill = KillOne(runner)
    _, ref = draw(tiny_config, many, kill)
    assert kill.is_done
    assert draw(tiny_config, alone)[1] == ref
    assert files(many, ref) == files(alone, ref)
    # 28 images in seven shards, each handed in once
    assert sorted(kill.seen) == [0, *range(4, 29, 4)]


@dataclass(frozen=True)
class Looked:
    """A sample, classifiers and scorers that are files, as worker processes read them, and stores with the sample."""

    config: PipelineConfig
    prompts: ArtifactRef
    sample: ArtifactRef
    runtime: RuntimeConfig

    def store(self, name: str, **changes: Any) -> RuntimeConfig:
        """The runtime of a store of its own."""
        root = f"{self.runtime.root}-{name}"
        shutil.copytree(self.runtime.root, root)
        return self.runtime.model_copy(update={"root": root, **changes})

    def run(self, stage: str, runtime: RuntimeConfig, on_progress: Any = lambda done, total: None) -> ArtifactRef:
        make = STAGES[stage]
        return make(self.prompts, self.sample, config=self.config, runtime=runtime, on_progress=on_progress)


@pytest.fixture
def looked(tiny_config: PipelineConfig, runtime: RuntimeConfig, tmp_path: Path) -> Looked:
    prompts, sample = draw(tiny_config, runtime)
    folder = tmp_path / "files"
    folder.mkdir()
    document = tiny_config.model_dump(exclude_none=True)
    ids = open_store(runtime).read_table(sample, "images", ["image_id"])["image_id"]
    document["attributes"] |= voters(folder, ids.tolist())
    document["evaluation"]["scorers"] = scorers(folder)
    return Looked(PipelineConfig.model_validate(document), prompts, sample, runtime)


def voters(folder: Path, image_ids: list[str]) -> dict[str, Any]:
    """A network that goes by the mean colour, and people who go by the id."""
    gender = {"male": "male", "female": "female"}
    weights = np.array([[9.0, 0.0], [0.0, 9.0], [0.0, 0.0]])
    network = write_colour_network(folder / "net.onnx", weights, [0.0, 0.0], (8, 8))
    said = ["male" if int(name[-1], 16) % 2 else "female" for name in image_ids]
    table = pd.DataFrame({"image_id": image_ids, "axis": "gender", "class": said})
    table.to_csv(folder / "people.csv", index=False)
    described = {
        "net": {"kind": "onnx", "path": str(network), "labels": list(gender), "axes": {"gender": gender}},
        "crowd": {"kind": "people", "path": str(folder / "people.csv"), "axes": {"gender": list(gender)}},
    }
    return {"classifier": ["net", "crowd"], "detector_backend": "skip", "classifiers": described}


def scorers(folder: Path) -> dict[str, Any]:
    save_clip_folder(folder / "clip")
    torch.save({"state_dict": open_clip_state()}, folder / "hps.pt")
    torch.save(aesthetic_state(), folder / "head.pth")
    torch.save(reward_state(), folder / "ImageReward.pt")
    clip, words = str(folder / "clip"), str(clip_tokenizer(folder / "words"))
    pieces = str(bert_tokenizer(folder / "pieces"))
    return {
        "clip_score": {"kind": "clip", "path": clip},
        "aesthetics": {"kind": "aesthetics", "path": str(folder / "head.pth"), "clip": clip},
        "hps": {"kind": "hps", "path": str(folder / "hps.pt"), "tokenizer": words},
        "image_reward": {"kind": "image-reward", "path": str(folder / "ImageReward.pt"), "tokenizer": pieces},
        "pick_score": {"kind": "pick-score", "path": str(folder / "nowhere")},
    }


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("runner", "dies"), [("processes", False), *[pytest.param(name, True, marks=pytest.mark.slow) for name in WORKERS]]
)
@pytest.mark.parametrize("stage", STAGES)
def test_two_workers_see_what_one_does_even_when_one_is_killed(
    looked: Looked, stage: str, runner: str, dies: bool
) -> None:
    alone, many = looked.store("alone"), looked.store("many", runner=runner, n_workers=2)
    watch = KillOne(runner, dies)
    ref = looked.run(stage, many, watch)
    assert watch.is_done
    assert sorted(watch.seen) == [0, *range(4, 29, 4)]  # 28 images in seven shards, each handed in once
    assert looked.run(stage, alone) == ref
    expected = files(alone, ref)
    assert files(many, ref) == expected
    if stage == "scores":
        assert {f"features-{number:05d}.safetensors" for number in range(7)} < set(expected)
        assert list(read_unmeasured(open_store(many), ref)) == ["pick_score"]
    else:
        votes = open_store(many).read_table(ref, "agreement").set_index("axis").loc["gender"]
        assert votes["n_agreed"] + votes["n_disagreed"] == 24
        assert votes["n_agreed"] > 0
        assert votes["n_disagreed"] > 0


DRIVER = """
import os, signal, sys
from popalign_core.config import PipelineConfig, RuntimeConfig
from storage.store import ArtifactRef
from tasks.stages.attributes import read_attributes
from tasks.stages.scores import score_images

def die(done, total):
    if done >= 8:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    stage, prompts, sample, config, runtime = sys.argv[1:]
    {"attributes": read_attributes, "scores": score_images}[stage](
        ArtifactRef(*prompts.split("/")),
        ArtifactRef(*sample.split("/")),
        config=PipelineConfig.model_validate_json(config),
        runtime=RuntimeConfig.model_validate_json(runtime),
        on_progress=die,
    )
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", [pytest.param("attributes", marks=pytest.mark.slow), "scores"])
def test_a_killed_coordinator_goes_on_where_it_was(looked: Looked, stage: str, tmp_path: Path) -> None:
    alone, many = looked.store("alone"), looked.store("many", runner="processes")
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    documents = looked.config.model_dump_json(exclude_none=True), many.model_dump_json()
    arguments = [stage, str(looked.prompts), str(looked.sample), *documents]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PREFECT_API_URL": PREFECT_API_URL.value()}
    ended = subprocess.run([sys.executable, str(script), *arguments], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    seen: list[int] = []
    inline = many.model_copy(update={"runner": "inline", "n_workers": 1})
    ref = looked.run(stage, inline, lambda done, total: seen.append(done))
    assert seen[0] == 8, "two shards were done, and are not done again"
    assert looked.run(stage, alone) == ref
    assert files(many, ref) == files(alone, ref)


@pytest.mark.timeout(300)
def test_a_score_that_is_not_finite_reaches_the_user_from_a_worker(looked: Looked, tmp_path: Path) -> None:
    state = aesthetic_state()
    state["layers.7.bias"][:] = torch.nan
    torch.save(state, tmp_path / "files" / "head.pth")
    many = looked.store("many", runner="processes", n_workers=2)
    with pytest.raises(InputError, match=r"^\[scores/scores-v3-\w+\] scorer 'aesthetics' gave 4 of 4 images no fin"):
        looked.run("scores", many)


@pytest.mark.timeout(300)
def test_a_classifier_that_cannot_be_read_reaches_the_user_from_a_worker(looked: Looked, tmp_path: Path) -> None:
    (tmp_path / "files" / "net.onnx").write_bytes(b"html, as of a failed download")
    threads = looked.store("many", runner="threads", n_workers=2)
    with pytest.raises(InputError, match=r"^\[attributes/attributes-v1-\w+\] .*net\.onnx cannot be read as ONNX"):
        looked.run("attributes", threads)
