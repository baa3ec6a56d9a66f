"""Imported sets: what was exported comes back and trains, members keep roles and slots, every drop is counted."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pair_files import BRIGHT, picture
from PIL import Image
from set_files import bad_members, member, two_sets, write_sets

from popalign_core.config import ModelConfig, PipelineConfig, RuntimeConfig
from popalign_core.errors import InputError
from popalign_core.models import vae as codec
from popalign_core.models.loading import load_pipeline
from storage.formats.external_files import RowFile
from storage.formats.schemas import SET_MEMBERS
from storage.formats.set_files import open_sets
from storage.store import ArtifactRef
from tasks.common.stage_object import open_store, reference
from tasks.publishing.export import export_preferences
from tasks.stages.encoding import EncodingView
from tasks.stages.round_inputs import TrainingRefs
from tasks.stages.sets import find_sets, import_sets
from tasks.stages.train import train_model
from tasks.stages.train_inputs import read_preferences


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Fourteen members that can be used, and thirteen among them that cannot."""
    good, bad = two_sets(), [row for _, row in bad_members()]
    return write_sets(tmp_path / "sets.parquet", [*good[:5], *bad[:6], *good[5:], *bad[6:]])


def test_exported_sets_come_back_and_train_like_those_that_they_were(
    tiny_config: PipelineConfig,
    tiny_runtime: RuntimeConfig,
    give_artifacts: Callable[[str], dict[str, ArtifactRef]],
    tmp_path: Path,
) -> None:
    refs = give_artifacts("preferences")
    made = refs["preferences"]
    export_preferences(made.key, tmp_path / "sets", "datasets", runtime=tiny_runtime)
    no_retention = tiny_config.training.model_copy(update={"retention": 0.0, "n_steps": 2})
    config = tiny_config.model_copy(update={"training": no_retention})
    ref = import_sets(files=[tmp_path / "sets"], config=config, runtime=tiny_runtime)
    store = open_store(tiny_runtime)
    before, after = store.read_table(made, "preferences"), store.read_table(ref, "preferences")
    same = ["set_id", "role", "slot", "target", "discrepancy", "balance"]
    order = ["set_id", "role", "slot"]
    pd.testing.assert_frame_equal(
        after.sort_values(order)[same].reset_index(drop=True), before.sort_values(order)[same].reset_index(drop=True)
    )
    assert after["image_id"].is_unique
    assert store.read_table(ref, "drops").empty
    texts = store.read_table(refs["identities"], "prompts").set_index("prompt_id")["text"]
    assert sorted(store.read_table(ref, "prompts")["text"]) == sorted(texts[before["prompt_id"].unique()])
    log = store.read_table(
        train_model(preferences=ref, sample=ref, prompts=ref, config=config, runtime=tiny_runtime), "training_log"
    )
    assert log.loc[log["name"] == "loss", "step"].tolist() == [1, 2]
    assert np.isfinite(log["value"]).all()


