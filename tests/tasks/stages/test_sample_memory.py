"""Memory is flat in the number of images: 10,000 of them through a budget of 1 GiB, torch and all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = r"""
import json, re, sys
from popalign_core.config import Axis, EvaluationConfig, ModelConfig, PipelineConfig, PromptsConfig, RuntimeConfig
from popalign_core.config import SamplingConfig
from tasks.stages.identities import add_identities
from tasks.stages.prompts import write_prompts
from tasks.stages.sample import sample_images
from tasks.common.stage_object import open_store

config = PipelineConfig(
    model=ModelConfig(name=sys.argv[1]),
    axes=(Axis(name="gender", classes=("male", "female")),),
    prompts=PromptsConfig(eval_subjects=("judge", "dancer"), train_subjects=("nurse",), retained_subjects=("moon",)),
    sampling=SamplingConfig(n_steps=1),
    evaluation=EvaluationConfig(n_neutral=4998, n_specific=1),
)
runtime = RuntimeConfig(root=sys.argv[2], device="cpu", n_threads=1)
prompts = add_identities(write_prompts(config=config, runtime=runtime), config=config, runtime=runtime)
used = {}

def note(done, total):
    # getrusage's peak would be that of the process that forked this one, if it was larger
    used[done] = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024

ref = sample_images(prompts, purpose="evaluation", config=config, runtime=runtime, on_progress=note)
n_images = open_store(runtime).manifest(ref).rows["images"]
print(json.dumps({"n": n_images, "early_mib": used[1024], "mib": max(used.values())}))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_thousand_images_fit_into_a_gibibyte(tiny_weights: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny_weights / "pipeline"), str(tmp_path / "store")],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["n"] == 10_000
    assert found["mib"] < 1024
    assert found["mib"] - found["early_mib"] < 64
