"""The table of stages, and the plan: each node's key, hit or miss, and how much work it is. Imports no torch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any, overload

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import ConfigError, StoreError
from storage.store import ArtifactRef, Store
from tasks.common.prompt_lists import count_listed, read_benchmarks
from tasks.common.stage_object import Progress, Request, Stage, no_progress, open_store, reference
from tasks.stages import (
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

OnProgress = Callable[[str, int, int], None]
"""Called with (node, done, total); done == total at once for a node that is a hit."""


@dataclass(frozen=True)
class Step:
    """A stage at its place in a flow.

    Attributes:
        node: Name of the place, such as `sample` or `evaluate:base`.
        stage: Who works there.
        inputs: Input of the stage -> node whose artifact it takes.
        options: Of the stage.
        config: Of a system that changes the run's configuration; None for the run's own.
    """

    node: str
    stage: Stage[Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    config: PipelineConfig | None = None


def statistics_steps(system: str, model: str | None = None) -> tuple[Step, ...]:
    """The three costly steps of measuring one system; `model` is a trained model's node, None the configured one."""
    images, faces, marks = f"sample-eval:{system}", f"attributes-eval:{system}", f"scores:{system}"
    source = {"prompts": "benchmarks"} | ({"model": model} if model else {})
    measured = {"prompts": "benchmarks", "sample": images}
    return (
        Step(images, sample.sample_images, source, {"purpose": "evaluation"}),
        Step(faces, attributes.read_attributes, measured),
        Step(marks, scores.score_images, measured),
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
    measure = Step(f"evaluate:{system}", evaluate.evaluate_system, inputs, {"system": system})
    return (*statistics_steps(system, model), measure)


PROMPT_STEPS = (
    Step("prompts", prompts.write_prompts),
    Step("identities", identities.add_identities, {"prompts": "prompts"}),
    Step("benchmarks", benchmarks.add_benchmarks, {"prompts": "identities"}),
)
TRAINING_STEPS = (
    Step("sample", sample.sample_images, {"prompts": "identities"}, {"purpose": "preferences"}),
    Step("attributes", attributes.read_attributes, {"prompts": "identities", "sample": "sample"}),
    # On training images: they are drawn and read anyway, and no image both calibrates and is judged.
    Step(
        "calibration",
        calibration.calibrate_classifier,
        {"prompts": "identities", "sample": "sample", "attributes": "attributes"},
    ),
    Step(
        "preferences",
        preferences.build_preferences,
        {"prompts": "identities", "sample": "sample", "attributes": "attributes"},
    ),
    Step(
        "train",
        train.train_model,
        {"preferences": "preferences", "sample": "sample", "prompts": "identities", "attributes": "attributes"},
    ),
)
REPORT_STEP = Step(
    "report",
    report.write_report,
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

PAIRS_STEP = Step("train", train.train_model, {"preferences": "pairs", "sample": "pairs", "prompts": "pairs"})
"""Training on imported pairs; they are no node of a flow, but given."""


@dataclass(frozen=True)
class PlannedNode:
    """What a run would do at one node.

    Attributes:
        step: Stage and place.
        ref: Stage and key of the node's artifact.
        is_hit: Whether it is published already.
        n_images: Images to draw, read or score; an estimate while prompts are still to be written.
        n_steps: Training steps.
        request: What is asked of the stage; None where it has nothing to do.
    """

    step: Step
    ref: ArtifactRef
    is_hit: bool
    n_images: int = 0
    n_steps: int = 0
    request: Request[Any] | None = None

    @property
    def node(self) -> str:
        """Name of the node."""
        return self.step.node


@dataclass(frozen=True)
class Plan(Sequence[PlannedNode]):
    """All that a run does, with its keys: made once, then shown, kept from garbage collection, run and published.

    As a sequence it holds the nodes that have something to do, in the order of execution.

    Attributes:
        nodes: All of them.
        given: Artifacts that stand for nodes outside.
    """

    nodes: tuple[PlannedNode, ...]
    given: Mapping[str, ArtifactRef] = field(default_factory=dict)

    @overload
    def __getitem__(self, index: int) -> PlannedNode: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[PlannedNode]: ...
    def __getitem__(self, index: int | slice) -> PlannedNode | Sequence[PlannedNode]:
        return self._busy[index]

    def __len__(self) -> int:
        return len(self._busy)

    @property
    def refs(self) -> dict[str, ArtifactRef]:
        """Each node's artifact, those given included."""
        return {**self.given, **{node.node: node.ref for node in self.nodes}}

    @property
    def _busy(self) -> list[PlannedNode]:
        return [node for node in self.nodes if node.request is not None]


_Keyed = tuple[Step, Request[Any] | ArtifactRef, ArtifactRef]


def plan_run(
    config: PipelineConfig,
    runtime: RuntimeConfig,
    steps: Iterable[Step] = PIPELINE,
    given: Mapping[str, ArtifactRef] | None = None,
    *,
    target: str | None = None,
    forced: str | None = None,
) -> Plan:
    """Every node's key, hit or miss and work; runs nothing.

    Args:
        config: Of the pipeline.
        runtime: Which store.
        steps: Which nodes, in the order of execution.
        given: Artifacts that stand for nodes outside `steps`.
        target: The only node that is wanted. What it does not need is left out, and there is one node an artifact: of
            nodes with the same key the first stays, and who takes the others' takes its.
        forced: Node of which a new version is asked for: what is published, whole or damaged, is superseded.

    Raises:
        ConfigError: When a stage that is still to be run would refuse its settings.
        MissingWeightsError: When the base model, whose hash is part of the keys, is not there.
        StoreError: When the store cannot be opened.
    """
    store, refs, wanted = open_store(runtime), dict(given or {}), list[_Keyed]()
    stands_for, first = dict[str, str](), dict[ArtifactRef, str]()
    for each in steps:
        step = replace(each, inputs={name: stands_for.get(node, node) for name, node in each.inputs.items()})
        request = _request(step, config, refs)
        ref = _supersede(store, request) if step.node == forced else reference(store, request)
        stands_for[step.node] = step.node if target is None else first.setdefault(ref, step.node)
        if stands_for[step.node] == step.node:
            refs[step.node] = ref
            wanted.append((step, request, ref))
    if target is not None:
        needed = {step.node for step in needed_for(target, tuple(step for step, _, _ in wanted))}
        wanted = [keyed for keyed in wanted if keyed[0].node in needed]
    nodes = (_planned(*keyed, store, config, runtime) for keyed in wanted)
    return Plan(tuple(nodes), dict(given or {}))


def _request(step: Step, config: PipelineConfig, refs: Mapping[str, ArtifactRef]) -> Request[Any] | ArtifactRef:
    inputs = {name: refs[node] for name, node in step.inputs.items()}
    return step.stage.request(step.config or config, **inputs, **step.options)


def _supersede(store: Store, request: Request[Any] | ArtifactRef) -> ArtifactRef:
    """The next version of an artifact; a damaged one is as good a reason as a whole one."""
    ref = reference(store, request)
    try:
        is_there = store.is_published(ref)
    except StoreError:
        is_there = True
    if is_there:
        store.bump(ref.stage, ref.key)
    return reference(store, request)


def _planned(
    step: Step,
    request: Request[Any] | ArtifactRef,
    ref: ArtifactRef,
    store: Store,
    config: PipelineConfig,
    runtime: RuntimeConfig,
) -> PlannedNode:
    if isinstance(request, ArtifactRef):
        return PlannedNode(step, ref, is_hit=True)
    own, is_hit = step.config or config, store.is_published(ref)
    if not is_hit and step.stage.check is not None:
        step.stage.check(request.view, runtime)
    n_steps = own.training.n_steps if step.stage is train.train_model else 0
    return PlannedNode(step, ref, is_hit, expected_images(step, own), n_steps, request)


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
    for name, part in read_benchmarks(config.prompts.benchmarks).items():
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


Call = Callable[[PlannedNode, RuntimeConfig], ArtifactRef]
"""How a node is run: directly, or as a Prefect task."""


def run_plan(planned: Plan, runtime: RuntimeConfig, call: Call) -> dict[str, ArtifactRef]:
    """Run a plan's nodes in order; what is published is not run again.

    Returns:
        Each node's artifact, those given included.
    """
    for node in planned:
        call(node, runtime)
    return planned.refs


def run_steps(
    steps: Iterable[Step],
    config: PipelineConfig,
    runtime: RuntimeConfig,
    call: Call,
    given: Mapping[str, ArtifactRef] | None = None,
) -> dict[str, ArtifactRef]:
    """Plan steps and run them; returns as `run_plan`."""
    return run_plan(plan_run(config, runtime, steps, given), runtime, call)


def make(node: PlannedNode, runtime: RuntimeConfig, on_progress: Progress = no_progress) -> ArtifactRef:
    """The artifact of a node that has something to do, made where it is missing."""
    assert node.request is not None
    return node.step.stage.make(node.request, runtime, on_progress)


def call_directly(on_progress: OnProgress | None = None) -> Call:
    """Run nodes without Prefect."""

    def call(node: PlannedNode, runtime: RuntimeConfig) -> ArtifactRef:
        return make(node, runtime, no_progress if on_progress is None else partial(on_progress, node.node))

    return call
