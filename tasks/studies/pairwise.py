"""Studies in which people judge two systems: made from what both sampled, and their votes as a table."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd

from popalign_core.config.review import StudyConfig
from popalign_core.errors import InputError
from popalign_core.ids import content_id
from popalign_core.review.pairing import make_checks, pair_sets
from storage.store import ArtifactRef, Store
from tasks.common.image_tables import read_images
from tasks.studies.study_records import NewStudy, answers_table, parse_kind, read_nodes, store_study

if TYPE_CHECKING:
    from popalign_core.review.vote_results import StudyResults
    from storage.reviews.review_tables import Asked, StudyPair, Vote
    from storage.reviews.votes import ReviewDatabase, Row


@dataclass(frozen=True)
class StudySource:
    """The images that a study of two systems is made of.

    Attributes:
        run: That sampled them; `popalign study report` puts the results into its folder. Empty for none.
        prompts: Of both systems.
        systems: Two names and their images.
    """

    run: str
    prompts: ArtifactRef
    systems: Mapping[str, ArtifactRef]


def find_samples(store: Store, run: str, systems: Sequence[str]) -> StudySource:
    """The prompts of a run, and what systems sampled for its evaluation.

    Args:
        store: Of the run.
        run: Name of its folder.
        systems: Names, such as `base` and `aligned`.

    Raises:
        InputError: When the run is not complete, or did not sample with such a system.
    """
    nodes = read_nodes(store, run)
    sampled = {node.partition(":")[2]: ref for node, ref in nodes.items() if node.startswith("sample-eval:")}
    missing = [system for system in systems if system not in sampled]
    if missing:
        raise InputError(f"run {run!r} has no images of {', '.join(missing)}; it has: {', '.join(sorted(sampled))}")
    return StudySource(run, nodes["identities"], {system: sampled[system] for system in systems})


def create_study(
    database: "ReviewDatabase",
    store: Store,
    name: str,
    source: StudySource,
    *,
    config: StudyConfig,
    benchmark: str = "neutral",
    instructions: str | None = None,
) -> int:
    """Make a study of the images of two systems, with copies of them sized for the screen.

    Args:
        database: Takes it.
        store: Has the images.
        name: Of the study.
        source: Its images.
        config: Questions, sizes, raters.
        benchmark: Of the evaluation prompts that are used.
        instructions: Markdown; the shipped ones when not given.

    Returns:
        The number of pairs, checks not counted.

    Raises:
        InputError: When the systems have too little in common, or there is a study of that name.
    """
    systems, text_of = source.systems, _read_prompts(store, source.prompts, benchmark)
    a, b = systems
    frames = [_shown_images(store, ref, text_of) for ref in systems.values()]
    pairs = pair_sets(frames[0], frames[1], config)
    checks = make_checks(pairs, config)
    source_refs = {"run": source.run, "prompts": str(source.prompts), a: str(systems[a]), b: str(systems[b])}
    study = NewStudy(name, config, source_refs, instructions, text_of, (a, b))
    shown = [replace(pair, pair_id=content_id(name, pair.pair_id)) for pair in (*pairs, *checks)]
    store_study(database, store, study, systems.values(), shown)
    return len(pairs)


def read_votes(database: "ReviewDatabase", name: str) -> pd.DataFrame:
    """Table `votes` of a study, as `study_records.answers_table` makes it."""
    study = database.study(name)

    def columns(vote: "Vote", asked: "Asked", pair: "StudyPair") -> "Row":
        return {
            "system_a": study.system_a,
            "system_b": study.system_b,
            "pair_id": pair.pair_id,
            "prompt": pair.prompt,
            "images_a": pair.images_a,
            "images_b": pair.images_b,
            "question": asked.question,
            "first": asked.first,
            "answer": _answer(vote.choice, asked.first),
            "is_check": bool(pair.checks),
        }

    return answers_table(database, name, "votes", columns)


def study_results(database: "ReviewDatabase", name: str) -> "StudyResults":
    """Win rates, agreement and raters of a study so far."""
    from popalign_core.review.vote_results import evaluate_votes

    return evaluate_votes(read_votes(database, name), parse_kind(database.study(name), StudyConfig))


def _answer(choice: str, first: str) -> str:
    return {"first": first, "second": "b" if first == "a" else "a", "tie": "tie"}[choice]


def _read_prompts(store: Store, prompts: ArtifactRef, benchmark: str) -> dict[str, str]:
    """Prompt id -> text."""
    texts = store.read_table(prompts, "prompts", ["prompt_id", "text", "benchmark", "split"])
    texts = texts[texts["split"] == "eval"]
    known = sorted(texts["benchmark"].unique())
    if benchmark not in known:
        raise InputError(f"the prompts have no benchmark {benchmark!r}; they have: {', '.join(known)}")
    texts = texts[texts["benchmark"] == benchmark]
    return dict(zip(texts["prompt_id"], texts["text"], strict=True))


def _shown_images(store: Store, sample: ArtifactRef, prompt_ids: Iterable[str]) -> pd.DataFrame:
    images = read_images(store, sample)
    images = images[images["is_shown"] & images["prompt_id"].isin(list(prompt_ids))]
    return images[["image_id", "prompt_id", "index", "seed"]]
