"""Studies in which people curate sets: made from a run's preference images; the finished sets are an artifact."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import pandas as pd

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.config.review import CurateConfig
from popalign_core.errors import InputError
from popalign_core.ids import content_id
from popalign_core.preferences.chain import Chain
from popalign_core.review.curation_chains import iter_chain, start_chain
from storage.store import ArtifactRef, Build, Store
from tasks.common.image_tables import read_images, seen_classes
from tasks.common.reservations import reserve_made
from tasks.common.stage_object import Inputs, Progress, Stage, View, find_published, reference
from tasks.studies.pairwise import SHIPPED, parse_kind, pseudonym, read_nodes
from tasks.studies.study_images import iter_study_images, picture_id

if TYPE_CHECKING:
    from storage.reviews.review_tables import Asked, Study, StudyPair
    from storage.reviews.votes import ReviewDatabase, Row

INPUTS = ("identities", "sample", "attributes")


class CuratedView(View):
    """The finished sets of a study: table `curated`, from the study's database."""

    table: Any

    @classmethod
    def of(cls, config: PipelineConfig, inputs: Mapping[str, ArtifactRef], *, table: pd.DataFrame) -> Self:
        """Nothing of the configuration."""
        return cls(table=table)

    def hashed(self) -> dict[str, Any]:
        """All that is in the table."""
        return {"sets": content_id(*self.table.astype(str).to_numpy().ravel().tolist())}


def _fill(view: CuratedView, inputs: Inputs, build: Build, runtime: RuntimeConfig, on_progress: Progress) -> None:
    """Write table `curated`."""
    build.write_table("curated", view.table)


CURATED = Stage("curated", "1", CuratedView.of, _fill, inputs=INPUTS)


@dataclass(frozen=True)
class Curated:
    """A chain that was begun.

    Attributes:
        asked: Whose it is.
        pair: Its images.
        chains: The chain at its start and after each step.
        choice: How it ended; "" while it is going on.
        seconds: Of all its steps.
    """

    asked: "Asked"
    pair: "StudyPair"
    chains: tuple[Chain, ...]
    choice: str
    seconds: float


def create_curation(
    database: "ReviewDatabase",
    store: Store,
    name: str,
    run: str,
    *,
    settings: Mapping[str, Any],
    instructions: str | None = None,
) -> tuple[int, int]:
    """Make a study of the images that a run sampled for its preferences: a chain for each neutral training prompt.

    Args:
        database: Takes it.
        store: Has the images.
        name: Of the study.
        run: Name of the run's folder.
        settings: Fields of `CurateConfig`; the axes are the run's.
        instructions: Markdown; the shipped ones when not given.

    Returns:
        The number of sets, and of prompts left out since they have too few images.

    Raises:
        InputError: When the run has no such images, no prompt has enough, or there is a study of that name.
    """
    refs, config = _read_run(store, run, settings)
    prompts = store.read_table(refs["identities"], "prompts")
    images = read_images(store, refs["sample"])
    found = list(_chains(prompts, images[images["is_shown"]], config))
    chains = [(prompt, chain) for prompt, chain in found if chain is not None]
    if not chains:
        raise InputError(
            f"none of the {len(found)} prompt(s) of run {run!r} has images for a set of {config.set_size} and half as "
            "many neutral ones besides; give a smaller set_size, or sample more with preferences.n_neutral"
        )
    seen = seen_classes(store.read_table(refs["attributes"], "attributes"))
    rows = [_row(name, prompt, chain) for prompt, chain in chains]
    classes = [_classes_row(row, seen) for row in rows]
    study = {
        "name": name,
        "system_a": "",
        "system_b": "",
        "config": config.model_dump(mode="json"),
        "source": {"run": run} | {node: str(ref) for node, ref in refs.items()},
        "instructions": instructions or (SHIPPED / "instructions_curate.md").read_text(encoding="utf-8"),
    }
    shown = {image_id for row in rows for image_id in (*row["images_a"], *row["images_b"])}
    screen_images = iter_study_images(store, name, [refs["sample"]], shown, config.max_side)
    database.create_study(study, screen_images, rows, classes)
    return len(chains), sum(chain is None for _, chain in found)


def iter_curated(database: "ReviewDatabase", name: str) -> Iterator[Curated]:
    """All chains of a study that were begun, by curator and place."""
    from storage.reviews.chain_steps import read_all_steps, read_asked

    steps, votes = read_all_steps(database, name), {vote.asked_id: vote for vote, _, _ in database.votes(name)}
    for asked, pair in read_asked(database, name):
        vote, taken = votes.get(asked.asked_id), steps.get(asked.asked_id, [])
        if vote is not None or taken:
            chains = tuple(iter_chain(pair.images_a, pair.images_b, taken))
            yield Curated(asked, pair, chains, vote.choice if vote else "", sum(step.seconds for step in taken))


