"""Preference sets at scale: attribute rows out of the store into sets, and against scripts that scan lists.

For each of `--rows` a store of shards is written by a process of its own (300 prompts, two axes, 12 identities each);
another one then runs stage `preferences` on it, Parquet in and Parquet out, and says what it took at most of memory.

The peers work as public research scripts do: lists of dicts, an image belongs to a prompt whose text is inside its own,
`random.sample`, and a set counts as better by unique classes. `list scanning` is given the same tables as this project,
images and attributes, and finds an image's attributes by scanning too; `list scanning, joined` is given one list of
images with their classes, so that only the grouping is left to it. All three make as many sets of 5 of `--peer-rows`
rows, in one process, in turns.

    python benchmarks/preferences.py
    python benchmarks/preferences.py --rows 1000000 3000000 10000000

On two cores that others kept busy (load 4 to 6): 1 million rows in 5.7 s (3.2 s of CPU) and 385 MiB, 3 million in 6.3 s
of CPU and 412 MiB, 10 million in 19 s of CPU and 629 MiB; of 20,000 rows 140 to 270 times as fast as list scanning, and
4 to 22 times as fast where the join was done before.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from popalign_core.config import Axis, PipelineConfig, PreferencesConfig, PromptsConfig, RuntimeConfig
from popalign_core.identities.augment import augment_prompts
from popalign_core.preferences.set_pairs import build_sets
from popalign_core.prompts.grammar import write_prompts
from storage.store import ArtifactRef, Store
from tasks.stages.preferences import build_preferences

GENDER = Axis(name="gender", classes=("male", "female"))
RACE = Axis(name="race", classes=("white", "black", "asian", "indian", "middle eastern", "latino hispanic"))
AXES = (GENDER, RACE)
REFS = tuple(ArtifactRef(stage, f"{stage}-made-up") for stage in ("identities", "sample", "attributes"))
SHARD_IMAGES = 4096

Tables = tuple[pd.DataFrame, pd.DataFrame]
Row = dict[str, Any]


def make_config(n_prompts: int, sets: PreferencesConfig) -> PipelineConfig:
    """As many occupations; no name is inside another one."""
    names = tuple(f"occupation {number:04d}" for number in range(n_prompts))
    return PipelineConfig(axes=AXES, prompts=PromptsConfig(train_subjects=names), preferences=sets)


def make_prompts(config: PipelineConfig) -> pd.DataFrame:
    """Neutral ones and one for each identity."""
    return augment_prompts(write_prompts(config.prompts), AXES)


def make_tables(prompts: pd.DataFrame, n_images: int, generator: np.random.Generator) -> Tables:
    """Images of random prompts, half of them neutral ones and then mostly white men, and what a reader saw: 5% no face.

    Returns:
        Tables `images` and `attributes`, two rows an image.
    """
    cells = list(product(GENDER.classes, RACE.classes))
    neutral = prompts.loc[prompts["kind"] == "neutral", "prompt_id"].to_numpy(dtype=object)
    specific = prompts[prompts["kind"] == "specific"]
    asked = np.array([cells.index(tuple(dict(identity).values())) for identity in specific["identity"]])
    chosen = generator.integers(len(specific), size=n_images)
    is_neutral = generator.random(n_images) < 0.5
    prompt_ids = np.where(
        is_neutral,
        neutral[generator.integers(len(neutral), size=n_images)],
        specific["prompt_id"].to_numpy(dtype=object)[chosen],
    )
    seen = np.where(is_neutral, np.minimum(generator.geometric(0.5, n_images) - 1, len(cells) - 1), asked[chosen])
    ids = np.array([f"{number:016x}" for number in generator.integers(2**62, size=n_images)], dtype=object)
    faceless = np.repeat(generator.random(n_images) < 0.05, len(AXES))
    classes = np.array(cells, dtype=object)[seen].ravel()
    constant = {"index": 0, "seed": 0, "width": 1024, "height": 1024, "image": None, "latents_file": "none"}
    images = pd.DataFrame({"image_id": ids, "prompt_id": prompt_ids}).assign(**constant, latents_row=range(n_images))
    attributes = pd.DataFrame(
        {
            "image_id": np.repeat(ids, len(AXES)),
            "axis": np.tile([axis.name for axis in AXES], n_images),
            "class": pd.Series(classes).mask(faceless),
            "drop_reason": pd.Series("no_face", index=range(len(faceless))).where(faceless),
            "probability": generator.random(len(faceless), dtype=np.float32),
            "box": pd.Series([[0.0, 0.0, 500.0, 500.0]] * len(faceless), dtype=object),
        }
    )
    return images, attributes.assign(n_faces=1, detector_score=0.9, classifier="made-up@1")


def write_store(root: str, n_rows: int, config: PipelineConfig) -> None:
    """A store as the stages before leave it, a shard at a time."""
    store, prompts, generator = Store(root), make_prompts(config), np.random.default_rng(n_rows)
    with store.build(REFS[0], {}) as build:
        build.write_table("prompts", prompts)
    n_images = n_rows // len(AXES)
    with store.build(REFS[1], {}) as sample, store.build(REFS[2], {}) as readings:
        for shard, start in enumerate(range(0, n_images, SHARD_IMAGES)):
            images, attributes = make_tables(prompts, min(SHARD_IMAGES, n_images - start), generator)
            sample.write_table("images", images, shard=shard)
            readings.write_table("attributes", attributes, shard=shard)


def run_stage(root: str, config: PipelineConfig) -> Row:
    """Stage `preferences` on a store; seconds, and the most memory this process ever had."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    ref = build_preferences(*REFS, config=config, runtime=RuntimeConfig(root=root))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    n_members = Store(root).manifest(ref).rows["preferences"]
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "peak_rss_mib": round(peak / 1024),
        "peak_rss_before_mib": round(before / 1024),
        "members_of_sets": n_members,
    }


