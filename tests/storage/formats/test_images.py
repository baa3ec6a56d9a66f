import io
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from popalign_core.errors import StoreError
from storage.formats.images import decode_png, encode_png, image_column
from storage.store import ArtifactRef, Store

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)


@pytest.fixture
def shards(store: Store) -> list[Path]:
    ref = ArtifactRef("sample", store.key("sample", "1", {}, {}))
    with store.build(ref, {}) as build:
        for shard in range(2):
            frame = pd.DataFrame(
                {
                    **{"image_id": [f"i{shard}"], "prompt_id": "p", "index": 0, "seed": 1, "width": 12, "height": 8},
                    **{"image": image_column([encode_png(PIXELS[shard])])},
                    **{"latents_file": f"latents-{shard:05d}.safetensors", "latents_row": 0},
                }
            )
            build.write_table("images", frame, shard=shard)
    return [store.localize(ref, f"images-{shard:05d}.parquet") for shard in range(2)]


def test_png_keeps_every_pixel_and_has_equal_bytes() -> None:
    assert np.array_equal(decode_png(encode_png(PIXELS[0])), PIXELS[0])
    assert encode_png(PIXELS[0]) == encode_png(PIXELS[0].copy())


@pytest.mark.parametrize("pixels", [PIXELS, PIXELS[0].astype(np.float32), PIXELS[0, :, :, :1]])
def test_other_shapes_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(StoreError, match=r"cannot make a PNG of .*; give uint8 \[H, W, 3\]"):
        encode_png(pixels)


def test_what_is_no_picture_says_so() -> None:
    with pytest.raises(StoreError, match="4 bytes are not a readable image"):
        decode_png(b"nope")
    with pytest.raises(StoreError, match="are not a readable image"):
        decode_png(encode_png(PIXELS[0])[:-30])


def test_shards_load_with_datasets(shards: list[Path], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.load_dataset(
        "parquet", data_files=[str(path) for path in shards], split="train", cache_dir=str(tmp_path / "cache")
    )
    assert data["image_id"][:] == ["i0", "i1"]
    assert isinstance(data[0]["image"], Image.Image)
    assert [np.asarray(row["image"]).tolist() for row in data] == PIXELS.tolist()


def test_shards_load_with_plain_pyarrow(shards: list[Path]) -> None:
    row = pq.read_table(shards[1]).to_pylist()[0]
    assert (row["image_id"], row["seed"]) == ("i1", 1)
    with Image.open(io.BytesIO(row["image"]["bytes"])) as picture:
        assert np.array_equal(np.asarray(picture), PIXELS[1])
