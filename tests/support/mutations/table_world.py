"""Whole tables of every sort that is taken, and what the product makes of them."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from image_files import write_parquet
from pair_files import pair, write_pairs
from safetensors.torch import load_file
from set_files import two_sets, write_sets
from sibling_types import BOOLEANS, IMAGES, NUMBERS, SHARES, TEXTS, WHOLES
from tiny_models import MODELS

from mutations.editing import put
from mutations.image_world import ImageWorld
from mutations.judging import Taker, popalign
from mutations.model_world import digest
from popalign_core.attributes.people_labels import read_labels
from popalign_core.config import RuntimeConfig, parse_config
from storage.store import ArtifactRef, Store
from tasks.stages.pairs import import_pairs
from tasks.stages.prompts import write_prompts
from tasks.stages.sets import import_sets

LISTED = ("baker", "carpenter", "deep sea diver", "violin maker", "judge", "pilot in a blue cockpit", "welder", "chef")
LABELLED = {
    "image_id": list("aabbcd"),
    "axis": ["hair", "mood"] * 2 + ["hair"] * 2,
    "class": ["long", "calm", "NA", "None", "short", "null"],
}
Makes = Mapping[str, Any]


@dataclass(frozen=True)
class Sort:
    """A sort of table.

    Attributes:
        name: Of the sort.
        taker: Of a list of Parquet files.
        columns: That count, and the types that each may have.
        optional: Those that need not be there.
    """

    name: str
    taker: Taker
    columns: Mapping[str, Makes]
    optional: frozenset[str] = frozenset()

    @cached_property
    def table(self) -> pa.Table:
        return pq.read_table(self.taker.pristine[0])


class TableWorld:
    """Tables of ten pairs, two sets, eight images, six labels, eight prompts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images = ImageWorld(root / "images")
        MODELS["sdxl-v"]().save_pretrained(root / "model", safe_serialization=True)
        self.settings = {
            "model": {"name": str(root / "model")},
            "axes": [{"name": "gender", "classes": ["male", "female"]}],
            "prompts": {"train_subjects": ["doctor"], "eval_subjects": ["nurse"]},
            "sampling": {"width": 64, "height": 64},
        }
        self._config = parse_config(self.settings)
        self._sorts: dict[str, Sort] = {}

    def sort(self, name: str) -> Sort:
        if name not in self._sorts:
            self._sorts[name] = {
                "pairs": self._pairs,
                "sets": self._sets,
                "images": self._images,
                "labels": self._labels,
                "prompts": self._prompts,
            }[name]()
        return self._sorts[name]

    def any_sort(self, random: Random, *names: str) -> Sort:
        """One of those named, or of all."""
        return self.sort(random.choice(names or ("pairs", "sets", "images", "labels", "prompts")))

    def expected(self, sort: Sort) -> Any:
        """What comes of the whole table."""
        return sort.taker.expected(self.root / "expected" / sort.name, by_command=False)

    def _pairs(self) -> Sort:
        rows = [pair(n, first_is_better=n % 2 == 0, caption=f"number {n}") for n in range(10)]
        columns = {"jpg_0": IMAGES, "jpg_1": IMAGES, "label_0": BOOLEANS, "caption": TEXTS, "has_label": BOOLEANS}
        taker = self._encoding("pairs", write_pairs(self.root / "pairs.parquet", rows), import_pairs)
        return Sort("pairs", taker, columns, frozenset(("has_label",)))

    def _sets(self) -> Sort:
        columns = {"set_id": TEXTS, "role": TEXTS, "caption": TEXTS, "image": IMAGES, "slot": WHOLES}
        more = {"discrepancy": NUMBERS, "balance": NUMBERS, "target": SHARES}
        taker = self._encoding("sets", write_sets(self.root / "sets.parquet", two_sets()), import_sets)
        return Sort("sets", taker, columns | more, frozenset(("slot", *more)))

    def _images(self) -> Sort:
        rows = [(picture.text, picture.data) for picture in self.images.pictures]
        file = write_parquet(self.root / "images.parquet", rows)
        whole = self.images.taker
        return Sort("images", Taker([file], whole.read, whole.command), {"image": IMAGES, "caption": TEXTS})

    def _labels(self) -> Sort:
        pq.write_table(pa.table(LABELLED), self.root / "labels.parquet")
        taker = Taker([self.root / "labels.parquet"], lambda given, scratch: read_labels(given[0]).to_numpy().tolist())
        return Sort("labels", taker, dict.fromkeys(LABELLED, TEXTS))

    def _prompts(self) -> Sort:
        return Sort("prompts", self.lists, {"subject": TEXTS})

    @cached_property
    def lists(self) -> Taker:
        """Of lists of prompts in any form."""

        pq.write_table(pa.table({"subject": list(LISTED), "n": range(8)}), self.root / "prompts.parquet")

        def config(given: Sequence[Path]) -> dict[str, Any]:
            prompts = {"train_lists": list(map(str, given)), "eval_subjects": ["nurse"]}
            return self.settings | {"prompts": prompts}

        def read(given: Sequence[Path], scratch: Path) -> Any:
            runtime = RuntimeConfig(root=str(scratch / "store"), device="cpu")
            return kept(Store(runtime.root), write_prompts(config=parse_config(config(given)), runtime=runtime))

        def command(given: Sequence[Path], scratch: Path) -> Any:
            file = put(scratch / "run.json", json.dumps(config(given)))
            said = popalign("stage", "prompts", "--config", str(file), "--root", str(scratch / "store"))
            return kept(Store(str(scratch / "store")), ArtifactRef(*said.split()[-3].split("/")))

        return Taker([self.root / "prompts.parquet"], read, command)

    def _encoding(self, what: str, file: Path, run: Any) -> Taker:
        def read(given: Sequence[Path], scratch: Path) -> Any:
            # an image at a time: what others are encoded with it would show in its last bits
            runtime = RuntimeConfig(root=str(scratch / "store"), device="cpu", batch_size=1, shard_size=4)
            return _encoded(Store(runtime.root), run(files=given, config=self._config, runtime=runtime))

        def command(given: Sequence[Path], scratch: Path) -> Any:
            settings = put(scratch / "run.json", json.dumps(self.settings))
            options = ["--config", str(settings), "--root", str(scratch / "store"), "--set", "runtime.batch_size=1"]
            options += ["--set", "runtime.shard_size=4"]
            key = popalign("import", what, *map(str, given), *options).strip()
            return _encoded(Store(str(scratch / "store")), ArtifactRef(what, key))

        return Taker([file], read, command)