def curated_table(database: "ReviewDatabase", name: str) -> pd.DataFrame:
    """Table `curated`: the sets whose curator was content."""
    from storage.formats.schemas import SCHEMAS
    from storage.reviews.review_tables import DONE

    study = database.study(name)
    parse_kind(study, CurateConfig)
    rows = [row for each in iter_curated(database, name) if each.choice == DONE for row in _members(study, each)]
    table = pd.DataFrame(rows, columns=SCHEMAS["curated"].names).sort_values(["set_id", "slot"], ignore_index=True)
    return table.astype({"slot": "int32", "n_accepted": "int32", "n_undone": "int32"})


def publish_curated(database: "ReviewDatabase", store: Store, name: str) -> ArtifactRef:
    """Publish the finished sets as an artifact; the same sets again are the same artifact.

    Raises:
        InputError: When no set is finished, or the study is another than one of curating.
    """
    table = curated_table(database, name)
    if table.empty:
        raise InputError(f"no set of study {name!r} is finished; `popalign study links {name}` shows how far it is")
    inputs = {node: ArtifactRef(*database.study(name).source[node].split("/")) for node in INPUTS}
    request, runtime = CURATED.ask(CuratedView(table=table), inputs), RuntimeConfig(root=store.root)
    reserve_made([*inputs.values(), reference(store, request)], runtime, f"study-{name}")
    return CURATED.make(request, runtime)


def find_curated(store: Store, key: str) -> ArtifactRef:
    """The published sets of a key.

    Raises:
        InputError: When there are none.
    """
    return find_published(store, CURATED.name, key, what="curated sets", made_by="popalign study publish NAME")


def _read_run(store: Store, run: str, settings: Mapping[str, Any]) -> tuple[dict[str, ArtifactRef], CurateConfig]:
    nodes = read_nodes(store, run)
    missing = [node for node in INPUTS if node not in nodes]
    if missing:
        raise InputError(f"run {run!r} has no images for preferences: it lacks {', '.join(missing)}; name another run")
    record = store.run_folder(run).read_record() or {}
    axes = PipelineConfig.model_validate(record["meta"]["config"]).identity_axes
    config = CurateConfig.model_validate({"axes": axes, **settings})
    return {node: nodes[node] for node in INPUTS}, config


def _chains(
    prompts: pd.DataFrame, images: pd.DataFrame, config: CurateConfig
) -> "Iterator[tuple[pd.Series[Any], Chain | None]]":
    """Each neutral training prompt that is sampled, and its chain."""
    import numpy as np

    ids = {str(prompt_id): each.tolist() for prompt_id, each in images.groupby("prompt_id")["image_id"]}
    neutral = prompts[(prompts["kind"] == "neutral") & (prompts["split"] == "train")].sort_values("prompt_id")
    order = np.random.default_rng(config.seed).permutation(len(neutral))[: config.n_sets or None]
    for place in sorted(order.tolist()):
        prompt = neutral.iloc[place]
        children = prompts.loc[prompts["parent_id"] == prompt["prompt_id"], "prompt_id"]
        specific = [image_id for child in children for image_id in ids.get(child, [])]
        own = ids.get(prompt["prompt_id"], [])
        yield prompt, start_chain(own, specific, config.set_size, config.seed, prompt["prompt_id"])


def _row(study: str, prompt: "pd.Series[Any]", chain: Chain) -> "dict[str, Any]":
    sides = {"a": [str(member) for member in chain.members], "b": [str(member) for member in chain.spare]}
    return {
        "pair_id": content_id(study, "set", prompt["prompt_id"]),
        "prompt_id": prompt["prompt_id"],
        "prompt": prompt["text"],
        "checks": "",
        **{f"images_{side}": ids for side, ids in sides.items()},
        **{f"pictures_{side}": [picture_id(study, image_id) for image_id in ids] for side, ids in sides.items()},
    }


def _classes_row(row: "Row", seen: Mapping[str, Mapping[str, str]]) -> "Row":
    image_ids = (*row["images_a"], *row["images_b"])
    return {"pair_id": row["pair_id"], "seen": {image_id: seen[image_id] for image_id in image_ids if image_id in seen}}


def _members(study: "Study", curated: Curated) -> Iterable[tuple[Any, ...]]:
    end, curator = curated.chains[-1], pseudonym(study, curated.asked.rater_id)
    set_id = content_id("curated", study.name, curator, curated.pair.prompt_id)
    for slot, member in enumerate(end.members):
        yield study.name, set_id, curator, curated.pair.prompt_id, member, slot, end.n_accepted, end.n_undone
