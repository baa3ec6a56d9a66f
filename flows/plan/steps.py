"""The table of steps: the nodes of a flow, the stage of each, and its inputs. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from popalign_core.config import PipelineConfig
from popalign_core.config.spelling import choose_from
from popalign_core.errors import ConfigError
from tasks.common.stage_object import Stage
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
    # On training images: they are sampled and read anyway, and no image both calibrates and is judged.
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


def training_steps(config: PipelineConfig) -> tuple[Step, ...]:
    """Preference data and training; where the policy trains on images of its own, three nodes a round.

    What a round samples, `sample-roundN`, comes from the model that the round before trained, `train-round(N-1)`. The
    last round's training is node `train`, whose model is measured and published.
    """
    training = config.training
    if not training.is_on_policy:
        return TRAINING_STEPS
    *data, offline = TRAINING_STEPS
    return (
        *data,
        *(step for number in range(1, training.rounds + 1) for step in _round_steps(number, config, offline)),
    )


def _round_steps(number: int, config: PipelineConfig, offline: Step) -> tuple[Step, ...]:
    images, faces, before = f"sample-round{number}", f"attributes-round{number}", f"train-round{number - 1}"
    is_first, is_last = number == 1, number == config.training.rounds
    own = {"round_sample": images, "round_attributes": faces} | ({} if is_first else {"before": before})
    source = {"prompts": "identities"} | ({} if is_first else {"model": before})
    return (
        Step(images, sample.sample_images, source, {"purpose": "round", "number": number}),
        Step(faces, attributes.read_attributes, {"prompts": "identities", "sample": images}, {"is_round": True}),
        replace(
            offline,
            node=offline.node if is_last else f"train-round{number}",
            inputs={**offline.inputs, **own},
            options={"number": number},
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


def pipeline_steps(config: PipelineConfig) -> tuple[Step, ...]:
    """All nodes of a run, in an order in which they can be run."""
    return _run_steps(training_steps(config))


def _run_steps(training: tuple[Step, ...]) -> tuple[Step, ...]:
    return (
        *PROMPT_STEPS,
        *training,
        *evaluation_steps("base", calibration="calibration"),
        *evaluation_steps("aligned", model="train", calibration="calibration"),
        REPORT_STEP,
    )


PIPELINE = _run_steps(TRAINING_STEPS)
"""Those of a run without rounds; the stages are the same in every run."""

PAIRS_STEP = Step("train", train.train_model, {"preferences": "pairs", "sample": "pairs", "prompts": "pairs"})
"""Training on imported pairs; they are no node of a flow, but given."""


def needed_for(node: str, steps: tuple[Step, ...] = PIPELINE) -> tuple[Step, ...]:
    """A node and all it needs of these steps, in order.

    Raises:
        ConfigError: For an unknown node.
    """
    by_name = {step.node: step for step in steps}
    if node not in by_name:
        raise ConfigError(f"there is no stage {node!r}; {choose_from(node, by_name)}")
    wanted, open_nodes = set[str](), [node]
    while open_nodes:
        name = open_nodes.pop()
        if name in by_name and name not in wanted:
            wanted.add(name)
            open_nodes += by_name[name].inputs.values()
    return tuple(step for step in steps if step.node in wanted)