def measure(n_rows: int, options: argparse.Namespace) -> Row:
    """One size: the store is written and the stage is run in processes of their own."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        same = ["--prompts", str(options.prompts), "--set-size", str(options.set_size), "--sets", str(options.sets)]
        command = [sys.executable, str(Path(__file__)), "--rows", str(n_rows), "--root", f"{folder}/store", *same]
        subprocess.run([*command, "--do", "write"], check=True)
        done = subprocess.run([*command, "--do", "run"], check=True, capture_output=True, text=True)
    row: Row = json.loads(done.stdout)
    return {"rows": n_rows} | row | {"rows_per_s": round(n_rows / row["seconds"])}


def scan_lists(subjects: list[str], images: list[Row], find_classes: Callable[[Row], Row], n_sets: int) -> list[Row]:
    """What public scripts do: every prompt looks at every image, and takes those whose text holds its own."""
    made = []
    draw = random.Random(0)
    for subject in subjects:
        groups = {
            kind: [image for image in images if image["kind"] == kind and subject in image["prompt"]]
            for kind in ("specific", "neutral")
        }
        read = {kind: [image | find_classes(image) for image in group] for kind, group in groups.items()}
        for _ in range(n_sets):
            sets = {kind: draw.sample(group, min(5, len(group))) for kind, group in read.items()}
            unique = {
                kind: [len({image.get(axis.name) for image in members}) for axis in AXES]
                for kind, members in sets.items()
            }
            if any(one >= other for one, other in zip(unique["specific"], unique["neutral"], strict=True)):
                made.append(sets)
    return made


def compare(options: argparse.Namespace) -> Row:
    """This project and the peers on the same tables; the best of three rounds each, the slow peer's of one."""
    config = make_config(options.prompts, PreferencesConfig(set_size=5, n_sets=3))
    prompts = make_prompts(config)
    images, attributes = make_tables(prompts, options.peer_rows // len(AXES), np.random.default_rng(0))
    of_prompt = prompts.set_index("prompt_id")
    texts, kinds = (images["prompt_id"].map(of_prompt[name]).tolist() for name in ("text", "kind"))
    listed = [
        {"image_id": image_id, "prompt": text, "kind": kind}
        for image_id, text, kind in zip(images["image_id"].tolist(), texts, kinds, strict=True)
    ]
    readings = attributes[["image_id", "axis", "class"]].to_dict("records")
    joined: dict[str, Row] = {row["image_id"]: {} for row in listed}
    for reading in readings:
        joined[reading["image_id"]][reading["axis"]] = reading["class"]
    subjects = list(config.prompts.train_subjects)

    def by_scanning(image: Row) -> Row:
        return {row["axis"]: row["class"] for row in readings if row["image_id"] == image["image_id"]}

    systems: dict[str, tuple[int, Callable[[], object]]] = {
        "popalign": (5, lambda: build_sets(prompts, images, attributes, AXES, config.preferences)),
        "list scanning": (1, lambda: scan_lists(subjects, listed, by_scanning, 3)),
        "list scanning, joined": (3, lambda: scan_lists(subjects, listed, lambda row: joined[row["image_id"]], 3)),
    }
    best = {name: min(_seconds(call) for _ in range(rounds)) for name, (rounds, call) in systems.items()}
    return {
        "rows": len(attributes),
        "seconds": {name: round(value, 3) for name, value in best.items()},
        "ratio": {name: round(value / best["popalign"], 1) for name, value in best.items()},
    }


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    for name, default in (("--prompts", 300), ("--set-size", 60), ("--sets", 10), ("--peer-rows", 20_000)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--folder", help="where the stores are written; the system's temporary folder if not given")
    parser.add_argument("--do", choices=("write", "run"), help=argparse.SUPPRESS)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run and print one JSON object."""
    options = parse_options()
    config = make_config(options.prompts, PreferencesConfig(set_size=options.set_size, n_sets=options.sets))
    if options.do == "write":
        write_store(options.root, options.rows[0], config)
        return
    if options.do == "run":
        result = run_stage(options.root, config)
    else:
        sizes = [measure(n_rows, options) for n_rows in options.rows]
        result = {"stage": sizes, "against_scripts": compare(options), "settings": vars(options)}
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
