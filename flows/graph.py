"""The table of stages, and the plan: each node's key, hit or miss, and how much work it is. Imports no torch."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import ConfigError
from storage.store import ArtifactRef
from tasks import (
    attributes,
    benchmarks,
    calibration,
    evaluate,
    identities,
    preferences,
    prompts,
    report,
    sample,
    scores,
    train,
)
from tasks.prompt_lists import count_listed, read_benchmarks
from tasks.stage import Request, open_store, reference

OnProgress = Callable[[str, int, int], None]
"""Called with (node, done, total); done == total at once for a node that is a hit."""


@dataclass(frozen=True)
class Step:
    """A stage at its place in a flow.

    Attributes:
        node: Name of the place, such as `sample` or `evaluate:base`.
        run: The stage's function.
        request: What the stage's key depends on.
        inputs: Parameter of the stage -> node whose artifact it takes.
        options: Further arguments of the stage.
        config: Of a system that changes the run's configuration; None for the run's own.
    """

    node: str
    run: Callable[..., ArtifactRef]
    request: Callable[..., Request | ArtifactRef]
    inputs: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    config: PipelineConfig | None = None

    def arguments(self, refs: Mapping[str, ArtifactRef]) -> dict[str, Any]:
        """The stage's arguments besides configuration and runtime."""
        return {name: refs[node] for name, node in self.inputs.items()} | dict(self.options)


Call = Callable[[Step, dict[str, Any]], ArtifactRef]
"""How a step's function is called: directly, or as a Prefect task."""


def statistics_steps(system: str, model: str | None = None) -> tuple[Step, ...]:
    """The three costly steps of measuring one system; `model` is a trained model's node, None the configured one."""
    images, faces, marks = f"sample-eval:{system}", f"attributes-eval:{system}", f"scores:{system}"
    source = {"prompts": "benchmarks"} | ({"model": model} if model else {})
    measured = {"prompts": "benchmarks", "sample": images}
    return (
        Step(images, sample.sample_images, sample.request, source, {"purpose": "evaluation"}),
        Step(faces, attributes.read_attributes, attributes.request, measured),
        Step(marks, scores.score_images, scores.request, measured),
    )


def evaluation_steps(system: str, model: str | None = None, calibration: str | None = None) -> tuple[Step, ...]:
    """The four steps that measure one system.

    Args:
        system: Its name.
        model: Node of a trained model; None for the configured one.
        calibration: Node of the classifier's calibration; without it no share is corrected.
    """
    inputs = {
        "prompts": "benchmarks",
        "sample": f"sample-eval:{system}",
        "attributes": f"attributes-eval:{system}",
        "scores": f"scores:{system}",
    } | ({"calibration": calibration} if calibration else {})
    measure = Step(f"evaluate:{system}", evaluate.evaluate_system, evaluate.request, inputs, {"system": system})
    return (*statistics_steps(system, model), measure)


PROMPT_STEPS = (
    Step("prompts", prompts.write_prompts, prompts.request),
    Step("identities", identities.add_identities, identities.request, {"prompts": "prompts"}),
    Step("benchmarks", benchmarks.add_benchmarks, benchmarks.request, {"prompts": "identities"}),
)
TRAINING_STEPS = (
    Step("sample", sample.sample_images, sample.request, {"prompts": "identities"}, {"purpose": "preferences"}),
    Step("attributes", attributes.read_attributes, attributes.request, {"prompts": "identities", "sample": "sample"}),
    # On training images: they are drawn and read anyway, and no image both calibrates and is judged.
    Step(
        "calibration",
        calibration.calibrate_classifier,
        calibration.request,
        {"prompts": "identities", "sample": "sample", "attributes": "attributes"},
    ),
    Step(
        "preferences",
        preferences.build_preferences,
        preferences.request,
        {"prompts": "identities", "sample": "sample", "attributes": "attributes"},
    ),
    Step(
        "train",
        train.train_model,
        train.request,
        {"preferences": "preferences", "sample": "sample", "prompts": "identities", "attributes": "attributes"},
    ),
)
REPORT_STEP = Step(
    "report",
    report.write_report,
    report.request,
    {
        "prompts": "benchmarks",
        "attributes": "attributes",
        "preferences": "preferences",
        "train": "train",
        "calibration": "calibration",
    }
    | {
        f"{side}_{part}": f"{node}:{side}"
        for side in ("base", "aligned")
        for part, node in (
            ("sample", "sample-eval"),
            ("attributes", "attributes-eval"),
            ("scores", "scores"),
            ("metrics", "evaluate"),
        )
    },
)
PIPELINE = (
    *PROMPT_STEPS,
    *TRAINING_STEPS,
    *evaluation_steps("base", calibration="calibration"),
    *evaluation_steps("aligned", model="train", calibration="calibration"),
    REPORT_STEP,
)

PAIRS_STEP = Step(
    "train", train.train_model, train.request, {"preferences": "pairs", "sample": "pairs", "prompts": "pairs"}
)
"""Training on imported pairs; they are no node of a flow, but given."""


