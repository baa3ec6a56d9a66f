"""Studies in which people say what they see in single images of a run, and their labels as a table."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from popalign_core.config import PipelineConfig
from popalign_core.config.review import CANNOT_TELL, LabelConfig
from popalign_core.errors import InputError
from popalign_core.ids import content_id
from popalign_core.review.pairing import ImagePair
from storage.store import ArtifactRef, Store
from tasks.common.image_tables import read_images
from tasks.studies.study_records import NewStudy, answers_table, parse_kind, read_config, read_nodes, store_study

if TYPE_CHECKING:
    from popalign_core.review.labels import LabelResults
    from storage.reviews.review_tables import Asked, StudyPair, Vote
    from storage.reviews.votes import ReviewDatabase, Row


def create_labelling(
    database: "ReviewDatabase",
    store: Store,
    name: str,
    run: str,
    *,
    classes: Mapping[str, Sequence[str]],
    settings: Mapping[str, Any],
    node: str = "sample",
    instructions: str | None = None,
) -> int:
    """Make a study of single images of a run.

    Args:
        database: Takes it.
        store: Has the images.
        name: Of the study.
        run: Name of the run's folder.
        classes: Axis -> classes beyond those that the run's configuration has; an axis it does not have needs all of
            its classes. Empty takes the axes of the configuration as they are.
        settings: Fields of `LabelConfig` besides the questions.
        node: Which images: `sample` for those sampled for preferences, `sample-eval:base` and the like for evaluation.
        instructions: Markdown; the shipped ones when not given.

    Returns:
        The number of images.

    Raises:
        InputError: When the run has no such images, or there is a study of that name.
    """
    nodes = read_nodes(store, run)
    if node not in nodes or not node.startswith("sample"):
        sampled = ", ".join(sorted(each for each in nodes if each.startswith("sample")))
        raise InputError(f"run {run!r} has no images {node!r}; it has: {sampled}")
    config = LabelConfig.model_validate({**settings, "questions": _questions(read_config(store, run), classes)})
    chosen = _choose(store, nodes.get("benchmarks", nodes["identities"]), nodes[node], config)
    pairs = [
        ImagePair(content_id(name, "label", image_id), prompt_id, (image_id,), ())
        for image_id, prompt_id in chosen.itertuples(index=False)
    ]
    # without texts: a prompt may name what is to be seen
    study = NewStudy(name, config, {"run": run, node: str(nodes[node])}, instructions)
    store_study(database, store, study, [nodes[node]], pairs)
    return len(pairs)


def label_table(database: "ReviewDatabase", name: str, *, known_only: bool = False) -> pd.DataFrame:
    """Table `labels` of a study.

    Args:
        database: Has the study.
        name: Of the study.
        known_only: Whether a free class becomes `cannot tell`: what a classifier without it can be held against.
    """
    from storage.reviews.review_tables import ANSWER_PREFIX

    questions = parse_kind(database.study(name), LabelConfig).questions
    free = {(question.axis, each) for question in questions for each in question.free}

    def columns(vote: "Vote", asked: "Asked", pair: "StudyPair") -> "Row":
        answer = vote.choice.removeprefix(ANSWER_PREFIX)
        is_hidden = known_only and (asked.question, answer) in free
        return {
            "image_id": pair.images_a[0],
            "axis": asked.question,
            "class": CANNOT_TELL if is_hidden else answer,
        }

    return answers_table(database, name, "labels", columns)


def label_results(database: "ReviewDatabase", name: str) -> "LabelResults":
    """Agreement and counts of a study so far."""
    from popalign_core.review.labels import evaluate_labels

    return evaluate_labels(label_table(database, name), parse_kind(database.study(name), LabelConfig))


def _questions(config: PipelineConfig, classes: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    known = {axis.name: axis.classes for axis in config.axes}
    questions: list[dict[str, Any]] = []
    for axis in classes or known:
        free = tuple(each for each in classes.get(axis, ()) if each not in known.get(axis, ()))
        questions.append({"axis": axis, "classes": known.get(axis, ()), "free": free})
    return questions


def _choose(store: Store, prompts: ArtifactRef, sample: ArtifactRef, config: LabelConfig) -> pd.DataFrame:
    """`image_id` and `prompt_id` of the images to label: of people, not of things."""
    table = store.read_table(prompts, "prompts", ["prompt_id", "kind"])
    people = table.loc[table["kind"] != "generic", "prompt_id"]
    images = read_images(store, sample)
    images = images[images["is_shown"] & images["prompt_id"].isin(list(people))].sort_values("image_id")
    order = np.random.default_rng(config.seed).permutation(len(images))[: config.n_images or None]
    if not len(order):
        raise InputError(f"{sample} has no image of a person to label")
    return images.iloc[sorted(order.tolist())][["image_id", "prompt_id"]]
