"""What studies of every kind share: the run they are made of, how they are stored, their raters and their answers."""

import hashlib
import hmac
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from popalign_core.config import PipelineConfig
from popalign_core.config.review import STUDIES, CurateConfig, LabelConfig, StudyConfig
from popalign_core.errors import InputError
from popalign_core.ids import content_id
from popalign_core.review.pairing import ImagePair
from popalign_core.review.rater_plan import plan_rater
from storage.store import ArtifactRef, Store

if TYPE_CHECKING:
    from storage.reviews.review_tables import Asked, Rater, Study, StudyPair, Vote
    from storage.reviews.votes import ReviewDatabase, Row

ConfigT = TypeVar("ConfigT", StudyConfig, LabelConfig, CurateConfig)
_OF_KIND = {StudyConfig: "studies of two systems", LabelConfig: "labels", CurateConfig: "curated sets"}

_SHIPPED = Path(__file__).parents[2] / "popalign_core" / "review"


@dataclass(frozen=True)
class NewStudy:
    """A study that is to be stored.

    Attributes:
        name: Of the study.
        config: Of its kind.
        source: What it is made of: the run, and artifacts by name.
        instructions: Markdown; None takes the shipped ones of the kind.
        texts: Prompt id -> text that raters see; empty where it would give the answer away.
        systems: The two that are judged; empty for other kinds.
    """

    name: str
    config: StudyConfig | LabelConfig | CurateConfig
    source: Mapping[str, str]
    instructions: str | None
    texts: Mapping[str, str] = field(default_factory=dict)
    systems: tuple[str, str] = ("", "")


def read_nodes(store: Store, run: str) -> dict[str, ArtifactRef]:
    """The artifacts of a run, by node.

    Raises:
        InputError: When the run is not complete.
    """
    return {node: ArtifactRef(*text.split("/")) for node, text in _read_meta(store, run)["nodes"].items()}


def read_config(store: Store, run: str) -> PipelineConfig:
    """The configuration of a run; raises as `read_nodes`."""
    return PipelineConfig.model_validate(_read_meta(store, run)["config"])


def store_study(
    database: "ReviewDatabase",
    store: Store,
    study: NewStudy,
    samples: Iterable[ArtifactRef],
    pairs: Sequence[ImagePair],
    classes: Iterable["Row"] = (),
) -> None:
    """Put a study into the database, with copies of its images sized for the screen.

    Args:
        database: Takes it.
        store: Has the images.
        study: What it is.
        samples: Artifacts of the images; two systems may share one.
        pairs: All that is asked about.
        classes: For a study of curating: what a classifier read, by pair.

    Raises:
        InputError: When there is a study of that name.
    """
    plain, spoiled = {image_id for pair in pairs for image_id in pair.a}, set[str]()
    for pair in pairs:
        (spoiled if pair.kind == "spoiled" else plain).update(pair.b)
    row = {
        "name": study.name,
        "system_a": study.systems[0],
        "system_b": study.systems[1],
        "config": study.config.model_dump(mode="json"),
        "source": dict(study.source),
        "instructions": study.instructions or _shipped_instructions(study.config),
    }
    images = _iter_screen_images(store, study.name, samples, plain, study.config.max_side, spoiled)
    database.create_study(row, images, [_pair_row(study, pair) for pair in pairs], classes)


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


def answers_table(
    database: "ReviewDatabase", name: str, table: str, columns: "Callable[[Vote, Asked, StudyPair], Row]"
) -> pd.DataFrame:
    """All answers of a study: raters under pseudonyms, no times of day, nothing that leads to a person.

    Args:
        database: Has the study.
        name: Of the study.
        table: Name of the schema.
        columns: What the table has of an answer apart from study, rater, position, prompt_id and seconds.
    """
    from storage.formats.schemas import SCHEMAS

    study = database.study(name)
    rows = [
        {
            "study": name,
            "rater": pseudonym(study, asked.rater_id),
            "position": asked.position,
            "prompt_id": pair.prompt_id,
            "seconds": vote.seconds,
            **columns(vote, asked, pair),
        }
        for vote, asked, pair in database.votes(name)
    ]
    return pd.DataFrame(rows, columns=SCHEMAS[table].names).sort_values(["rater", "position"], ignore_index=True)


def completion_code(study: "Study", rater_id: str) -> str:
    """What a rater is shown at the end and a crowd platform is given: 10 letters and digits, made from the secret."""
    return _keyed(study, "completion", rater_id)[:10].upper()


def pseudonym(study: "Study", rater_id: str) -> str:
    """A rater's name in exports. It starts with a letter: CSV readers take `49347e715232` for infinity."""
    return f"r{_keyed(study, 'export', rater_id)[:12]}"


def _keyed(study: "Study", purpose: str, rater_id: str) -> str:
    text = json.dumps([purpose, rater_id]).encode()
    return hmac.new(bytes.fromhex(study.secret), text, hashlib.sha256).hexdigest()


def _read_meta(store: Store, run: str) -> Mapping[str, Any]:
    record = store.run_folder(run).read_record()
    if record is None:
        raise InputError(f"there is no complete run {run!r} in {store.root}; see its folder runs/")
    meta: Mapping[str, Any] = record["meta"]
    return meta


def _shipped_instructions(config: StudyConfig | LabelConfig | CurateConfig) -> str:
    if isinstance(config, StudyConfig):
        name = "instructions" if config.set_size > 1 else "instructions_pictures"
    else:
        name = f"instructions_{config.kind}"
    return (_SHIPPED / f"{name}.md").read_text(encoding="utf-8")


def _pair_row(study: NewStudy, pair: ImagePair) -> "Row":
    is_spoiled = pair.kind == "spoiled"
    return {
        "pair_id": pair.pair_id,
        "prompt_id": pair.prompt_id,
        "prompt": study.texts.get(pair.prompt_id, ""),
        "checks": pair.checks,
        "images_a": list(pair.a),
        "images_b": list(pair.b),
        "pictures_a": [_picture_id(study.name, image_id) for image_id in pair.a],
        "pictures_b": [_picture_id(study.name, image_id, spoiled=is_spoiled) for image_id in pair.b],
    }


def _picture_id(study: str, image_id: str, *, spoiled: bool = False) -> str:
    """What a page knows of an image."""
    return content_id("picture", study, image_id, spoiled)


def _iter_screen_images(
    store: Store,
    study: str,
    samples: Iterable[ArtifactRef],
    image_ids: Collection[str],
    max_side: int,
    spoiled_ids: Collection[str] = (),
) -> Iterator[tuple[str, bytes]]:
    """Id and bytes of every image that a study shows, read a shard at a time.

    Args:
        store: Has the images.
        study: Its name.
        samples: Where the images are; two systems may share one.
        image_ids: Shown as they are.
        max_side: Longest side as shown, px.
        spoiled_ids: Shown blurred, for checks.
    """
    from popalign_core.review.screen_images import encode_for_screen, spoil
    from storage.formats.images import decode_png

    plain, spoiled = set(image_ids), set(spoiled_ids)
    for sample in dict.fromkeys(samples):
        for shard in store.iter_table(sample, "images", ["image_id", "image"]):
            for image_id, cell in shard[shard["image_id"].isin(plain | spoiled)].itertuples(index=False):
                pixels_u8 = decode_png(cell["bytes"])
                if image_id in plain:
                    yield _picture_id(study, image_id), encode_for_screen(pixels_u8, max_side)
                if image_id in spoiled:
                    yield _picture_id(study, image_id, spoiled=True), encode_for_screen(spoil(pixels_u8), max_side)
                plain.discard(image_id)
                spoiled.discard(image_id)
