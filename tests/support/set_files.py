"""Small files of sets as `popalign export preferences --format datasets` writes them: bright pictures are preferred."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pair_files import BRIGHT, DARK, picture

from storage.formats.schemas import SET_MEMBERS

Row = dict[str, Any]


def member(set_id: str | None, role: str | None, slot: int | None, image: bytes | None, **more: Any) -> Row:
    given = {"set_id": set_id, "prompt_id": "p", "caption": "a photo of a judge", "role": role, "slot": slot}
    place = {"bytes": image, "path": None}
    rest = {"image_id": "i", "image": place, "discrepancy": 0.25, "balance": 0.5}
    return given | rest | {"target": [{"class": "gender=male", "share": 0.5}]} | more


def two_sets() -> list[Row]:
    """Four bright members are preferred to two and four dark ones."""
    return [
        member(name, role, slot, picture(level, seed=10 * number + slot), caption=f"a photo of number {number}")
        for number, (name, n_worse) in enumerate((("one", 2), ("two", 4)))
        for role, level, n in (("preferred", BRIGHT, 4), ("dispreferred", DARK, n_worse))
        for slot in range(n)
    ]


def bad_members() -> list[tuple[str, Row]]:
    """Reasons, and members that are dropped for them."""
    bright = picture(BRIGHT, seed=77)
    return [
        ("no set", member(None, "preferred", 0, bright)),
        ("unknown role", member("one", "winner", 0, bright)),
        ("unknown role", member("one", None, 0, bright)),
        ("empty caption", member("one", "preferred", 9, bright, caption=" ")),
        ("missing image", member("one", "preferred", 9, None)),
        ("missing image", member("one", "preferred", 9, b"")),
        ("undecodable image", member("one", "preferred", 9, bright[:200])),
        ("undecodable image", member("one", "preferred", 9, b"no picture")),
        ("slot of a set twice", member("one", "preferred", 0, bright, caption="a photo of number 0")),
        ("captions of a set differ", member("three", "preferred", 0, bright, caption="x")),
        ("captions of a set differ", member("three", "dispreferred", 0, bright, caption="y")),
        ("set without the other role", member("four", "preferred", 0, bright)),
        ("set without the other role", member("four", "preferred", 1, bright)),
    ]


def write_sets(path: Path, rows: list[Row], schema: pa.Schema = SET_MEMBERS) -> Path:
    columns = [{name: row[name] for name in schema.names} for row in rows]
    pq.write_table(pa.Table.from_pylist(columns, schema), path, row_group_size=3)
    return path
