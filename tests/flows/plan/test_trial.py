"""A trial says how long a run takes, also where sampling is slowed; it touches no store and no key."""

import time
from pathlib import Path
from typing import Any

import pytest

from flows.plan.costs import estimate_costs
from flows.plan.execution import call_directly, run_plan
from flows.plan.planning import PlannedNode, plan_run
from flows.plan.trial import N_STEPS, reduce_config, reduce_runtime, run_trial
from popalign_core.config import LLMConfig, PipelineConfig, RuntimeConfig
from popalign_core.config.presets import PRESETS, preset
from popalign_core.errors import MissingWeightsError
from popalign_core.sampling import engine
from storage.store import ArtifactRef
from tasks.common.kept_speeds import find_rate, read_kept, stage_speed
from tasks.stages import sample_layouts

SECONDS_AN_IMAGE = 0.1


@pytest.fixture(autouse=True)
def no_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own, and no more rounds of trying than there must be."""
    monkeypatch.setenv("POPALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sample_layouts, "LIMIT_S", 0.0)


@pytest.fixture
def slow_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler that takes so long that nothing else counts: the machine's noise neither."""
    sample_images = engine.sample_images

    def slowly(*inputs: Any, **named: Any) -> Any:
        pixels, latents = sample_images(*inputs, **named)
        time.sleep(SECONDS_AN_IMAGE * len(pixels))
        return pixels, latents

    monkeypatch.setattr(engine, "sample_images", slowly)


def test_the_estimate_holds_where_sampling_is_slow(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, slow_sampler: None
) -> None:
    run_trial(tiny_config, tiny_runtime)
    assert not Path(tiny_runtime.root).exists()
    planned = plan_run(tiny_config, tiny_runtime)
    costs = estimate_costs(planned, tiny_runtime)
    # what random images show may be too little for sets
    assert {node for node, cost in costs.items() if cost.seconds is None} <= {"preferences"}
    seconds, direct = dict[str, float](), call_directly()

    def call(node: PlannedNode, runtime: RuntimeConfig) -> ArtifactRef:
        start = time.perf_counter()
        ref = direct(node, runtime)
        seconds[node.node] = time.perf_counter() - start
        return ref

    run_plan(planned, tiny_runtime, call)
    sampled = [node for node in seconds if node.startswith("sample")]
    expected = sum(costs[node].seconds or 0 for node in sampled)
    assert expected == pytest.approx(sum(seconds[node] for node in sampled), rel=0.25)
    assert expected > (40 + 28 + 28) * SECONDS_AN_IMAGE


def test_a_trial_keeps_rates_of_the_run_and_a_layout_and_changes_no_key(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    before = plan_run(tiny_config, tiny_runtime).refs
    told: list[str] = []
    run_trial(tiny_config, tiny_runtime, lambda node, done, total: told.append(node))
    assert plan_run(tiny_config, tiny_runtime).refs == before
    for stage in ("sample", "attributes", "scores", "train"):
        rate = find_rate(stage_speed(stage, tiny_config, tiny_runtime))
        assert rate is not None, stage
        assert rate.unit_s > 0
        assert rate.first_s is not None
    (layout,) = read_kept()["layouts"].values()
    assert layout["value"]["batch_size"] in (4, 2, 1)
    assert layout["about"]["size"] == [64, 64]
    assert {"sample", "train", "report"} <= set(told)


def test_what_a_run_saw_of_cheap_stages_outlives_a_trial(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    run_plan(plan_run(tiny_config, tiny_runtime, target="calibration"), tiny_runtime, call_directly())
    speed = stage_speed("calibration", tiny_config, tiny_runtime)
    seen = find_rate(speed)
    run_trial(tiny_config, tiny_runtime)
    assert find_rate(speed) == seen is not None


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_trial_is_small_and_asks_no_service(name: str, tmp_path: Path) -> None:
    config = preset(name)
    llm = config.prompts.model_copy(update={"source": "llm", "n_train": 500, "llm": LLMConfig()})
    runtime = RuntimeConfig(root="s3://bucket/store")
    small = reduce_config(config.model_copy(update={"prompts": llm}), runtime)
    here = reduce_runtime(config, runtime, tmp_path)
    pixels = config.sampling.width * config.sampling.height
    assert here.batch_size == {64**2: 32, 512**2: 32, 1024**2: 8}[pixels]
    assert (small.prompts.source, small.training.n_steps) == ("grammar", N_STEPS)
    assert small.preferences.n_neutral == small.evaluation.n_neutral == 2 * here.batch_size
    assert here.root == str(tmp_path / "store")
    assert (small.model, small.sampling, small.attributes) == (config.model, config.sampling, config.attributes)


def test_a_model_that_is_not_there_is_told(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    gone = tiny_config.model_copy(update={"model": tiny_config.model.model_copy(update={"name": "no/where/at/all"})})
    with pytest.raises(MissingWeightsError, match="no/where/at/all"):
        run_trial(gone, tiny_runtime)
