"""A trial: every stage on a handful of prompts, in a store of its own, to see how fast this machine is at each."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from flows.plan.costs import keep_seen
from flows.plan.execution import OnProgress, make, tell_of
from flows.plan.planning import Plan, plan_keys
from flows.plan.steps import PROMPT_STEPS, REPORT_STEP, Step, evaluation_steps, training_steps
from popalign_core.config import PipelineConfig, PromptsConfig, RuntimeConfig
from popalign_core.errors import PopAlignError
from tasks.common.kept_speeds import find_rate, stage_speed
from tasks.common.stage_object import open_store
from tasks.common.stopwatch import Stopwatch
from tasks.stages import attributes, sample, scores, train, trial_sets

if TYPE_CHECKING:
    from popalign_core.sampling.layouts import Layout

N_STEPS = 8
"""Training steps of a trial."""
_PIXELS = 8 * 1024**2
"""Of a batch, at most: large images gain nothing from larger batches, and a trial is to take seconds."""
_MEASURED = (sample.sample_images, attributes.read_attributes, scores.score_images, train.train_model)
"""Stages whose failure is told; of the others it is not known then how long they take."""


def run_trial(config: PipelineConfig, runtime: RuntimeConfig, on_progress: OnProgress | None = None) -> "Layout | None":
    """Sample, read, score and train for a few seconds; keep each stage's rate, and which layout samples fastest.

    Nothing is written into the store of the runtime, no service is called, and no key depends on what is found.

    Args:
        config: Of the run whose rates are wanted.
        runtime: Of this machine.
        on_progress: Told how far each node is.

    Returns:
        The layout in which this machine samples fastest; None where `runtime` decides that.

    Raises:
        PopAlignError: What sampling, reading, scoring or training has against the configuration or this machine.
    """
    with TemporaryDirectory(prefix="popalign-trial-", dir=runtime.scratch) as folder:
        small, here = reduce_config(config, runtime), reduce_runtime(config, runtime, Path(folder))
        plan, seen, layout = plan_keys(small, here, _trial_steps(small)), set[str](), None
        for node in plan:
            if node.node == "sample-eval:base":  # the rate that counts is that of the layout found
                layout = _choose_layout(plan, small, runtime, here)
            watch = Stopwatch(tell_of(on_progress, node))
            try:
                make(node, here, watch)
            except PopAlignError:
                if node.step.stage in _MEASURED:
                    raise
                continue
            stage = node.step.stage.name
            if node.step.stage in _MEASURED or not _is_known(stage, config, runtime):
                keep_seen(replace(node, config=config), runtime, watch, open_store(here), is_first=stage not in seen)
            seen.add(stage)
    return layout


def _is_known(stage: str, config: PipelineConfig, runtime: RuntimeConfig) -> bool:
    """Whether a run has seen a cheap stage at its real work, or a language model would do it, which a trial spares."""
    is_paid = stage == "prompts" and config.prompts.source == "llm"
    return is_paid or find_rate(stage_speed(stage, config, runtime)) is not None


def _choose_layout(plan: Plan, small: PipelineConfig, runtime: RuntimeConfig, here: RuntimeConfig) -> "Layout | None":
    from tasks.stages.sample_layouts import choose_layout

    if runtime.channels_last != "auto" or runtime.offload:
        return None
    return choose_layout(plan.refs["sample"], small, runtime, here)


def reduce_config(config: PipelineConfig, runtime: RuntimeConfig) -> PipelineConfig:
    """The same model, sampler, classifier, scorers and objective, on one subject of each kind and few steps."""
    n_images = 2 * _batch_size(config, runtime) * runtime.n_workers
    retained = ("moon",) if config.prompts.retained_subjects or config.prompts.retained_lists else ()
    prompts = PromptsConfig(
        carrier=config.prompts.carrier,
        train_subjects=("doctor",),
        eval_subjects=("judge",),
        generic_subjects=("tree", "cat"),
        retained_subjects=retained,
    )
    preferences = {"n_neutral": n_images, "n_specific": 1, "n_retained": 1, "set_size": 4, "n_sets": 1}
    training = {"n_steps": N_STEPS, "n_warmup_steps": 1, "checkpoint_every": N_STEPS, "probe": None, "rounds": 1}
    evaluation = {"n_neutral": n_images, "n_specific": 1, "n_generic": 1}
    return config.model_copy(
        update={
            "prompts": prompts,
            "preferences": config.preferences.model_copy(
                update={**preferences, "strategy": "balanced", "curated": None}
            ),
            # a handful of random images is no reason to stop
            "training": config.training.model_copy(update={**training, "max_error_ratio": 1e9}),
            "evaluation": config.evaluation.model_copy(update=evaluation),
        }
    )


def reduce_runtime(config: PipelineConfig, runtime: RuntimeConfig, folder: Path) -> RuntimeConfig:
    """The same machine with a store below a folder, no trackers, and batches that take seconds."""
    size = _batch_size(config, runtime)
    shard_size = runtime.shard_size if runtime.runner == "inline" else size
    update = {"root": str(folder / "store"), "batch_size": size, "shard_size": shard_size, "trackers": ()}
    return runtime.model_copy(update=update)


def _batch_size(config: PipelineConfig, runtime: RuntimeConfig) -> int:
    pixels = config.sampling.width * config.sampling.height
    return max(1, min(runtime.batch_size, _PIXELS // pixels))


def _trial_steps(small: PipelineConfig) -> tuple[Step, ...]:
    """A run's steps, but that it trains on any pair of sets, and measures the base model in the place of both."""
    base = evaluation_steps("base", calibration="calibration")
    again = replace(base[-1], node="evaluate:aligned", options={"system": "aligned"})
    inputs = {name: _of_base(node) for name, node in REPORT_STEP.inputs.items()} | {"preferences": "pairs"}
    report = replace(REPORT_STEP, inputs=inputs)
    return (*PROMPT_STEPS, *_training_steps(small), *base, again, report)


def _training_steps(small: PipelineConfig) -> Iterator[Step]:
    for step in training_steps(small):
        if step.stage is train.train_model:
            yield Step("pairs", trial_sets.pair_images, {"prompts": "identities", "sample": "sample"})
            step = replace(step, inputs={**step.inputs, "preferences": "pairs"})
        yield step


def _of_base(node: str) -> str:
    return node if node.startswith("evaluate") else node.replace(":aligned", ":base")
