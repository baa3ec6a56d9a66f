"""How many images a step will process; an estimate while prompts are still to be written."""

from collections.abc import Iterable, Mapping
from math import prod

from flows.plan.steps import Step, pipeline_steps
from popalign_core.config import PipelineConfig
from tasks.common.prompt_lists import count_listed, read_benchmarks
from tasks.stages import attributes, sample, scores, train


def expected_images(step: Step, config: PipelineConfig) -> int:
    """Images that a step samples, reads or scores; 0 for steps that see none."""
    name = step.node.partition(":")[0]
    if step.stage not in (sample.sample_images, attributes.read_attributes, scores.score_images):
        return 0
    purpose: sample.Purpose = "preferences" if name in ("sample", "attributes") else "evaluation"
    if "-round" in name:
        purpose = "round"
    counts = sample.n_images(config, purpose)
    written, listed = config.prompts, count_listed(config.prompts)
    people = len(written.eval_subjects) + listed["eval_lists"]
    things = len(written.generic_subjects) + listed["generic_lists"]
    if purpose != "evaluation":
        given = len(written.train_subjects) + listed["train_lists"]
        people = written.n_train if written.source == "llm" else given
        things = len(written.retained_subjects) + listed["retained_lists"]
    people_only = name.startswith("attributes")
    cells = prod(len(axis.classes) for axis in config.identity_axes)
    total = people * (counts["neutral"] + cells * counts.get("specific", 0)) + (
        0 if people_only else things * counts.get("generic", 0)
    )
    return total + (_expected_of_benchmarks(config, counts, people_only) if purpose == "evaluation" else 0)


def expected_work(config: PipelineConfig, steps: Iterable[Step] | None = None) -> tuple[int, int]:
    """Images that some steps sample when nothing is in the store, and training steps; looks at no weights.

    Args:
        config: Of the run; a step with its own has that.
        steps: Which; all of a run's if None.

    Raises:
        InputError: When a prompt list cannot be read.
    """
    n_images = n_steps = 0
    for step in pipeline_steps(config) if steps is None else steps:
        own = step.config or config
        n_images += expected_images(step, own) if step.stage is sample.sample_images else 0
        n_steps += own.training.n_steps if step.stage is train.train_model else 0
    return n_images, n_steps


def _expected_of_benchmarks(config: PipelineConfig, counts: Mapping[str, int], people_only: bool) -> int:
    """Images of the benchmarks with names of their own."""
    total = 0
    for name, part in read_benchmarks(config.prompts.benchmarks).items():
        kind = config.prompts.benchmarks[name].kind
        cells = prod(len(axis.classes) for axis in config.measured_axes(name)) if kind == "specific" else 1
        total += 0 if people_only and kind == "generic" else len(part.texts) * cells * counts[name]
    return total
