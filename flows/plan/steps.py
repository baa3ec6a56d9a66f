"""The table of steps: the nodes of a flow, the stage of each, and its inputs. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
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
