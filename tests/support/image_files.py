"""Small pictures of prompts in every form that can be imported."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Named = tuple[str | None, bytes | None]
"""What names a prompt, and an encoded picture."""


def write_files(folder: Path, pictures: Sequence[bytes | None], suffix: str = ".png") -> list[str]:
    """Files 0000.png, 0001.png, ...; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:04d}{suffix}" for number in range(len(pictures))]
    for name, data in zip(names, pictures, strict=True):
        (folder / name).write_bytes(data or b"")
    return names


def write_csv(folder: Path, rows: Sequence[Named], column: str = "prompt") -> Path:
    """A folder with metadata.csv."""
    names = write_files(folder, [data for _, data in rows])
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "seed", column])
        writer.writerows((name, 7, text) for name, (text, _) in zip(names, rows, strict=True))
    return folder


def write_jsonl(folder: Path, rows: Sequence[Named], column: str = "text") -> Path:
    """A folder with metadata.jsonl."""
    names = write_files(folder, [data for _, data in rows])
    lines = [json.dumps({"file_name": n, column: text}) for n, (text, _) in zip(names, rows, strict=True)]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def write_subfolders(folder: Path, rows: Sequence[Named]) -> Path:
    """A folder whose sub-folders bear the names."""
    for number, (text, data) in enumerate(rows):
        assert text is not None
        place = folder / text / f"{number:04d}.PNG"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data or b"")
    return folder


def write_parquet(
    path: Path, rows: Sequence[Named], column: str = "caption", *, struct: bool = True, group: int = 3
) -> Path:
    """A Parquet file, in groups of a few rows."""
    image: Any = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
    cells = [
        {"other": 1, "image": {"bytes": data, "path": "x.png"} if struct else data, column: text} for text, data in rows
    ]
    schema = pa.schema([("other", pa.int64()), ("image", image), (column, pa.string())])
    pq.write_table(pa.Table.from_pylist(cells, schema), path, row_group_size=group)
    return path
