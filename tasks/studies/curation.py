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
from popalign_core.review.pairing import ImagePair
from storage.store import ArtifactRef, Build, Store
from tasks.common.image_tables import read_images, seen_classes
from tasks.common.reservations import reserve_made
from tasks.common.stage_object import Inputs, Progress, Stage, View, find_published, reference
from tasks.studies.study_records import NewStudy, parse_kind, pseudonym, read_config, read_nodes, store_study

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
    nodes = read_nodes(store, run)
    if missing := [node for node in INPUTS if node not in nodes]:
        raise InputError(f"run {run!r} has no images for preferences: it lacks {', '.join(missing)}; name another run")
    refs = {node: nodes[node] for node in INPUTS}
    config = CurateConfig.model_validate({"axes": read_config(store, run).identity_axes, **settings})
    prompts = store.read_table(refs["identities"], "prompts")
    images = read_images(store, refs["sample"])
    found = list(_chains(prompts, images[images["is_shown"]], config))
    pairs = [_start_pair(name, prompt_id, chain) for prompt_id, chain in found if chain is not None]
    if not pairs:
        raise InputError(
            f"none of the {len(found)} prompt(s) of run {run!r} has images for a set of {config.set_size} and half as "
            "many more neutral ones; give a smaller set_size, or sample more with preferences.n_neutral"
        )
    seen = seen_classes(store.read_table(refs["attributes"], "attributes"))
    source = {"run": run} | {node: str(ref) for node, ref in refs.items()}
    texts = dict(zip(prompts["prompt_id"], prompts["text"], strict=True))
    study = NewStudy(name, config, source, instructions, texts)
    store_study(database, store, study, [refs["sample"]], pairs, [_classes_row(pair, seen) for pair in pairs])
    return len(pairs), len(found) - len(pairs)


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


def _chains(prompts: pd.DataFrame, images: pd.DataFrame, config: CurateConfig) -> Iterator[tuple[str, Chain | None]]:
    """Id of each neutral training prompt of the study, and its chain."""
    import numpy as np

    ids = {str(prompt_id): each.tolist() for prompt_id, each in images.groupby("prompt_id")["image_id"]}
    neutral = prompts[(prompts["kind"] == "neutral") & (prompts["split"] == "train")].sort_values("prompt_id")
    order = np.random.default_rng(config.seed).permutation(len(neutral))[: config.n_sets or None]
    for place in sorted(order.tolist()):
        prompt_id = str(neutral.iloc[place]["prompt_id"])
        children = prompts.loc[prompts["parent_id"] == prompt_id, "prompt_id"]
        specific = [image_id for child in children for image_id in ids.get(child, [])]
        yield prompt_id, start_chain(ids.get(prompt_id, []), specific, config.set_size, config.seed, prompt_id)


def _start_pair(study: str, prompt_id: str, chain: Chain) -> ImagePair:
    """The set at the start of a chain, and the candidates."""
    members, spare = (tuple(str(image_id) for image_id in side) for side in (chain.members, chain.spare))
    return ImagePair(content_id(study, "set", prompt_id), prompt_id, members, spare)


def _classes_row(pair: ImagePair, seen: Mapping[str, Mapping[str, str]]) -> "Row":
    return {"pair_id": pair.pair_id, "seen": {each: seen[each] for each in (*pair.a, *pair.b) if each in seen}}


def _members(study: "Study", curated: Curated) -> Iterable[tuple[Any, ...]]:
    end, curator = curated.chains[-1], pseudonym(study, curated.asked.rater_id)
    set_id = content_id("curated", study.name, curator, curated.pair.prompt_id)
    for slot, member in enumerate(end.members):
        yield study.name, set_id, curator, curated.pair.prompt_id, member, slot, end.n_accepted, end.n_undone