@dataclass(frozen=True)
class PlannedNode:
    """What a run would do at one node.

    Attributes:
        node: Name of the node.
        ref: Stage and key of its artifact.
        is_hit: Whether it is published already.
        n_images: Images to draw, read or score; an estimate while prompts are still to be written.
        n_steps: Training steps.
    """

    node: str
    ref: ArtifactRef
    is_hit: bool
    n_images: int = 0
    n_steps: int = 0


def plan(
    config: PipelineConfig,
    runtime: RuntimeConfig,
    steps: Iterable[Step] = PIPELINE,
    given: Mapping[str, ArtifactRef] | None = None,
) -> list[PlannedNode]:
    """Every node's key, hit or miss and work, in the order of execution; runs nothing.

    Args:
        config: Of the pipeline.
        runtime: Which store.
        steps: Which nodes.
        given: Artifacts that stand for nodes outside `steps`.

    Raises:
        MissingWeightsError: When the base model, whose hash is part of the keys, is not there.
        StoreError: When the store cannot be opened.
    """
    store, nodes = open_store(runtime), list[PlannedNode]()
    for step, ref in references(config, runtime, steps, given):
        if any(node.ref == ref and node.node in step.inputs.values() for node in nodes):
            continue  # has nothing to do
        own = step.config or config
        work = {
            "n_images": expected_images(step, own),
            "n_steps": own.training.n_steps if step.run is train.train_model else 0,
        }
        nodes.append(PlannedNode(step.node, ref, store.is_published(ref), **work))
    return nodes


def references(
    config: PipelineConfig,
    runtime: RuntimeConfig,
    steps: Iterable[Step],
    given: Mapping[str, ArtifactRef] | None = None,
) -> list[tuple[Step, ArtifactRef]]:
    """Each step with where its artifact is or will be, in order.

    Raises:
        ConfigError: When a training that is still to be done has settings that do not fit.
    """
    store, refs, found = open_store(runtime), dict(given or {}), []
    for step in steps:
        own = step.config or config
        refs[step.node] = reference(store, step.request(own, **step.arguments(refs)))
        found.append((step, refs[step.node]))
        if step.run is train.train_model and not store.is_published(refs[step.node]):
            train.check_settings(own, runtime)
    return found


def expected_images(step: Step, config: PipelineConfig) -> int:
    """Images that a step draws, reads or scores; 0 for steps that see none."""
    name = step.node.partition(":")[0]
    if name not in ("sample", "attributes", "sample-eval", "attributes-eval", "attributes-second", "scores"):
        return 0
    purpose: sample.Purpose = "preferences" if name in ("sample", "attributes") else "evaluation"
    counts = sample.n_images(config, purpose)
    written, listed = config.prompts, count_listed(config.prompts)
    people = len(written.eval_subjects) + listed["eval_lists"]
    things = len(written.generic_subjects) + listed["generic_lists"]
    if purpose == "preferences":
        given = len(written.train_subjects) + listed["train_lists"]
        people = written.n_train if written.source == "llm" else given
        things = len(written.retained_subjects) + listed["retained_lists"]
    people_only = name.startswith("attributes")
    cells = prod(len(axis.classes) for axis in config.identity_axes)
    total = people * (counts["neutral"] + cells * counts["specific"]) + (
        0 if people_only else things * counts["generic"]
    )
    return total + (0 if purpose == "preferences" else _expected_of_benchmarks(config, counts, people_only))


def _expected_of_benchmarks(config: PipelineConfig, counts: Mapping[str, int], people_only: bool) -> int:
    """Images of the benchmarks with names of their own."""
    total = 0
    for name, part in read_benchmarks(config.prompts).items():
        kind = config.prompts.benchmarks[name].kind
        cells = prod(len(axis.classes) for axis in config.measured_axes(name)) if kind == "specific" else 1
        total += 0 if people_only and kind == "generic" else len(part.texts) * cells * counts[name]
    return total


def needed_for(node: str, steps: tuple[Step, ...] = PIPELINE) -> tuple[Step, ...]:
    """A node and all it needs of these steps, in order.

    Raises:
        ConfigError: For an unknown node.
    """
    by_name = {step.node: step for step in steps}
    if node not in by_name:
        raise ConfigError(f"there is no stage {node!r}; choose from {', '.join(by_name)}")
    wanted, open_nodes = set[str](), [node]
    while open_nodes:
        name = open_nodes.pop()
        if name in by_name and name not in wanted:
            wanted.add(name)
            open_nodes += by_name[name].inputs.values()
    return tuple(step for step in steps if step.node in wanted)


def run_steps(
    steps: Iterable[Step],
    config: PipelineConfig,
    runtime: RuntimeConfig,
    call: Call,
    given: Mapping[str, ArtifactRef] | None = None,
) -> dict[str, ArtifactRef]:
    """Run steps in order; what is published is not run again.

    Returns:
        Each node's artifact, those given included.
    """
    refs = dict(given or {})
    for step in steps:
        arguments = step.arguments(refs) | {"config": step.config or config, "runtime": runtime}
        refs[step.node] = call(step, arguments)
    return refs


def call_directly(on_progress: OnProgress | None = None) -> Call:
    """Call stages as plain functions, without Prefect."""

    def call(step: Step, arguments: dict[str, Any]) -> ArtifactRef:
        if on_progress is None:
            return step.run(**arguments)
        return step.run(**arguments, on_progress=partial(on_progress, step.node))

    return call
