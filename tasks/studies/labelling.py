"""Studies in which people say what they see in single images of a run, and their labels as a table."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from popalign_core.config.review import CANNOT_TELL, LabelConfig
from popalign_core.errors import InputError
from popalign_core.ids import content_id
from storage.store import ArtifactRef, Store
from tasks.common.image_tables import read_images
from tasks.studies.pairwise import SHIPPED, parse_kind, pseudonym, read_nodes
from tasks.studies.study_images import iter_study_images, picture_id

if TYPE_CHECKING:
    from popalign_core.review.labels import LabelResults
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
    questions = _questions(store, run, classes)
    config = LabelConfig.model_validate({**settings, "questions": questions})
    chosen = _choose(store, nodes.get("benchmarks", nodes["identities"]), nodes[node], config)
    rows = [_row(name, *each) for each in chosen.itertuples(index=False)]
    study = {
        "name": name,
        "system_a": "",
        "system_b": "",
        "config": config.model_dump(mode="json"),
        "source": {"run": run, node: str(nodes[node])},
        "instructions": instructions or (SHIPPED / "instructions_label.md").read_text(encoding="utf-8"),
    }
    images = iter_study_images(store, name, [nodes[node]], set(chosen["image_id"]), config.max_side)
    database.create_study(study, images, rows)
    return len(rows)


def label_table(database: "ReviewDatabase", name: str, *, known_only: bool = False) -> pd.DataFrame:
    """Table `labels` of a study.

    Args:
        database: Has the study.
        name: Of the study.
        known_only: Whether a free class becomes `cannot tell`: what a classifier without it can be held against.
    """
    from storage.formats.schemas import SCHEMAS
    from storage.reviews.review_tables import ANSWER_PREFIX

    study = database.study(name)
    free = {(question.axis, each) for question in parse_kind(study, LabelConfig).questions for each in question.free}

    def answer_of(axis: str, choice: str) -> str:
        answer = choice.removeprefix(ANSWER_PREFIX)
        return CANNOT_TELL if known_only and (axis, answer) in free else answer

    rows = [
        {
            "study": name,
            "rater": pseudonym(study, asked.rater_id),
            "position": asked.position,
            "image_id": pair.images_a[0],
            "prompt_id": pair.prompt_id,
            "axis": asked.question,
            "class": answer_of(asked.question, vote.choice),
            "seconds": vote.seconds,
        }
        for vote, asked, pair in database.votes(name)
    ]
    return pd.DataFrame(rows, columns=SCHEMAS["labels"].names).sort_values(["rater", "position"], ignore_index=True)


def label_results(database: "ReviewDatabase", name: str) -> "LabelResults":
    """Agreement and counts of a study so far."""
    from popalign_core.review.labels import evaluate_labels

    return evaluate_labels(label_table(database, name), parse_kind(database.study(name), LabelConfig))


def _questions(store: Store, run: str, classes: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    from popalign_core.config import PipelineConfig

    record = store.run_folder(run).read_record() or {}
    known = {axis.name: axis.classes for axis in PipelineConfig.model_validate(record["meta"]["config"]).axes}
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


def _row(study: str, image_id: str, prompt_id: str) -> "Row":
    return {
        "pair_id": content_id(study, "label", image_id),
        "prompt_id": prompt_id,
        "prompt": "",  # it may name what is to be seen
        "checks": "",
        "images_a": [image_id],
        "images_b": [],
        "pictures_a": [picture_id(study, image_id)],
        "pictures_b": [],
    }
