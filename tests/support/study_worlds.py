"""A small store with two systems' pictures of the same prompts and seeds, and studies made of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from popalign_core.config.review import StudyConfig
from popalign_core.ids import content_id, image_seed
from storage.formats.images import encode_png, image_column
from storage.reviews.review_tables import Rater, Study
from storage.reviews.votes import ReviewDatabase
from storage.store import ArtifactRef, Store
from tasks.studies.pairwise import create_study, find_samples
from tasks.studies.study_records import invite

SYSTEMS = ("base", "aligned")
RUN = "run"
SMALL = StudyConfig(set_size=2, n_checks=2, max_luck=0.2, min_seconds=0.0)


def make_store(root: Path, n_prompts: int = 4, n_images: int = 4, side: int = 24) -> Store:
    """A run of two systems, each picture of one colour: no two are equal."""
    store = Store(str(root))
    subjects = [f"job{number}" for number in range(n_prompts)]
    prompts = pd.DataFrame(
        {
            "prompt_id": [content_id(subject) for subject in subjects],
            "text": [f"a photo of a {subject}" for subject in subjects],
            "subject": subjects,
            "kind": "neutral",
            "split": "eval",
            "identity": [{} for _ in subjects],
            "parent_id": None,
            "template": "a photo of a {}",
            "source": "grammar",
            "benchmark": "neutral",
        }
    )
    nodes = {"identities": publish(store, "identities", "prompts", prompts)}
    for number, system in enumerate(SYSTEMS):
        frame = _images(system, 60 + 120 * number, list(prompts["prompt_id"]), n_images, side)
        nodes[f"sample-eval:{system}"] = publish(store, "sample", "images", frame)
    store.run_folder(RUN).record(nodes.values(), {"nodes": {node: str(ref) for node, ref in nodes.items()}})
    return store


def make_study(
    root: Path,
    config: StudyConfig = SMALL,
    *,
    name: str = "study",
    n_prompts: int = 4,
    n_raters: int = 0,
    url: str = "",
) -> tuple[ReviewDatabase, Study, list[Rater]]:
    """A database with one study and invited raters."""
    store = make_store(root / "store", n_prompts=n_prompts, n_images=config.set_size * config.sets_per_prompt)
    database = ReviewDatabase(url or f"sqlite:///{root / 'reviews.sqlite'}")
    source = replace(find_samples(store, RUN, SYSTEMS), run="")
    create_study(database, store, name, source, config=config)
    study = database.study(name)
    return database, study, [invite(database, study) for _ in range(n_raters)]


def answer_all(database: ReviewDatabase, rater: Rater, choices: Sequence[str], seconds: float = 2.0) -> int:
    """Answer every question, the choices in turn; how many there were."""
    n = 0
    while turn := database.turn(rater.rater_id):
        assert database.vote(rater.rater_id, turn.asked.asked_id, choices[n % len(choices)], seconds)
        n += 1
    return n


def prefer(database: ReviewDatabase, rater: Rater, side: str, seconds: float = 2.0) -> int:
    """Answer every question for one system, and every check rightly; how many there were."""
    n = 0
    while turn := database.turn(rater.rater_id):
        better = "a" if turn.pair.checks else side
        choice = "first" if turn.asked.first == better else "second"
        assert database.vote(rater.rater_id, turn.asked.asked_id, choice, seconds)
        n += 1
    return n


def _images(system: str, colour: int, prompt_ids: list[str], n_images: int, side: int) -> pd.DataFrame:
    rows = [(prompt_id, index) for prompt_id in prompt_ids for index in range(n_images)]
    pixels = [
        np.full((side, side, 3), (colour, 255 * n // len(rows), n % 256), dtype=np.uint8) for n in range(len(rows))
    ]
    for picture in pixels:
        picture[: side // 2, : side // 2] = 255  # an edge that blurring takes away
    return pd.DataFrame(
        {
            "image_id": [content_id(system, *row) for row in rows],
            "prompt_id": [prompt_id for prompt_id, _ in rows],
            "index": np.array([index for _, index in rows], dtype=np.int32),
            "seed": [image_seed(0, *row) for row in rows],
            "width": np.int32(side),
            "height": np.int32(side),
            "image": image_column(encode_png(picture) for picture in pixels),
            "latents_file": "latents.safetensors",
            "latents_row": np.arange(len(rows), dtype=np.int32),
        }
    )


def publish(store: Store, stage: str, table: str, frame: pd.DataFrame) -> ArtifactRef:
    """An artifact of one table, whose key is no stage's."""
    config, inputs = {"content": content_id(str(frame.iloc[0, 0]), len(frame))}, dict[str, str]()
    ref = ArtifactRef(stage, store.key(stage, "1", config, inputs))
    payload = {"stage": stage, "version": "1", "config": config, "inputs": inputs}
    with store.build(ref, payload) as build:
        build.write_table(table, frame)
    return ref
