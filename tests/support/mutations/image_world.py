"""Images of evaluation prompts in every layout that can be imported, and importing them."""

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from mutations.editing import copy_linked, put
from mutations.judging import Taker, popalign
from popalign_core.config import RuntimeConfig, parse_config
from storage.store import ArtifactRef, Store
from tasks.stages.imported import import_images
from tasks.stages.prompts import write_prompts

SUBJECTS = ("judge", "baker", "welder", "dancer", "plumber", "surgeon", "farmer", "pilot")
LAYOUTS = ("folders", "csv", "jsonl", "parquet")
SETTINGS: dict[str, Any] = {
    "axes": [{"name": "gender", "classes": ["male", "female"]}],
    "prompts": {"train_subjects": ["doctor"], "eval_subjects": list(SUBJECTS)},
}
Imported = tuple[list[tuple[str, str]], dict[str, int]]
"""Prompt and content of each image, sorted; and what was dropped, by reason."""
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """An image as it is to be laid out.

    Attributes:
        text: Of its prompt; None where nothing is to name it.
        name: Of its file, from where its metadata are.
        data: Encoded.
    """

    text: str | None
    name: str
    data: bytes


def encoded(pixels: Pixels, kind: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind, **options)
    return sink.getvalue()


class ImageWorld:
    """Eight images, one of each prompt."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = parse_config(SETTINGS)
        self._prompts = write_prompts(config=self.config, runtime=self._runtime(root / "store"))
        noise = np.random.default_rng(7)
        sizes = [(int(noise.integers(40, 100)), int(noise.integers(40, 100))) for _ in SUBJECTS]
        self.pixels: list[Pixels] = [noise.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
        self.texts = [f"a photo of a {subject}" for subject in SUBJECTS]

    @staticmethod
    def _runtime(store: Path) -> RuntimeConfig:
        return RuntimeConfig(root=str(store), device="cpu", shard_size=3)

    @property
    def pictures(self) -> list[Picture]:
        """As plain PNG."""
        found = enumerate(zip(self.texts, self.pixels, strict=True))
        return [Picture(text, f"{number:04d}.png", encoded(pixels)) for number, (text, pixels) in found]

    @cached_property
    def taker(self) -> Taker:
        """Of a list of folders and Parquet files."""
        folder = lay_out(self.root / "pristine", self.pictures, "csv", Random(0))
        return Taker([folder], self._read, self._command)

    def expected(self, *gone: str | None) -> list[tuple[str, str]]:
        """The images of all prompts but these."""
        images, _ = self.taker.expected(self.root / "expected", by_command=False)
        return [image for image in images if image[0] not in gone]

    def _read(self, paths: Sequence[Path], scratch: Path) -> Imported:
        copy_linked(self.root / "store", scratch / "store")
        runtime = self._runtime(scratch / "store")
        ref = import_images(prompts=self._prompts, sources=paths, config=self.config, runtime=runtime)
        return self._result(scratch / "store", ref)

    def _command(self, paths: Sequence[Path], scratch: Path) -> Imported:
        put(scratch / "run.json", json.dumps(SETTINGS))
        options = ["--config", str(scratch / "run.json"), "--root", str(scratch / "store")]
        key = popalign("import", "images", *map(str, paths), *options).strip()
        return self._result(scratch / "store", ArtifactRef("imported", key))

    @staticmethod
    def _result(root: Path, ref: ArtifactRef) -> Imported:
        store, texts = Store(str(root)), dict[str, str]()
        for made in store.list_artifacts():
            if made.stage in ("prompts", "identities", "benchmarks"):
                prompts = store.read_table(made, "prompts")
                texts |= dict(zip(prompts["prompt_id"], prompts["text"], strict=True))
        table, drops = store.read_table(ref, "images"), store.read_table(ref, "drops")
        images = [
            (texts[prompt_id], hashlib.sha256(image["bytes"]).hexdigest()[:12])
            for prompt_id, image in zip(table["prompt_id"], table["image"], strict=True)
        ]
        return sorted(images), dict(zip(drops["reason"], map(int, drops["n"]), strict=True))


def lay_out(folder: Path, pictures: Sequence[Picture], layout: str, random: Random) -> Path:
    """A folder of images with what names their prompts; images without a text are there and in no metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    named = [picture for picture in pictures if picture.text is not None]
    for picture in pictures:
        place = folder / picture.name
        if layout == "folders" and picture.text is not None:
            bearing = random.choice([picture.text, picture.text.replace(" ", "_"), picture.text.upper()])
            place = folder / bearing / picture.name
        put(place, picture.data)
    if layout != "folders":
        write_metadata(folder / f"metadata.{layout}", [(each.name, str(each.text)) for each in named], random)
    return folder


def write_metadata(file: Path, rows: Sequence[tuple[str, str]], random: Random) -> Path:
    """In the form that the file's ending asks for, with columns that do not count."""
    column = random.choice(["prompt", "text", "caption"])
    records = [{"seed": 7, "file_name": name, column: text} for name, text in rows]
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), file)
    elif file.suffix == ".jsonl":
        put(file, "\n".join(json.dumps(record, ensure_ascii=random.random() < 0.5) for record in records))
    else:
        sink = io.StringIO()
        writer = csv.DictWriter(sink, list(records[0]), lineterminator=random.choice(["\n", "\r\n"]))
        writer.writeheader()
        writer.writerows(records)
        put(file, sink.getvalue())
    return file


def changed(pictures: Sequence[Picture], number: int, **changes: Any) -> list[Picture]:
    """One of them changed."""
    return [replace(each, **changes) if each is pictures[number] else each for each in pictures]
