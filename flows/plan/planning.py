"""The plan: each node's key, hit or miss, and how much work it is. Imports no torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

from flows.plan.expected_work import expected_images
from flows.plan.preflight import check_disk, find_problems, list_needs, refuse, size_of_training
from flows.plan.steps import Step, needed_for, pipeline_steps
from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import PopAlignError, StoreError
from storage.store import ArtifactRef, Store
from tasks.common.hub_models import learn_hub_hashes
from tasks.common.stage_object import Request, open_store, reference
from tasks.stages import sample, train


@dataclass(frozen=True)
class PlannedNode:
    """What a run would do at one node.

    Attributes:
        step: Stage and place.
        ref: Stage and key of the node's artifact.
        is_hit: Whether it is published already.
        n_images: Images to sample, read or score; an estimate while prompts are still to be written.
        n_steps: Training steps.
        request: What is asked of the stage; None where it has nothing to do.
        config: Of the step, or of the run.
    """

    step: Step
    ref: ArtifactRef
    is_hit: bool
    n_images: int = 0
    n_steps: int = 0
    request: Request[Any] | None = None
    config: PipelineConfig | None = None

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
    steps: Iterable[Step] | None = None,
    given: Mapping[str, ArtifactRef] | None = None,
    *,
    target: str | None = None,
    forced: str | None = None,
) -> Plan:
    """Every node's key, hit or miss and work; runs nothing, and refuses what could not be run.

    Args:
        config: Of the pipeline.
        runtime: Which store, and this machine.
        steps: Which nodes, in the order of execution; all of a run's if None.
        given: Artifacts that stand for nodes outside `steps`.
        target: The only node that is wanted. What it does not need is left out, and there is one node an artifact: of
            nodes with the same key the first stays, and who takes the others' takes its.
        forced: Node of which a new version is asked for: what is published, whole or damaged, is superseded.

    Raises:
        PopAlignError: For all that a stage that is still to be run would refuse, or lack on this machine; the kind is
            that of the first.
        StoreError: When the store cannot be opened, or its disk does not hold images and trained models.
    """
    steps = pipeline_steps(config) if steps is None else tuple(steps)
    try:
        plan = plan_keys(config, runtime, steps, given, target=target, forced=forced)
    except StoreError:
        raise
    except PopAlignError as error:
        refuse([error, *find_problems(list_needs(steps, config, runtime))])
        raise
    missing = [node for node in plan if not node.is_hit]
    refused = [problem for node in missing if (problem := _refusal(node, runtime)) is not None]
    refuse([*refused, *find_problems(list_needs((node.step for node in missing), config, runtime))])
    n_sampled = sum(node.n_images for node in missing if node.step.stage is sample.sample_images)
    check_disk(n_sampled, config, runtime, _trained_bytes(missing, config, runtime, is_run=target is None))
    return plan


def _trained_bytes(
    missing: Iterable[PlannedNode], config: PipelineConfig, runtime: RuntimeConfig, *, is_run: bool
) -> float:
    """What trainings take: an artifact each, checkpoints one after the other, and a run's model in its folder."""
    trainings = [node for node in missing if node.step.stage is train.train_model]
    sizes = [size_of_training(node.config or config, runtime) for node in trainings]
    if not sizes:
        return 0.0
    published = sizes[-1].merged if is_run and trainings[-1].node == train.train_model.name else 0.0
    kept = sum(size.kept(is_followed=is_followed(node)) for size, node in zip(sizes, trainings, strict=True))
    return kept + max(size.checkpoints for size in sizes) + published


def is_followed(node: PlannedNode) -> bool:
    """Whether it is a round of training that another one goes on from."""
    return node.request is not None and getattr(node.request.view, "is_followed", False)


def plan_keys(
    config: PipelineConfig,
    runtime: RuntimeConfig,
    steps: Iterable[Step],
    given: Mapping[str, ArtifactRef] | None = None,
    *,
    target: str | None = None,
    forced: str | None = None,
) -> Plan:
    """The same plan, whether it can be run here or not.

    Raises:
        PopAlignError: When something that a key is made of is not there.
        StoreError: When the store cannot be opened.
    """
    steps = tuple(steps)
    store, refs, wanted = open_store(runtime), dict(given or {}), list[_Keyed]()
    learn_hub_hashes(store, {(step.config or config).model for step in steps})
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
    nodes = (_planned(*keyed, store, config) for keyed in wanted)
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
) -> PlannedNode:
    if isinstance(request, ArtifactRef):
        return PlannedNode(step, ref, is_hit=True)
    own, is_hit = step.config or config, store.is_published(ref)
    n_steps = own.training.n_steps if step.stage is train.train_model else 0
    return PlannedNode(step, ref, is_hit, expected_images(step, own), n_steps, request, own)


def _refusal(node: PlannedNode, runtime: RuntimeConfig) -> PopAlignError | None:
    """What a stage has against its settings."""
    if node.request is None or node.step.stage.check is None:
        return None
    try:
        node.step.stage.check(node.request.view, runtime)
    except PopAlignError as error:
        return error
    return None
