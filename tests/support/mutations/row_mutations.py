"""Rows of tables that cannot be used, each with the reason that it is counted under."""

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Row = dict[str, Any]
Fault = tuple[str, Callable[[Row, Random], Row]]
"""A reason, and what gives it to a row."""


def _with(**cells: Sequence[Any]) -> Callable[[Row, Random], Row]:
    """One of the values in each column."""
    return lambda row, random: row | {name: random.choice(values) for name, values in cells.items()}


def torn(data: bytes, random: Random) -> bytes:
    """An image that cannot be decoded."""
    return random.choice([data[: random.randint(1, 200)], b"no image", b"\xfe" + random.randbytes(300), b"\x89PNG\r\n"])


_PAIRS: tuple[Fault, ...] = (
    ("empty caption", _with(caption=[None, "", "  \n"])),
    ("no label", _with(label_0=[None, float("nan")])),
    ("no label", _with(has_label=[False])),
    ("tie", _with(label_0=[0.5])),
    ("unknown label", _with(label_0=[2.0, -1.0, 0.25, float("inf")])),
    ("missing image", _with(jpg_0=[None, b""])),
    ("missing image", _with(jpg_1=[None, b""])),
    ("same image twice", lambda row, random: row | {"jpg_0": row["jpg_1"]}),
    ("undecodable image", lambda row, random: row | {"jpg_1": torn(row["jpg_1"], random)}),
    ("undecodable image", lambda row, random: row | {"jpg_0": torn(row["jpg_0"], random)}),
)


def _of_pairs(rows: list[Row], whole: Any, random: Random) -> tuple[list[Row], Any]:
    members, _ = whole
    drops, more = Counter[str](), list[Row]()
    for number in random.sample(range(len(rows)), random.randint(1, len(rows) - 1)):
        reason, spoil = random.choice(_PAIRS)
        drops[reason] += 1
        bad = spoil(rows[number], random)
        if random.random() < 0.5:
            more.append(bad)
        else:
            members = [member for member in members if member[0] != rows[number]["caption"]]
            rows[number] = bad
    at = random.randint(0, len(rows))
    return [*rows[:at], *more, *rows[at:]], (members, dict(drops))


def _image(change: Callable[[bytes, Random], bytes | None]) -> Callable[[Row, Random], Row]:
    return lambda row, random: row | {"image": {"bytes": change(row["image"]["bytes"], random), "path": None}}


_MEMBERS: tuple[Fault, ...] = (
    ("no set", _with(set_id=[None, ""])),
    ("unknown role", _with(role=[None, "best", "Preferred", ""])),
    ("empty caption", _with(caption=[None, "", "\t"])),
    ("missing image", _with(image=[None])),
    ("missing image", _image(lambda data, random: random.choice([None, b""]))),
    ("undecodable image", _image(torn)),
)


def _of_sets(rows: list[Row], whole: Any, random: Random) -> tuple[list[Row], Any]:
    members, _ = whole
    drops, sides = Counter[str](), sorted({(row["set_id"], row["role"]) for row in rows})
    for set_id, role in random.sample(sides, random.randint(1, len(sides))):
        place = random.choice([n for n, row in enumerate(rows) if (row["set_id"], row["role"]) == (set_id, role)])
        row = rows[place]
        if random.random() < 0.3:
            drops["slot of a set twice"] += 1
            rows.append(row)
        else:
            reason, spoil = random.choice(_MEMBERS)
            drops[reason] += 1
            members = [member for member in members if (member[3], member[1], member[4]) != (set_id, role, row["slot"])]
            rows[place] = spoil(row, random)
    if random.random() < 0.5:
        drops["set without the other role"] += 2
        rows += [rows[0] | {"set_id": "lone", "caption": "a", "role": "preferred", "slot": slot} for slot in (0, 1)]
        for row, good in zip(rows[-2:], _good(rows), strict=True):
            row["image"] = good["image"]
    return rows, (members, dict(drops))


def _good(rows: list[Row]) -> list[Row]:
    """Two whose images were left alone."""
    return [row for row in rows if row["image"] and len(row["image"]["bytes"] or b"") > 300][:2]


_IMAGES: tuple[Fault, ...] = (
    ("missing image", _with(image=[None])),
    ("missing image", _image(lambda data, random: random.choice([None, b""]))),
    ("no prompt named", _with(caption=[None, "", "  "])),
    ("no evaluation prompt", _with(caption=["a cat", "judge", "a photo of a judge."])),
    ("undecodable image", _image(torn)),
)


def _of_images(rows: list[Row], whole: Any, random: Random) -> tuple[list[Row], Any]:
    images, _ = whole
    drops = Counter[str]()
    for number in random.sample(range(len(rows)), random.randint(1, len(rows) - 1)):
        row = rows[number]
        if random.random() < 0.2:
            drops["same image twice"] += 1
            rows.append(row)
        else:
            reason, spoil = random.choice(_IMAGES)
            drops[reason] += 1
            images = [image for image in images if image[0] != row["caption"]]
            rows[number] = spoil(row, random)
    return rows, (images, dict(drops))


_REJECTED: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    ("empty", (None, "", "   ")),
    ("names_identity", ("a male nurse", "woman with a dog", "Female boxer", "an actress")),
    ("several_people", ("two bankers", "a group of miners", "tailors")),
    ("not_plain_words", ("!!!", "b@ker_{}", "12", "画家", "<b>tailor</b>")),
    ("too_long", (" ".join(["very"] * 60 + ["tailor"]),)),
    ("whole_prompt", ("Teacher portrait",)),
    ("held_out", ("nurse", "Nurse.")),
    ("duplicate", ("baker", "Baker", "a baker", "BAKER.")),
)


def rejects(random: Random) -> list[tuple[str, str | None]]:
    """Prompts that cannot be used, each with its reason; some of them again."""
    return [
        (reason, random.choice(texts))
        for reason, texts in (random.choice(_REJECTED) for _ in range(random.randint(1, 6)))
    ]


def _of_prompts(rows: list[Row], whole: Any, random: Random) -> tuple[list[Row], Any]:
    texts, _ = whole
    bad = rejects(random)
    rows += [{"subject": text, "n": -1} for _, text in bad]
    return rows, (texts, dict(Counter(reason for reason, _ in bad)))


ROWS: dict[str, Callable[[list[Row], Any, Random], tuple[list[Row], Any]]] = {
    "pairs": _of_pairs,
    "sets": _of_sets,
    "images": _of_images,
    "prompts": _of_prompts,
}
