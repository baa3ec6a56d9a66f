"""Images drawn elsewhere: measured like a sample, counted when dropped, done again shard by shard after a stop."""

import random
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chessboards import lit
from image_files import Named, write_csv, write_jsonl, write_parquet, write_subfolders
from pair_files import picture

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import InputError
from popalign_core.models import pixels
from popalign_core.models.pixels import fit_image
from storage.formats.external_images import ImageSource
from storage.formats.images import decode_png, encode_png
from storage.store import ArtifactRef
from tasks.common.stage_object import open_store, reference
from tasks.stages.attributes import read_attributes
from tasks.stages.evaluate import evaluate_system
from tasks.stages.identities import add_identities
from tasks.stages.imported import ImportedView, count_prompts, find_imported, import_images
from tasks.stages.prompts import write_prompts
from tasks.stages.sample import sample_images
from tasks.stages.scores import score_images

N_IMAGES = {"neutral": 6, "specific": 2, "generic": 2}
"""Of every evaluation prompt: 2 neutral, 4 specific and 2 generic ones, so 24 in all."""


@pytest.fixture
def prompts(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> ArtifactRef:
    return make_prompts(tiny_config, tiny_runtime)


@pytest.fixture
def evaluated(prompts: ArtifactRef, tiny_runtime: RuntimeConfig) -> pd.DataFrame:
    table = open_store(tiny_runtime).read_table(prompts, "prompts")
    return table[table["split"] == "eval"]


@pytest.fixture
def rows(evaluated: pd.DataFrame) -> list[Named]:
    """Images of all evaluation prompts, wider than the model's; the prompts take turns."""
    texts = [
        (text, turn)
        for text, kind in zip(evaluated["text"], evaluated["kind"], strict=True)
        for turn in range(6)
        if turn < N_IMAGES[kind]
    ]
    texts.sort(key=lambda found: found[1])
    return [(text, wide_picture(seed)) for seed, (text, _) in enumerate(texts)]


def wide_picture(seed: int) -> bytes:
    """80 x 64 px, whose middle is a man's or a woman's picture."""
    values = decode_png(picture(40 + 7 * seed, seed=seed, kind="PNG")).copy()
    values[:, 8:72] = lit(values[:, 8:72], ("male", "female")[seed // 3 % 2])
    return encode_png(values)


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all pictures that were decoded."""
    sizes: list[int] = []
    original = pixels.fit_image

    def counting(data: bytes, width: int, height: int) -> object:
        sizes.append(len(data))
        return original(data, width, height)

    monkeypatch.setattr(pixels, "fit_image", counting)
    return sizes


def make_prompts(config: PipelineConfig, runtime: RuntimeConfig) -> ArtifactRef:
    return add_identities(write_prompts(config=config, runtime=runtime), config=config, runtime=runtime)


def named_by_id(rows: Sequence[Named], evaluated: pd.DataFrame) -> list[Named]:
    ids = dict(zip(evaluated["text"], evaluated["prompt_id"], strict=True))
    return [(ids[str(text)], data) for text, data in rows]


def read_tables(runtime: RuntimeConfig, ref: ArtifactRef) -> dict[str, bytes]:
    folder = Path(open_store(runtime).localize(ref))
    return {path.name: path.read_bytes() for path in folder.rglob("*.parquet")}


@pytest.mark.parametrize("form", ["csv", "jsonl", "sub-folders", "parquet"])
def test_imported_pictures_are_measured_like_a_sample(
    prompts: ArtifactRef,
    evaluated: pd.DataFrame,
    rows: list[Named],
    tiny_config: PipelineConfig,
    tiny_runtime: RuntimeConfig,
    tmp_path: Path,
    form: str,
) -> None:
    source = {
        "csv": lambda: write_csv(tmp_path / "csv", rows),
        "jsonl": lambda: write_jsonl(tmp_path / "jsonl", named_by_id(rows, evaluated), "prompt_id"),
        "sub-folders": lambda: write_subfolders(
            tmp_path / "folders", [(str(text).upper().replace(" ", "_"), data) for text, data in rows]
        ),
        "parquet": lambda: write_parquet(tmp_path / "rows.parquet", rows),
    }[form]()
    both = {"config": tiny_config, "runtime": tiny_runtime}
    ref = import_images(prompts, sources=[source], **both)
    store = open_store(tiny_runtime)
    images = store.read_table(ref, "images")
    assert len(images) == images["image_id"].nunique() == 24
    for prompt_id, kind in zip(evaluated["prompt_id"], evaluated["kind"], strict=True):
        assert images.loc[images["prompt_id"] == prompt_id, "index"].tolist() == list(range(N_IMAGES[kind]))
    constant = images[["seed", "width", "height", "latents_file", "latents_row"]].drop_duplicates()
    assert constant.values.tolist() == [[-1, 64, 64, "", -1]]
    texts = evaluated.set_index("prompt_id")["text"][images["prompt_id"]]
    shown = {(text, decode_png(cell["bytes"]).tobytes()) for text, cell in zip(texts, images["image"], strict=True)}
    assert shown == {(text, fit_image(data, 64, 64).tobytes()) for text, data in rows}
    assert store.read_table(ref, "drops").empty
    assert count_prompts(store, prompts, ref) == (8, 8)

    faces, marks = read_attributes(prompts, ref, **both), score_images(prompts, ref, **both)
    metrics = store.read_table(evaluate_system(prompts, ref, faces, marks, system="elsewhere", **both), "metrics")
    found = metrics.set_index(["benchmark", "metric", "axis"])
    assert set(metrics["system"]) == {"elsewhere"}
    assert found.loc[("neutral", "no_face_share", ""), "n"] == 12
    assert found.loc[("generic", "subject_accuracy", ""), "n"] == 4
    assert {("neutral", "discrepancy_pooled", "gender"), ("specific", "recall", "gender")} <= set(found.index)
    assert np.isfinite(metrics["value"]).all()


def test_a_samples_own_pictures_have_the_samples_metrics(
    prompts: ArtifactRef, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    """Drawn here, taken away as a Parquet file, imported again: the same values."""
    both = {"config": tiny_config, "runtime": tiny_runtime}
    sample, store = sample_images(prompts, purpose="evaluation", **both), open_store(tiny_runtime)
    drawn = store.read_table(sample, "images")
    path = tmp_path / "drawn.parquet"
    drawn[["prompt_id", "image"]].to_parquet(path)
    imported = import_images(prompts, sources=[path], **both)
    values = []
    for images in (sample, imported):
        faces, marks = read_attributes(prompts, images, **both), score_images(prompts, images, **both)
        metrics = evaluate_system(prompts, images, faces, marks, system="one", **both)
        values.append(store.read_table(metrics, "metrics"))
    assert store.manifest(imported).rows == {"images": 28, "drops": 0}
    pd.testing.assert_frame_equal(*values)


@pytest.mark.parametrize("kind", ["neutral", "specific", "generic"])
def test_pictures_of_a_few_prompts_will_do(
    prompts: ArtifactRef,
    evaluated: pd.DataFrame,
    rows: list[Named],
    tiny_config: PipelineConfig,
    tiny_runtime: RuntimeConfig,
    tmp_path: Path,
    kind: str,
) -> None:
    chosen = evaluated.loc[evaluated["kind"] == kind, "text"].tolist()
    both = {"config": tiny_config, "runtime": tiny_runtime}
    ref = import_images(
        prompts, sources=[write_csv(tmp_path / "csv", [row for row in rows if row[0] in chosen])], **both
    )
    store = open_store(tiny_runtime)
    assert count_prompts(store, prompts, ref) == (len(chosen), 8)
    faces, marks = read_attributes(prompts, ref, **both), score_images(prompts, ref, **both)
    metrics = store.read_table(evaluate_system(prompts, ref, faces, marks, system="few", **both), "metrics")
    assert set(metrics["benchmark"]) == {kind}


def test_every_picture_is_kept_or_counted(
    prompts: ArtifactRef,
    rows: list[Named],
    tiny_config: PipelineConfig,
    tiny_runtime: RuntimeConfig,
    tmp_path: Path,
) -> None:
    """One bad picture among the first prompt's: its other pictures are numbered without a gap."""
    first, other, good = str(rows[0][0]), str(rows[1][0]), rows[0][1]
    bad: list[Named] = [
        (first, b"no picture"),
        (first, good),
        (first, good),
        (first, None),
        (None, picture(9)),
        (" ", picture(9)),
        ("a photo of a doctor", picture(9)),  # a training prompt
        ("a photo of the moon", picture(9)),
        ("a photo of nobody", picture(9)),
        (other, good),  # another prompt may have the same picture
    ]
    path = write_parquet(tmp_path / "rows.parquet", [*rows[:5], *bad, *rows[5:]])
    ref = import_images(prompts, sources=[path], config=tiny_config, runtime=tiny_runtime)
    store = open_store(tiny_runtime)
    drops, images = store.read_table(ref, "drops"), store.read_table(ref, "images")
    assert set(drops["stage"]) == {"imported"}
    assert dict(zip(drops["reason"], drops["n"], strict=True)) == {
        **{"missing image": 1, "no evaluation prompt": 3, "no prompt named": 2},
        **{"same image twice": 2, "undecodable image": 1},
    }
    assert len(images) + drops["n"].sum() == len(rows) + len(bad)
    assert store.manifest(ref).counts == {"images": 25}
    assert all(part["index"].tolist() == list(range(len(part))) for _, part in images.groupby("prompt_id"))


def test_a_shard_without_a_usable_picture_does_no_harm(
    prompts: ArtifactRef, rows: list[Named], tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    torn: list[Named] = [(rows[0][0], b"torn %d" % number) for number in range(8)]
    both = {"config": tiny_config, "runtime": tiny_runtime}
    path = write_parquet(tmp_path / "rows.parquet", [*rows[:8], *torn, *rows[8:]])
    ref, store = import_images(prompts, sources=[path], **both), open_store(tiny_runtime)
    assert [len(shard) for shard in store.iter_table(ref, "images")] == [8, 0, 8, 8]
    faces, marks = read_attributes(prompts, ref, **both), score_images(prompts, ref, **both)
    metrics = store.read_table(evaluate_system(prompts, ref, faces, marks, system="torn", **both), "metrics")
    assert metrics.set_index(["benchmark", "metric"]).loc[("neutral", "clip_score"), "n"] == 12


def test_no_usable_picture_is_an_error_that_names_both_sides(
    prompts: ArtifactRef, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    strange: list[Named] = [(f"a photo of number {n}", picture(9, seed=n)) for n in (1, 1, 2, 3, 4)]
    message = (
        r"\[imported/imported-v2-.*\] none of the 5 image\(s\) can be used: {'no evaluation prompt': 5}; they name "
        r"'a photo of number 1', 'a photo of number 2', 'a photo of number 3'; evaluation prompts are 'a photo of a "
        r"judge', 'a photo of a dancer', .*; name each image's by prompt_id or by its exact text"
    )
    with pytest.raises(InputError, match=message):
        import_images(
            prompts, sources=[write_parquet(tmp_path / "a.parquet", strange)], config=tiny_config, runtime=tiny_runtime
        )
    torn = write_parquet(tmp_path / "b.parquet", [("a photo of a judge", b"torn")])
    with pytest.raises(InputError, match=r"{'undecodable image': 1}; evaluation prompts are 'a photo of a judge'"):
        import_images(prompts, sources=[torn], config=tiny_config, runtime=tiny_runtime)


def test_neither_order_nor_place_changes_key_or_tables(
    prompts: ArtifactRef, rows: list[Named], tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    other = tiny_runtime.model_copy(update={"root": str(tmp_path / "other"), "shard_size": 8})
    assert make_prompts(tiny_config, other) == prompts
    shuffled = random.Random(1).sample(rows[6:], len(rows) - 6)
    one = [write_csv(tmp_path / "z", rows[6:]), write_parquet(tmp_path / "1.parquet", rows[:6])]
    two = [write_parquet(tmp_path / "9.parquet", rows[:6], group=1), write_jsonl(tmp_path / "a", shuffled)]
    refs = [
        import_images(prompts, sources=sources, config=tiny_config, runtime=runtime)
        for sources, runtime in ((one, tiny_runtime), (two, other))
    ]
    assert refs[0] == refs[1]
    assert read_tables(tiny_runtime, refs[0]) == read_tables(other, refs[0])


def test_shards_change_nothing_and_a_second_import_is_a_hit(
    prompts: ArtifactRef,
    rows: list[Named],
    tiny_config: PipelineConfig,
    tiny_runtime: RuntimeConfig,
    tmp_path: Path,
    fitted: list[int],
) -> None:
    other = tiny_runtime.model_copy(update={"root": str(tmp_path / "other"), "shard_size": 5})
    make_prompts(tiny_config, other)
    source = write_csv(tmp_path / "csv", rows)
    tables = []
    for runtime in (tiny_runtime, other):
        ref = import_images(prompts, sources=[source], config=tiny_config, runtime=runtime)
        tables.append(open_store(runtime).read_table(ref, "images"))
    pd.testing.assert_frame_equal(*tables)
    assert len(fitted) == 48
    import_images(prompts, sources=[source], config=tiny_config, runtime=other)
    assert len(fitted) == 48


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_stopped_import_redoes_no_finished_shard_and_ends_the_same(
    prompts: ArtifactRef,
    rows: list[Named],
    tiny_config: PipelineConfig,
    tiny_runtime: RuntimeConfig,
    tmp_path: Path,
    fitted: list[int],
    form: str,
) -> None:
    def stop(done: int, total: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    torn = [*rows[:3], (rows[0][0], b"torn"), *rows[3:]]  # the numbers after it hang on what came before
    source = write_csv(tmp_path / "csv", torn) if form == "csv" else write_parquet(tmp_path / "rows.parquet", torn)
    with pytest.raises(KeyboardInterrupt):
        import_images(prompts, sources=[source], config=tiny_config, runtime=tiny_runtime, on_progress=stop)
    assert len(fitted) == 20  # two shards of 8 and half of the third
    seen: list[tuple[int, int]] = []
    ref = import_images(
        prompts,
        sources=[source],
        config=tiny_config,
        runtime=tiny_runtime,
        on_progress=lambda *progress: seen.append(progress),
    )
    assert seen == [(done, 25) for done in range(16, 26)]
    assert len(fitted) == 20 + 9
    whole = tiny_runtime.model_copy(update={"root": str(tmp_path / "undisturbed")})
    make_prompts(tiny_config, whole)
    assert import_images(prompts, sources=[source], config=tiny_config, runtime=whole) == ref
    assert read_tables(tiny_runtime, ref) == read_tables(whole, ref)


def test_a_damaged_shard_alone_is_done_again(
    prompts: ArtifactRef,
    rows: list[Named],
    tiny_config: PipelineConfig,
    tiny_runtime: RuntimeConfig,
    tmp_path: Path,
    fitted: list[int],
) -> None:
    def stop(done: int, total: int) -> None:
        if done == 24:
            raise KeyboardInterrupt

    source = write_csv(tmp_path / "csv", rows)
    with pytest.raises(KeyboardInterrupt):
        import_images(prompts, sources=[source], config=tiny_config, runtime=tiny_runtime, on_progress=stop)
    next(Path(tiny_runtime.root).rglob("images-00000.parquet")).unlink()
    fitted.clear()
    ref = import_images(prompts, sources=[source], config=tiny_config, runtime=tiny_runtime)
    assert len(fitted) == 16  # the first shard and the last, which was not marked
    images = open_store(tiny_runtime).read_table(ref, "images")
    assert all(part["index"].tolist() == list(range(len(part))) for _, part in images.groupby("prompt_id"))


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_memory_does_not_grow_with_the_pictures(
    prompts: ArtifactRef,
    evaluated: pd.DataFrame,
    tiny_config: PipelineConfig,
    tiny_runtime: RuntimeConfig,
    tmp_path: Path,
    form: str,
) -> None:
    """24 MB of pictures, the most that is held at once a small part of it."""
    text, noise = evaluated["text"].iloc[0], np.random.default_rng(0)
    rows = [(text, picture(99, seed=n) + noise.bytes(250_000)) for n in range(96)]
    source = write_csv(tmp_path / "csv", rows) if form == "csv" else write_parquet(tmp_path / "rows.parquet", rows)
    del rows
    tracemalloc.start()
    try:
        ref = import_images(prompts, sources=[source], config=tiny_config, runtime=tiny_runtime)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert open_store(tiny_runtime).manifest(ref).rows["images"] == 96
    assert peak < 6_000_000


def test_the_key_depends_on_content_size_and_prompts_alone(
    rows: list[Named], prompts: ArtifactRef, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    def key(path: Path, config: PipelineConfig = tiny_config, given: ArtifactRef = prompts) -> str:
        return reference(open_store(tiny_runtime), import_images.request(config, prompts=given, sources=[path])).key

    here, there, other = (write_csv(tmp_path / name, rows[n:]) for name, n in (("here", 0), ("there", 0), ("other", 1)))
    wide = tiny_config.model_copy(update={"sampling": tiny_config.sampling.model_copy(update={"width": 128})})
    slow = tiny_config.model_copy(update={"sampling": tiny_config.sampling.model_copy(update={"n_steps": 50})})
    assert key(here) == key(there) == key(here, slow)
    assert len({key(here), key(other), key(here, wide), key(here, given=ArtifactRef("identities", "other"))}) == 4


def test_imported_pictures_are_found_by_their_key_if_they_fit(
    prompts: ArtifactRef, rows: list[Named], tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    store = open_store(tiny_runtime)
    with pytest.raises(
        InputError, match=r"no imported images 'imported-v2-0' in .*, which has none; `popalign import "
    ):
        find_imported(store, "imported-v2-0", prompts, tiny_config)
    ref = import_images(prompts, sources=[write_csv(tmp_path / "csv", rows)], config=tiny_config, runtime=tiny_runtime)
    for name in (ref.key, str(ref)):
        assert find_imported(store, name, prompts, tiny_config) == ref
    with pytest.raises(InputError, match=rf"for the prompts {prompts.key}, this configuration has other; give the --p"):
        find_imported(store, ref.key, ArtifactRef("identities", "other"), tiny_config)
    wide = tiny_config.sampling.model_copy(update={"width": 128})
    with pytest.raises(InputError, match=r"for the image size .*'width': 64.*'width': 128"):
        find_imported(store, ref.key, prompts, tiny_config.model_copy(update={"sampling": wide}))


def test_the_key_is_pinned(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    """Another key here means that everybody's imports are made again: bump VERSION and say so in CHANGELOG."""
    sources = [ImageSource(Path("one"), "0" * 64, [], []), ImageSource(Path("two"), "f" * 64, [], [])]
    view = ImportedView(sources=tuple(sources), sampling=tiny_config.sampling)
    asked = import_images.ask(view, {"prompts": ArtifactRef("identities", "identities-v1-0")})
    assert reference(open_store(tiny_runtime), asked).key == "imported-v2-cc9e436582cb3c82129bf735c35b52d5"
