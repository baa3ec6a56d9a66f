"""A run's preference images, nine men in ten, and studies of curating and labelling made of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from study_worlds import publish

from popalign_core.config import Axis, PipelineConfig, PromptsConfig
from popalign_core.config.review import CurateConfig
from popalign_core.identities.augment import augment_prompts
from popalign_core.ids import content_id
from popalign_core.preferences.chain import Proposal, TargetJudge, after
from popalign_core.preferences.target import Target
from popalign_core.prompts.grammar import write_prompts
from popalign_core.review.curation_chains import next_proposal, replay
from storage.formats.images import encode_png, image_column
from storage.reviews.chain_steps import add_step, end_chain, read_classes, read_steps
from storage.reviews.review_tables import DONE, ChainStep, Rater
from storage.reviews.votes import ReviewDatabase
from storage.store import ArtifactRef, Store
from tasks.studies.curation import create_curation
from tasks.studies.labelling import create_labelling
from tasks.studies.study_records import parse_kind

RUN = "run"
GENDER = Axis(name="gender", classes=("male", "female"))
COLOURS = {"male": (60, 90, 200), "female": (220, 120, 40)}
_SUBJECTS = ("doctor", "nurse", "judge", "pilot", "cook", "baker", "lawyer", "farmer", "dancer", "clerk")


def make_run(root: Path, n_prompts: int = 2, n_neutral: int = 20, n_specific: int = 20, side: int = 24) -> Store:
    """Every picture has the colour of its gender and a grey of its own; a tenth of the neutral ones are women."""
    store = Store(str(root))
    config = PipelineConfig(axes=(GENDER,), prompts=PromptsConfig(train_subjects=_SUBJECTS[:n_prompts]))
    prompts = augment_prompts(write_prompts(config.prompts), (GENDER,)).assign(benchmark=None)
    prompts = prompts[prompts["split"] == "train"]
    images, seen = _draw(prompts, {"neutral": n_neutral, "specific": n_specific}, side)
    attributes = {"n_faces": 1, "box": None, "detector_score": 0.9, "probability": 0.9, "classifier": "test@1"}
    read = seen.assign(axis="gender", drop_reason=None, **attributes)
    nodes = {
        "identities": publish(store, "identities", "prompts", prompts),
        "sample": publish(store, "sample", "images", images),
        "attributes": publish(store, "attributes", "attributes", read),
    }
    record(store, nodes, config)
    return store


def record(store: Store, nodes: dict[str, ArtifactRef], config: PipelineConfig) -> None:
    """The nodes as a run of their own."""
    meta = {"nodes": {node: str(ref) for node, ref in nodes.items()}, "config": config.model_dump(mode="json")}
    store.run_folder(RUN).record(nodes.values(), meta)


def make_curation(
    folder: Path, *, n_prompts: int = 2, name: str = "sets", url: str = "", **settings: Any
) -> ReviewDatabase:
    """A database with one study of curating, its store at `folder / "store"`."""
    store = make_run(folder / "store", n_prompts)
    database = ReviewDatabase(url or f"sqlite:///{folder / 'reviews.sqlite'}")
    create_curation(database, store, name, RUN, settings=settings)
    return database


def make_labelling(folder: Path, *, name: str = "labels", free: tuple[str, ...] = ("non-binary",), **settings: Any):  # type: ignore[no-untyped-def]
    """A database with one study of labels of 6 images, and its store."""
    store = make_run(folder / "store")
    database = ReviewDatabase(f"sqlite:///{folder / 'reviews.sqlite'}")
    settings = {"n_images": 6, **settings}
    create_labelling(database, store, name, RUN, classes={"gender": free}, settings=settings)
    return database, store


def judge_for(database: ReviewDatabase, pair_id: str) -> TargetJudge:
    """A curator who sees what the classifier saw, and wants the target."""
    target, seen = Target((GENDER,)), read_classes(database, pair_id)
    cells = {image_id: GENDER.classes.index(classes["gender"]) for image_id, classes in seen.items()}
    return TargetJudge(dict(cells), target, "marginal")


def let_judge(database: ReviewDatabase, name: str, rater: Rater) -> list[tuple[int, int]]:
    """Curate every set of a rater until the simulated judge is content: steps taken and steps in all, a set each."""
    config, counts = parse_kind(database.study(name), CurateConfig), []
    while turn := database.turn(rater.rater_id):
        asked_id, judge = turn.asked.asked_id, judge_for(database, turn.pair.pair_id)
        while True:
            steps = read_steps(database, asked_id)
            chain = replay(turn.pair.images_a, turn.pair.images_b, steps)
            if judge.is_content(chain.members):
                break
            proposal = next_proposal(chain, f"{turn.pair.pair_id} {asked_id}", config)
            assert isinstance(proposal, Proposal), "candidates ran out"
            better = judge.prefers(after(chain, proposal), chain.members)
            step = ChainStep(
                asked_id=asked_id,
                number=len(steps),
                slot=proposal.slot,
                replacement=proposal.replacement,
                is_accepted=better,
                seconds=1.0,
            )
            assert add_step(database, rater.rater_id, step)
        assert end_chain(database, rater.rater_id, asked_id, len(steps), DONE, 1.0)
        counts.append((chain.n_accepted, len(steps)))
    return counts


def _draw(prompts: pd.DataFrame, sizes: dict[str, int], side: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows, seen, pictures = [], [], []
    for prompt_id, kind, identity in prompts[["prompt_id", "kind", "identity"]].itertuples(index=False):
        for index in range(sizes.get(kind, 0)):
            name = dict(identity).get("gender", "female" if index % 10 == 0 else "male")
            rows.append((content_id(prompt_id, index), prompt_id, index))
            seen.append((rows[-1][0], name))
            picture = np.full((side, side, 3), COLOURS[name], dtype=np.uint8)
            picture[: side // 2, : side // 2] = (37 * len(rows)) % 251
            pictures.append(encode_png(picture))
    images = pd.DataFrame(rows, columns=["image_id", "prompt_id", "index"]).astype({"index": "int32"})
    images = images.assign(
        seed=0, width=np.int32(side), height=np.int32(side), image=image_column(pictures), latents_file="l"
    )
    images["latents_row"] = np.arange(len(images), dtype=np.int32)
    return images, pd.DataFrame(seen, columns=["image_id", "class"])