def _drops(store: Store, ref: ArtifactRef) -> dict[str, int]:
    drops = store.read_table(ref, "drops")
    return dict(zip(drops["reason"], map(int, drops["n"]), strict=True))


def _encoded(store: Store, ref: ArtifactRef) -> Any:
    """Caption, role and latents of each member, with what is known of its set; and what was dropped."""
    prompts = store.read_table(ref, "prompts")
    texts = dict(zip(prompts["prompt_id"], prompts["text"], strict=True))
    images = store.read_table(ref, "images").set_index("image_id")
    folder = Path(store.localize(ref))
    latents = {path.name: next(iter(load_file(path).values())) for path in folder.glob("latents-*.safetensors")}
    members = []
    for row in store.read_table(ref, "preferences").to_dict("records"):
        image = images.loc[row["image_id"]]
        place = latents[Path(image["latents_file"]).name][int(image["latents_row"])]
        of_set = () if ref.stage == "pairs" else (row["set_id"], row["slot"], row["discrepancy"], str(row["target"]))
        members.append((texts[row["prompt_id"]], row["role"], digest(place), *of_set))
    return sorted(members), _drops(store, ref)


def kept(store: Store, ref: ArtifactRef) -> Any:
    """The training prompts, and what was rejected, by reason."""
    prompts = store.read_table(ref, "prompts")
    rejected = Counter(store.read_table(ref, "rejected")["reason"])
    return sorted(prompts["text"][prompts["split"] == "train"]), dict(rejected)