def test_every_member_is_kept_or_dropped_with_a_reason(
    file: Path, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    ref = import_sets(files=[file], config=tiny_config, runtime=tiny_runtime)
    store = open_store(tiny_runtime)
    drops = store.read_table(ref, "drops")
    reasons = pd.Series([reason for reason, _ in bad_members()]).value_counts()
    assert dict(zip(drops["reason"], drops["n"], strict=True)) == reasons.to_dict()
    members = store.read_table(ref, "preferences")
    assert members.groupby(["set_id", "role"]).size().to_dict() == {
        ("one", "preferred"): 4, ("one", "dispreferred"): 2, ("two", "preferred"): 4, ("two", "dispreferred"): 4,
    }  # fmt: skip
    assert len(members) + drops["n"].sum() == len(two_sets()) + len(bad_members())
    assert members["target"].tolist() == [{"gender=male": 0.5}] * 14
    assert set(members["discrepancy"]) == {0.25}
    assert set(store.read_table(ref, "prompts")["text"]) == {"a photo of number 0", "a photo of number 1"}


def test_the_preferred_latents_decode_to_the_bright_pictures(
    file: Path, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    """With the embedded model, whose VAE is trained; the rows dropped among them shift nothing."""
    config = tiny_config.model_copy(update={"model": ModelConfig()})
    ref = import_sets(files=[file], config=config, runtime=tiny_runtime)
    data = read_preferences(open_store(tiny_runtime), TrainingRefs(ref, ref, ref), config.axes)
    vae = load_pipeline(config.model, device=torch.device("cpu")).vae
    levels = codec.decode_latents(vae, data.latents[torch.arange(14)]).mean(axis=(1, 2, 3))
    assert data.preferred.sum() == 8
    assert levels[data.preferred.numpy()].min() > 200
    assert levels[~data.preferred.numpy()].max() < 60
    assert len(data.set_index.unique()) == 2


def test_a_stopped_import_redoes_no_finished_shard_and_ends_the_same(
    file: Path, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    def stop(done: int, total: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_sets(files=[file], config=tiny_config, runtime=tiny_runtime, on_progress=stop)
    seen: list[tuple[int, int]] = []
    ref = import_sets(
        files=[file], config=tiny_config, runtime=tiny_runtime, on_progress=lambda *progress: seen.append(progress)
    )
    assert seen[0] == (16, 27)
    whole = tiny_runtime.model_copy(update={"root": str(tmp_path / "undisturbed")})
    assert import_sets(files=[file], config=tiny_config, runtime=whole) == ref
    ours, theirs = (Path(open_store(runtime).localize(ref)) for runtime in (tiny_runtime, whole))
    names = {path.name for path in ours.iterdir()}
    assert names == {path.name for path in theirs.iterdir()}
    assert [name for name in names if (ours / name).read_bytes() != (theirs / name).read_bytes()] == []


def test_files_with_the_least_that_is_needed_are_read(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    """Bytes for pictures, no slots: they are numbered."""
    schema = pa.schema(
        [*(pa.field(name, pa.string()) for name in ("set_id", "role", "caption")), ("image", pa.binary())]
    )
    rows = [row | {"image": row["image"]["bytes"]} for row in two_sets()]
    ref = import_sets(
        files=[write_sets(tmp_path / "least.parquet", rows, schema)], config=tiny_config, runtime=tiny_runtime
    )
    members = open_store(tiny_runtime).read_table(ref, "preferences")
    slots = members.groupby(["set_id", "role"])["slot"].agg(list).to_dict()
    assert slots[("one", "dispreferred")] == [0, 1]
    assert slots[("two", "preferred")] == [0, 1, 2, 3]
    assert members["target"].tolist() == [{}] * 14


def test_odd_pictures_and_captions_are_kept_or_counted(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    """Nothing of it stops a shard; captions come back letter by letter."""
    grey, odd = np.full((40, 30), 90, np.uint8), dict[str, bytes]()
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, image, kind, more in (
        ("grey", Image.fromarray(grey), "PNG", {}),
        ("CMYK", Image.fromarray(grey).convert("CMYK"), "JPEG", {}),
        ("16 bits", Image.fromarray(grey.astype(np.uint16) * 257), "PNG", {}),
        ("turned", Image.fromarray(grey), "JPEG", {"exif": exif}),
        ("animated", Image.fromarray(grey), "GIF", {"save_all": True, "append_images": [Image.fromarray(grey * 2)]}),
        ("bomb", Image.new("1", (20_000, 20_000)), "PNG", {}),
    ):
        sink = io.BytesIO()
        image.save(sink, kind, **more)
        odd[name] = sink.getvalue()
    captions = ("一位正在做饭的人", "a nurse 🙂👩‍⚕️", "x" * 10_000, "طبيب", "line\nbreak")
    rows = [
        member(str(number), role, slot, data, caption=caption)
        for number, caption in enumerate(captions)
        for role in ("preferred", "dispreferred")
        for slot, data in enumerate(odd.values())
    ]
    ref = import_sets(files=[write_sets(tmp_path / "odd.parquet", rows)], config=tiny_config, runtime=tiny_runtime)
    store = open_store(tiny_runtime)
    assert store.read_table(ref, "drops")[["reason", "n"]].to_numpy().tolist() == [["undecodable image", 10]]
    assert len(store.read_table(ref, "preferences")) == 50
    assert sorted(store.read_table(ref, "prompts")["text"]) == sorted(captions)
    data = read_preferences(store, TrainingRefs(ref, ref, ref), tiny_config.axes)
    assert torch.isfinite(data.latents[torch.arange(50)]).all()
    assert torch.isfinite(data.prompt_embeds).all()


def test_what_is_no_set_is_refused(tmp_path: Path, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    lone = [member("one", "preferred", 0, picture(BRIGHT))]
    message = (
        r"\[sets/sets-v2-.*\] none of the 1 member\(s\) of sets can be used: {'set without the other role': 1}; a set"
    )
    with pytest.raises(InputError, match=message):
        import_sets(files=[write_sets(tmp_path / "lone.parquet", lone)], config=tiny_config, runtime=tiny_runtime)
    (tmp_path / "empty").mkdir()
    for path, reason in (
        (tmp_path / "empty", "empty is a folder; give its files"),
        (tmp_path / "gone.parquet", "is not there; give a Parquet file"),
    ):
        with pytest.raises(InputError, match=reason):
            open_sets([path])
    for column, kind, reason in (
        ("role", pa.int64(), "column 'role' is of type int64; it should hold text"),
        ("slot", pa.string(), "column 'slot' is of type string; it should hold an integer"),
        ("target", pa.string(), "it should hold a list of structs of class and share"),
        ("image", pa.string(), "it should hold the bytes of an image, or a struct"),
    ):
        fields = [field if field.name != column else pa.field(column, kind) for field in SET_MEMBERS]
        pq.write_table(pa.schema(fields).empty_table(), tmp_path / "typed.parquet")
        with pytest.raises(InputError, match=reason):
            open_sets([tmp_path / "typed.parquet"])
    pq.write_table(SET_MEMBERS.remove(3).empty_table(), tmp_path / "lacking.parquet")
    with pytest.raises(InputError, match=r"lacks the columns \['role'\], .*`popalign export preferences"):
        open_sets([tmp_path / "lacking.parquet"])


def test_sets_are_found_by_their_key_if_they_fit_the_model(
    file: Path, tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    store = open_store(tiny_runtime)
    ref = import_sets(files=[file], config=tiny_config, runtime=tiny_runtime)
    assert find_sets(store, ref.key, tiny_config) == find_sets(store, str(ref), tiny_config) == ref
    wide = tiny_config.sampling.model_copy(update={"width": 128})
    with pytest.raises(InputError, match=r"for the image size or guidance scale .*'width': 64.*'width': 128"):
        find_sets(store, ref.key, tiny_config.model_copy(update={"sampling": wide}))


def test_the_key_is_pinned(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    """Another key here means that everybody's imports are made again: bump VERSION and say so in CHANGELOG."""
    config = tiny_config.model_copy(update={"model": ModelConfig(name="owner/name", revision="0a1b")})
    asked = import_sets.ask(
        EncodingView.of(
            config, [RowFile(tmp, digit * 64, 1) for tmp, digit in ((Path("one"), "0"), (Path("two"), "f"))]
        ),
        {},
    )
    assert reference(open_store(tiny_runtime), asked).key == "sets-v2-dcad22e3243e5812ebc9b9b36cedb875"
