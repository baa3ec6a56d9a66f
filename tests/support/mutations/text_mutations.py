"""Mutations of tables that are text: lists of prompts, and what people said."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from mutations.editing import DEEP, DIGITS, NO_FILES, put
from mutations.judging import Counted, Equal, Mutant, Mutate, Refused
from mutations.row_mutations import rejects
from mutations.table_world import LABELLED, LISTED, TableWorld

WRONG = 3
Texts = Sequence[str | None]


def _csv(rows: Sequence[Sequence[str | None]], random: Random, delimiter: str = ",") -> str:
    sink = io.StringIO()
    quoting = random.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
    end = random.choice(["\n", "\r\n", "\r"])
    csv.writer(sink, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows(rows)
    return sink.getvalue()


def _column(random: Random) -> str:
    return random.choice(["subject", "Subject", "prompt", "PROMPT", "text", "caption", " prompt "])


def _as_table(texts: Texts, random: Random, delimiter: str) -> str:
    header, rows = ["n", _column(random), "note"], [[str(n), text, "x, y"] for n, text in enumerate(texts)]
    order = random.sample(range(3), 3)
    return _csv([[row[place] for place in order] for row in [header, *rows]], random, delimiter)


def _as_unquoted(texts: Texts, random: Random) -> str:
    """As PartiPrompts is published."""
    return "Prompt\tCategory\tChallenge\n" + "".join(f'{text or ""}\tPeople\t"Basic\n' for text in texts)


def _as_lines(texts: Texts, random: Random) -> str:
    end = random.choice(["\n", "\r\n", "\r"])
    return end.join(text or "" for text in texts) + random.choice(["", end])


def _as_json(texts: Texts, random: Random) -> str:
    column, is_ascii = _column(random), random.random() < 0.5
    half = len(texts) // 2
    document = random.choice(
        [
            [text or "" for text in texts],
            [{"id": n, column: text} for n, text in enumerate(texts)],
            {"photo": [text or "" for text in texts[:half]], "anime": [text or "" for text in texts[half:]]},
        ]
    )
    return json.dumps(document, ensure_ascii=is_ascii, indent=random.choice([None, 2]))


def _as_json_lines(texts: Texts, random: Random) -> str:
    column, end = _column(random), random.choice(["\n", "\r\n", "\n\n"])
    lines = [random.choice([{column: text, "n": 1}, text or ""]) for text in texts]
    return end.join(map(json.dumps, lines))


FORMS: dict[str, Callable[[Texts, Random], str]] = {
    ".txt": _as_lines,
    ".csv": lambda texts, random: _as_table(texts, random, ","),
    ".tsv": lambda texts, random: _as_table(texts, random, "\t"),
    ".TSV": _as_unquoted,
    ".json": _as_json,
    ".jsonl": _as_json_lines,
}


def _written(folder: Path, texts: Texts, suffix: str, random: Random) -> Path:
    mark = random.choice(["", "", "\ufeff"])
    return put(
        folder / f"{random.choice(['prompts', 'my list (1)', 'ü'])}{suffix}", mark + FORMS[suffix](texts, random)
    )


def _spaced(text: str, random: Random) -> str:
    """With what no reader of a list may split or keep."""
    return random.choice([text, f" {text}", f"{text} ", text.replace(" ", "  "), f"{text}."])


def _list(suffix: str) -> Mutate:
    def mutate(world: TableWorld, random: Random, folder: Path) -> Mutant:
        texts = [_spaced(text, random) for text in LISTED]
        return Mutant([_written(folder, texts, suffix, random)], Equal(), world.lists)

    return mutate


def _list_in_parts(world: TableWorld, random: Random, folder: Path) -> Mutant:
    at = random.randint(1, len(LISTED) - 1)
    files = []
    for number, part in enumerate((LISTED[:at], LISTED[at:])):
        files.append(_written(folder / str(number), part, random.choice(list(FORMS)), random))
    return Mutant(files, Equal(), world.lists)


def _list_with_rejects(suffix: str) -> Mutate:
    def mutate(world: TableWorld, random: Random, folder: Path) -> Mutant:
        bad = rejects(random)
        texts = [*LISTED, *(text for _, text in bad)]
        if texts[-1] is None or not texts[-1].strip():
            texts.append("a photo of 3 miners")  # the end of a file is no empty line
            bad.append(("several_people", ""))
        whole, _ = world.expected(world.sort("prompts"))
        result = (whole, dict(Counter(reason for reason, _ in bad)))
        return Mutant([_written(folder, texts, suffix, random)], Counted(result), world.lists)

    return mutate


BROKEN_LISTS: dict[str, tuple[str, Callable[[Random], str | bytes], str]] = {
    "JSON cut": (".json", lambda random: json.dumps(LISTED)[: random.randrange(1, 60)], "not JSON"),
    "JSON deep": (".json", lambda random: random.choice([DEEP, '{"a":' * 900 + "[]" + "}" * 900]), "nested|something"),
    "JSON digits": (".json", lambda random: f"[{DIGITS}]", "not JSON|something"),
    "JSON of others": (
        ".json",
        lambda random: random.choice(["{}", "[]", "[1]", '"baker"', "null", '[{"url": "x"}]', '[["a"]]', "[null]"]),
        "holds (no prompts|something else)",
    ),
    "half a character": (".json", lambda random: '["baker", "\\ud83d"]', "half of a character"),
    "a key twice": (".jsonl", lambda random: '{"prompt": "a", "prompt": "b"}\n', "more than once"),
    "a line cut": (".jsonl", lambda random: '{"prompt": "baker"}\n{"prompt": "chef"', "line 2"),
    "no column": (".csv", lambda random: "id,url\n1,x\n", "rename the column"),
    "a column twice": (".csv", lambda random: "prompt,Prompt\na,b\n", "2 columns"),
    "a quote that never ends": (".csv", lambda random: 'prompt\n"baker\nchef\n', "damaged"),
    "more cells": (".csv", lambda random: "prompt,n\nbaker, in a shop, alone\n", "more cells"),
    "semicolons": (".csv", lambda random: "prompt;n\nbaker;1\n", "semicolons between its columns"),
    "Latin-1": (".txt", lambda random: b"baker\ncaf\xe9 owner\n", "UTF-8"),
    "UTF-16": (".csv", lambda random: "prompt\nbaker\n".encode("utf-16"), "UTF-8"),
    "NUL": (".txt", lambda random: "baker\nche\0f\n", "NUL"),
    "blank": (".txt", lambda random: random.choice(["\n\n", " ", "\ufeff\n"]), "holds no prompts"),
    "nothing": (".csv", lambda random: "", "columns"),
}


def _broken_list(name: str) -> Mutate:
    def mutate(world: TableWorld, random: Random, folder: Path) -> Mutant:
        suffix, write, names = BROKEN_LISTS[name]
        return Mutant([put(folder / f"list{suffix}", write(random))], Refused(WRONG, names), world.lists)

    return mutate


def _no_list(fault: str) -> Mutate:
    def mutate(world: TableWorld, random: Random, folder: Path) -> Mutant:
        suffix = random.choice(list(FORMS))
        return Mutant([put(folder / f"list{suffix}", NO_FILES[fault])], Refused(WRONG, f"list{suffix}"), world.lists)

    return mutate


def _another_ending(world: TableWorld, random: Random, folder: Path) -> Mutant:
    suffix = random.choice([".docx", ".pdf", "", ".xlsx", ".yaml"])
    file = put(folder / f"list{suffix}", _as_lines(LISTED, random))
    return Mutant([file], Refused(WRONG, f"list{suffix} ends in '{suffix}'"), world.lists)


def _all_rejected(world: TableWorld, random: Random, folder: Path) -> Mutant:
    texts = ["a man", "two men", "!!!", "her sister"][: random.randint(1, 4)]
    file = _written(folder, texts, random.choice(list(FORMS)), random)
    return Mutant([file], Refused(WRONG, f"none of the {len(texts)} prompt"), world.lists)


def _labels(world: TableWorld, random: Random, folder: Path) -> Mutant:
    columns = LABELLED | {"rater": list("pqrstu"), "note": ["x, y"] * 6}
    names = random.sample(list(columns), len(columns))
    rows = [names, *map(list, zip(*(columns[name] for name in names), strict=True))]
    text = random.choice(["", "\ufeff"]) + _csv(rows, random)
    return Mutant([put(folder / random.choice(["l.csv", "labels.txt", "L.CSV"]), text)], Equal(),
                  world.sort("labels").taker)  # fmt: skip


BROKEN_LABELS: dict[str, tuple[str | bytes, str]] = {
    "column gone": ("image_id,axis\na,hair\n", "lacks the columns"),
    "column twice": ("image_id,axis,class,class\na,hair,long,short\n", "more than once"),
    "an empty cell": ("image_id,axis,class\na,hair,\n", "with an empty cell"),
    "no rows": ("image_id,axis,class\n", "has 0 rows"),
    "Latin-1": ("image_id,axis,class\na,hair,caf\xe9\n".encode("latin-1"), "cannot be read"),
    "UTF-16": ("image_id,axis,class\na,hair,long\n".encode("utf-16"), "cannot be read"),
    "a quote that never ends": ('image_id,axis,class\na,hair,"long\n', "cannot be read"),
    "semicolons": ("image_id;axis;class\na;hair;long\n", "semicolons between its columns"),
    "more cells": ("image_id,axis,class\na,hair,long,short\n", "cannot be read"),
    **{name: (text, "lacks the columns|cannot be read") for name, text in NO_FILES.items()},
}


def _broken_labels(name: str) -> Mutate:
    def mutate(world: TableWorld, random: Random, folder: Path) -> Mutant:
        content, names = BROKEN_LABELS[name]
        return Mutant([put(folder / "labels.csv", content)], Refused(WRONG, names), world.sort("labels").taker)

    return mutate


TEXT_TABLES: dict[str, Mutate] = {
    **{f"list: {suffix}": _list(suffix) for suffix in FORMS},
    "list: in parts": _list_in_parts,
    **{f"list: rejects in {suffix}": _list_with_rejects(suffix) for suffix in FORMS},
    **{f"list: {name}": _broken_list(name) for name in BROKEN_LISTS},
    **{f"list: {fault} in its place": _no_list(fault) for fault in NO_FILES},
    "list: another ending": _another_ending,
    "list: all rejected": _all_rejected,
    "labels: CSV": _labels,
    **{f"labels: {name}": _broken_labels(name) for name in BROKEN_LABELS},
}
