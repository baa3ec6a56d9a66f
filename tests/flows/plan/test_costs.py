"""What a plan costs: by rates worked out by hand, and by what a run was seen to do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from flows.plan.costs import Cost, estimate_costs, keep_seen
from flows.plan.execution import call_directly, run_plan
from flows.plan.planning import plan_run
from flows.plan.steps import needed_for
from popalign_core.config import LLMConfig, PipelineConfig, RuntimeConfig
from popalign_core.models.weight_sizes import training_size
from tasks.common.kept_speeds import Rate, find_rate, keep_rate, read_kept, stage_speed
from tasks.common.stage_object import open_store
from tasks.common.stopwatch import Stopwatch

ADAPTED = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")


@pytest.fixture(autouse=True)
def no_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPALIGN_CACHE", str(tmp_path / "cache"))


def test_the_first_of_a_process_loads_more_than_the_next(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    """40 images at .5 s each with 10 s around them, then twice 28 with 2 s; 4 steps at 3 s with 7 s."""
    keep_rate(stage_speed("sample", tiny_config, tiny_runtime), Rate(10, 2, 0.5, unit_bytes=100))
    keep_rate(stage_speed("train", tiny_config, tiny_runtime), Rate(7, None, 3, fixed_bytes=5000))
    costs = estimate_costs(plan_run(tiny_config, tiny_runtime), tiny_runtime)
    assert costs["sample"] == Cost(10 + 40 * 0.5, 4000)
    assert costs["sample-eval:base"] == costs["sample-eval:aligned"] == Cost(2 + 28 * 0.5, 2800)
    assert costs["train"] == Cost(7 + 4 * 3, 5000)
    assert costs["evaluate:base"] == Cost(None)


def test_without_a_rate_images_still_take_room(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    costs = estimate_costs(plan_run(tiny_config, tiny_runtime), tiny_runtime)
    assert costs["sample"] == Cost(None, 40 * 64 * 64 * 2)
    assert costs["attributes"] == Cost(None, 0)
    # trained whole, the denoiser once: the run's folder shares it; of an adapter the artifact has the two matrices of
    # each layer, and the folder what they are merged into
    n_weights = sum(weight.numel() for weight in load_file(unet_file(tiny_config)).values())
    assert costs["train"] == Cost(None, 4 * n_weights)
    adapted = tiny_config.model_copy(update={"training": tiny_config.training.model_copy(update={"lora_rank": 2})})
    shapes = [w.shape for name, w in load_file(unet_file(tiny_config)).items() if name.endswith(ADAPTED)]
    assert len(shapes) > 8
    n_adapted = sum(2 * (n_out + n_in) for n_out, n_in in shapes)
    expected = Cost(None, 4 * n_adapted + 4 * n_weights)
    assert estimate_costs(plan_run(adapted, tiny_runtime), tiny_runtime)["train"] == expected


def unet_file(config: PipelineConfig) -> Path:
    return Path(config.model.name) / "unet" / "diffusion_pytorch_model.safetensors"


def test_what_a_training_was_said_to_take_it_takes(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    """But for the headers of files, the card and the log."""
    training = tiny_config.training.model_copy(update={"lora_rank": 64, "n_steps": 2})
    config = tiny_config.model_copy(update={"training": training})
    planned = plan_run(config, tiny_runtime, needed_for("train"))
    said = training_size(config.model, training)
    refs = run_plan(planned, tiny_runtime, call_directly())
    files = open_store(tiny_runtime).manifest(refs["train"]).files
    assert said.artifact == pytest.approx(files["lora/pytorch_lora_weights.safetensors"].bytes, rel=0.05)


def test_calls_that_are_paid_for_are_counted(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    """60 subjects on two themes are 30 each: two calls of up to 25 a theme. The budget ends it at three."""
    for max_calls, n_calls in ((100, 4), (3, 3)):
        llm = LLMConfig(themes=("law", "sport"), max_calls=max_calls)
        update = {"source": "llm", "n_train": 60, "llm": llm, "train_subjects": ()}
        asked = tiny_config.model_copy(update={"prompts": tiny_config.prompts.model_copy(update=update)})
        costs = estimate_costs(plan_run(asked, tiny_runtime), tiny_runtime)
        assert {node: cost.n_calls for node, cost in costs.items() if cost.n_calls} == {"prompts": n_calls}


def test_a_run_leaves_its_rates_and_a_hit_does_not(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    planned = plan_run(tiny_config, tiny_runtime, needed_for("attributes"))
    run_plan(planned, tiny_runtime, call_directly())
    found = find_rate(stage_speed("sample", tiny_config, tiny_runtime))
    assert found is not None
    assert found.first_s is not None
    assert (found.again_s, found.unit_s > 0, found.unit_bytes > 0) == (None, True, True)
    kept = read_kept()
    assert sorted(entry["about"]["stage"] for entry in kept["rates"].values()) == [
        *("attributes", "identities", "prompts", "sample")
    ]
    again = plan_run(tiny_config, tiny_runtime, needed_for("attributes"))
    run_plan(again, tiny_runtime, call_directly())
    assert read_kept() == kept
    assert estimate_costs(again, tiny_runtime) == {}


def test_what_was_seen_in_one_piece_takes_the_rate_that_is_known(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, finished: None
) -> None:
    """40 images in 50 s: at 1 s each, 10 s are around them."""
    node = next(each for each in plan_run(tiny_config, tiny_runtime) if each.node == "sample")
    now, speed = [0.0], stage_speed("sample", tiny_config, tiny_runtime)
    for known, rate in ((None, Rate(0, None, 50 / 40)), (Rate(3, 4, 1.0), Rate(10, 4, 1.0))):
        if known is not None:
            keep_rate(speed, known)
        now[0] = 0.0
        watch = Stopwatch(clock=lambda: now[0])
        now[0] = 50.0
        watch(0, 40)
        watch(40, 40)
        keep_seen(node, tiny_runtime, watch, open_store(tiny_runtime), is_first=True)
        found = find_rate(speed)
        assert found is not None
        assert (found.first_s, found.again_s, found.unit_s) == (rate.first_s, rate.again_s, rate.unit_s)


def test_a_plan_with_its_costs_imports_no_torch(tiny_config: PipelineConfig, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(tiny_config.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    words = ["plan", "--config", str(file), "--root", str(tmp_path / "store"), "--set", "runtime.device=cpu"]
    code = (
        "import sys\nfrom flows.cli.app import app\n"
        f"app({words!r}, standalone_mode=False)\n"
        "print([name for name in ('torch', 'prefect', 'diffusers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "`popalign plan --measure` measures them" in result.stdout
