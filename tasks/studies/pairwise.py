"""Studies by people: made from what two systems sampled, their raters invited, their votes as a table."""

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from popalign_core.config.review import STUDIES, CurateConfig, LabelConfig, StudyConfig
from popalign_core.errors import InputError
from popalign_core.ids import content_id
from popalign_core.review.pairing import ImagePair, make_checks, pair_sets
from popalign_core.review.rater_plan import plan_rater
from storage.store import ArtifactRef, Store
from tasks.studies.study_images import iter_study_images, picture_id

if TYPE_CHECKING:
    from popalign_core.review.vote_results import StudyResults
    from storage.reviews.review_tables import Rater, Study
    from storage.reviews.votes import ReviewDatabase, Row

ConfigT = TypeVar("ConfigT", StudyConfig, LabelConfig, CurateConfig)
_OF_KIND = {StudyConfig: "studies of two systems", LabelConfig: "labels", CurateConfig: "curated sets"}

SHIPPED = Path(__file__).parents[2] / "popalign_core" / "review"


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


def read_nodes(store: Store, run: str) -> dict[str, ArtifactRef]:
    """The artifacts of a run, by node.

    Raises:
        InputError: When the run is not complete.
    """
    record = store.run_folder(run).read_record()
    if record is None:
        raise InputError(f"there is no complete run {run!r} in {store.root}; see its folder runs/")
    return {node: ArtifactRef(*text.split("/")) for node, text in record["meta"]["nodes"].items()}


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
    (a, b), shipped = systems, "instructions.md" if config.set_size > 1 else "instructions_pictures.md"
    frames = [_shown_images(store, ref, text_of) for ref in systems.values()]
    pairs = pair_sets(frames[0], frames[1], config)
    checks = make_checks(pairs, config)
    study = {
        "name": name,
        "system_a": a,
        "system_b": b,
        "config": config.model_dump(mode="json"),
        "source": {"run": source.run, "prompts": str(source.prompts), a: str(systems[a]), b: str(systems[b])},
        "instructions": instructions or (SHIPPED / shipped).read_text(encoding="utf-8"),
    }
    rows = [_pair_row(name, pair, text_of) for pair in (*pairs, *checks)]
    spoiled = {image_id for pair in checks if pair.kind == "spoiled" for image_id in pair.b}
    plain = {image_id for pair in (*pairs, *checks) for image_id in pair.a}
    plain |= {image_id for pair in (*pairs, *checks) if pair.kind != "spoiled" for image_id in pair.b}
    images = iter_study_images(store, name, systems.values(), plain, config.max_side, spoiled)
    database.create_study(study, images, rows)
    return len(pairs)


def invite(database: "ReviewDatabase", study: "Study") -> "Rater":
    """Add a rater with a plan of their own.

    Raises:
        InputError: When every pair has its raters.
    """
    import numpy as np

    config = parse_study(study)

    def plan(rows: Sequence[Any], coverage: Mapping[str, int], number: int) -> Iterable["Row"]:
        pairs = [ImagePair(row.pair_id, row.prompt_id, row.images_a, row.images_b, row.checks) for row in rows]
        generator = np.random.default_rng([config.seed, number])
        return [asdict(asked) for asked in plan_rater(pairs, coverage, config, generator)]

    return database.invite(study.name, plan)


def parse_study(study: "Study") -> StudyConfig | LabelConfig | CurateConfig:
    """The configuration of a stored study, of whatever kind."""
    return STUDIES[study.config.get("kind", "judge")].model_validate(study.config)


def parse_kind(study: "Study", kind: type[ConfigT]) -> ConfigT:
    """The configuration of a study of one kind.

    Raises:
        InputError: When the study is of another.
    """
    config = parse_study(study)
    if not isinstance(config, kind):
        raise InputError(f"study {study.name!r} is one of kind {config.kind!r}; this is for {_OF_KIND[kind]}")
    return config


def read_votes(database: "ReviewDatabase", name: str) -> pd.DataFrame:
    """Table `votes` of a study: raters under pseudonyms, no times of day, nothing that leads to a person."""
    study = database.study(name)
    rows = [
        {
            "study": name,
            "system_a": study.system_a,
            "system_b": study.system_b,
            "rater": pseudonym(study, asked.rater_id),
            "position": asked.position,
            "pair_id": pair.pair_id,
            "prompt_id": pair.prompt_id,
            "prompt": pair.prompt,
            "images_a": pair.images_a,
            "images_b": pair.images_b,
            "question": asked.question,
            "first": asked.first,
            "answer": _answer(vote.choice, asked.first),
            "is_check": bool(pair.checks),
            "seconds": vote.seconds,
        }
        for vote, asked, pair in database.votes(name)
    ]
    from storage.formats.schemas import SCHEMAS

    return pd.DataFrame(rows, columns=SCHEMAS["votes"].names).sort_values(["rater", "position"], ignore_index=True)


def study_results(database: "ReviewDatabase", name: str) -> "StudyResults":
    """Win rates, agreement and raters of a study so far."""
    from popalign_core.review.vote_results import evaluate_votes

    return evaluate_votes(read_votes(database, name), parse_kind(database.study(name), StudyConfig))


def completion_code(study: "Study", rater_id: str) -> str:
    """What a rater is shown at the end and a crowd platform is given: 10 letters and digits, made from the secret."""
    return _keyed(study, "completion", rater_id)[:10].upper()


def pseudonym(study: "Study", rater_id: str) -> str:
    """A rater's name in exports. It starts with a letter: CSV readers take `49347e715232` for a number, and infinity."""
    return f"r{_keyed(study, 'export', rater_id)[:12]}"


def _keyed(study: "Study", purpose: str, rater_id: str) -> str:
    text = json.dumps([purpose, rater_id]).encode()
    return hmac.new(bytes.fromhex(study.secret), text, hashlib.sha256).hexdigest()


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
    from tasks.common.image_tables import read_images

    images = read_images(store, sample)
    images = images[images["is_shown"] & images["prompt_id"].isin(list(prompt_ids))]
    return images[["image_id", "prompt_id", "index", "seed"]]


def _pair_row(study: str, pair: ImagePair, texts: Mapping[str, str]) -> "Row":
    is_spoiled = pair.kind == "spoiled"
    return {
        "pair_id": content_id(study, pair.pair_id),
        "prompt_id": pair.prompt_id,
        "prompt": texts[pair.prompt_id],
        "checks": pair.checks,
        "images_a": list(pair.a),
        "images_b": list(pair.b),
        "pictures_a": [picture_id(study, image_id) for image_id in pair.a],
        "pictures_b": [picture_id(study, image_id, spoiled=is_spoiled) for image_id in pair.b],
    }
