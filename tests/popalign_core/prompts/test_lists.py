"""Prompt lists: the shipped sets pass every check (pitfalls 3, 13); files of others are read or refused clearly."""

import csv
import io
import json
from collections import Counter

import pytest

from popalign_core.config import THEMES, Axis
from popalign_core.config.axes import DEEPFACE_RACE, GENDER
from popalign_core.errors import InputError
from popalign_core.prompts.checks import check_balance, check_prompts
from popalign_core.prompts.grammar import neutral_or_generic_row, prompt_table
from popalign_core.prompts.lists import SETS, parse_list, shipped_list
from popalign_core.prompts.sifting import Sieve

AGE = Axis(name="age", classes=("young", "middle-aged", "old"))
AXES = (GENDER, DEEPFACE_RACE, AGE)


def neutral(subjects, split="eval"):
    return [neutral_or_generic_row(subject, "neutral", split, "a photo of {}", "grammar") for subject in subjects]


def test_there_are_300_occupations_to_train_on_and_100_others_to_evaluate_on():
    train, evaluation = (shipped_list(f"occupations-{split}") for split in ("train", "eval"))
    assert (len(train[0]), len(evaluation[0])) == (300, 100)
    assert Counter(train[1]) == dict.fromkeys(THEMES, 15)
    assert Counter(evaluation[1]) == dict.fromkeys(THEMES, 5)
    check_prompts(prompt_table([*neutral(train[0], "train"), *neutral(evaluation[0])]), AXES)
    sieve = Sieve(AXES)
    assert sieve.subjects([("train", train[0])], held_out=evaluation[0]) == train[0]
    assert sieve.subjects([("eval", evaluation[0])]) == evaluation[0]
    assert sieve.rejected == []
    assert max(len(subject.split()) for subject in train[0] + evaluation[0]) <= 4


@pytest.mark.parametrize("name", SETS)
def test_shipped_sets_pass_the_checks_and_are_balanced(name):
    subjects, themes = shipped_list(name)
    assert len(subjects) >= 40
    check_balance(themes, name)
    check_prompts(prompt_table(neutral(subjects)), AXES)
    assert Sieve(AXES, one_person=name != "couples").subjects([(name, subjects)]) == subjects


def test_couples_are_several_people():
    with pytest.raises(InputError, match=r"none of the 40 .*'several_people': 40.*set prompts\.one_person = false"):
        Sieve(AXES).subjects([("couples", shipped_list("couples")[0])])


PARTI = """Prompt\tCategory\tChallenge\tNote
a cat\tAnimals\tBasic\t
The words "Fly" on "it"\tArts\tComplex\tx
"Hi" he said\tArts\t\t
"""


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("PartiPrompts.tsv", PARTI, ["a cat", 'The words "Fly" on "it"', '"Hi" he said']),
        ("anime.json", '["a cat", "ein Hund, süß"]', ["a cat", "ein Hund, süß"]),
        ("hps.json", '{"anime": ["a cat"], "photo": ["a dog"]}', ["a cat", "a dog"]),
        ("objects.json", '[{"prompt": "a cat", "id": 3}, {"caption": "a dog"}]', ["a cat", "a dog"]),
        ("plain.txt", "a cat\n\n  a dog\r\nlast", ["a cat", "", "  a dog", "last"]),
        ("table.csv", 'id,Prompt\n1,"a cat, asleep"\n2,"a ""dog""\nhere"\n3\n', ["a cat, asleep", 'a "dog"\nhere', ""]),
        ("empty style.json", '{"anime": [], "photo": ["a dog"]}', ["a dog"]),
        ("no styles.json", '{"a": {"b": []}, "c": [{"prompt": "a cat"}], "d": []}', ["a cat"]),
        ("both.csv", "text,subject\nx,baker\n", ["baker"]),
        ("mac.txt", "a cat\ra dog\r", ["a cat", "a dog"]),
        ("one.txt", "a\u2028b\x85c\x0bd\x0ce\n", ["a\u2028b\x85c\x0bd\x0ce"]),
        ("mac.csv", "prompt\ra\u2028cat\ra dog\r", ["a\u2028cat", "a dog"]),
        ("lines.jsonl", '{"Prompt": "a cat"}\n\n"a dog"\n{"text": null}\n', ["a cat", "a dog", ""]),
        ("case.json", '[{"Caption": "a cat"}, {"prompt": null}]', ["a cat", ""]),
    ],
)
def test_formats_are_read_by_their_names(name, text, expected):
    assert parse_list(name, text.encode()) == expected
    assert parse_list(name.upper(), b"\xef\xbb\xbf" + text.encode()) == expected


POINTER = "version https://git-lfs.github.com/spec/v1"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "p.csv",
            b"id,url\n1,2\n",
            r"p\.csv has the columns 'id', 'url'; rename the column that holds the prompts, in the first line",
        ),
        ("p.tsv", b"Prompt;Category\na;b\n", r"has semicolons between its columns, not tabs"),
        ("p.csv", b"", r"p\.csv has the columns \(none\); rename"),
        ("p.csv", b'prompt\n"a" b\n', r"p\.csv is damaged at line 1 \(.*expected after.*\); repair it"),
        ("p.txt", b"a cat\nein Hund, s\xfc\xdf\n", r"not UTF-8: byte 0xfc in line 2; save it as UTF-8, .*iconv"),
        ("p.txt", "a cat".encode("utf-16"), r"is UTF-16; save it as UTF-8, .*iconv -f utf-16"),
        (
            "p.txt",
            b"<!DOCTYPE html>\n<title>404</title>\n",
            "is a web page, .*fetch it again",
        ),
        ("p.csv", b"\n<html>\n", "is a web page"),
        ("p.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS .*git lfs pull"),
        ("p.json", b'{"prompt": ["a cat"], "category": ["Animals"]}', r"an object with 'prompt' and 1 other field"),
        ("p.json", b'{"tags": ["red"], "Prompts": ["a cat"]}', "give the list under 'Prompts' alone"),
        ("p.json", b'{"caption": ["a cat"], "seed": 3, "n": [4]}', r"'caption' and 2 other field\(s\)"),
        ("p.txt", b"a\x00cat\x00", "holds NUL characters"),
        ("p.txt", b" \n\n", "holds no prompts"),
        (
            "p.csv",
            b"subject,theme\na,x\nb,x\nc,x\nd,y\n",
            r"in p\.csv theme 'x' has 3 prompts and 'y' has 1, over 2 times",
        ),
        ("p.json", b"[]", "holds no prompts"),
        ("p.json", b'{"anime": []}', "holds no prompts"),
        (
            "p.txt",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 3\n",
            "pointer of Git LFS .*lfs pull",
        ),
        ("p.tsv", f"{POINTER}\nsize 3".encode(), "is a pointer of Git LFS"),
        (
            "p.txt",
            b"\xef\xbb\xbf<!DOCTYPE html>\n<html><body>Not found</body></html>\n",
            "is a web page, .*fetch it again",
        ),
        ("p.txt", b"\n<html lang='en'>", "is a web page"),
        ("p.json", b"<HTML>", "is a web page"),
        ("p.json", b"[1, 2]", "holds something else than prompts; give a list of texts"),
        ("p.json", b'[{"url": "x"}]', "holds something else than prompts"),
        ("p.json", b'{"n": 3}', "holds something else than prompts"),
        ("p.json", b'"a cat"', "holds something else than prompts"),
        ("p.json", b'["a cat"', "is not JSON"),
        ("p.json", b"[" * 100_000, r"is not JSON that can be read \(nested too deep\)"),
        ("p.json", b'{"a":' * 600 + b"[]" + b"}" * 600, "nested more than 64 deep"),
        ("p.json", b"[" + b"1" * 5000 + b"]", r"Exceeds the limit \(4300 digits\)"),
        ("p.json", b'["a cat", "\\ud800"]', r"prompt 2 of list p\.json holds half of a character, .*'\\ud800'; repair"),
        ("p.json", b'[{"prompt": "a", "prompt": "b"}]', "has an object with 'prompt' more than once; keep one"),
        ("p.json", b'[{"prompt": "a", "Prompt": "b"}]', "has 2 columns named 'prompt'; keep one of them"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt"', r"p\.jsonl, line 2, is not JSON"),
        ("p.csv", b"prompt,Prompt\na,b\n", r"p\.csv has 2 columns named 'prompt'; keep one of them"),
        ("p.csv", b"prompt,theme\na cat, asleep, alone\n", r"has more cells in line 2 than its 2 columns; quote"),
        (
            "p.docx",
            b"a cat",
            r"ends in '\.docx'; give a file in \.txt, \.csv, .* or one of the shipped sets occupations-",
        ),
        ("occupation-eval", b"a cat", r"ends in ''; give a file"),
    ],
)
def test_files_that_are_something_else_are_refused(name, data, message):
    with pytest.raises(InputError, match=message):
        parse_list(name, data)


CELLS = ['A lamp that says "Open Late"', "a plain kettle", '"Hi" he said', '5" nails', 'all "quoted"', '"whole"']


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_tsv_saved_again_is_read_without_the_quoting_of_csv(quoting, end):
    sink = io.StringIO(newline="")
    rows = [("Prompt", "Category", "n"), *((cell, "Arts", 1) for cell in CELLS)]
    csv.writer(sink, csv.excel_tab, quoting=quoting, lineterminator=end).writerows(rows)
    assert parse_list("parti.tsv", sink.getvalue().encode()) == CELLS


@pytest.mark.parametrize("cells", [CELLS, CELLS[1:], ['"unbalanced', "a kite", 'and "'], ['"whole"'], ['"a" b'], ['"']])
def test_a_tsv_without_quoting_keeps_its_quotation_marks(cells):
    text = "".join(f"{cell}\tArts\n" for cell in ["Prompt", *cells])
    assert parse_list("parti.tsv", text.encode()) == cells


def test_every_listed_prompt_is_kept_or_rejected_with_a_reason():
    texts = ["baker", "", "Baker", "waitress", "a cook in a kitchen", "医生", "x " * 5000, "a nurse 🙂", "two cooks"]
    sieve = Sieve(AXES)
    kept = sieve.subjects([("mine", texts)], taken=("roofer",), held_out=("cook",))
    assert kept == ["baker"]
    assert sieve.table()["reason"].tolist() == [
        "empty", "duplicate", "names_identity", "held_out", "not_plain_words", "too_long", "not_plain_words",
        "several_people",
    ]  # fmt: skip
    assert len(kept) + len(sieve.rejected) == len(texts)
    assert max(map(len, sieve.table()["text"])) <= 200


def test_prompts_used_as_they_are_keep_scripts_and_emoji():
    texts = ["一只猫 🐈", "a  man", "A man", "", "y" * 10_000, "z\x1b[0m"]
    sieve = Sieve(AXES)
    assert sieve.prompts([("mine", texts), ("more", ["a woman and a man"])]) == [
        "一只猫 🐈",
        "a man",
        "a woman and a man",
    ]
    assert sieve.table()["reason"].tolist() == ["duplicate", "empty", "too_long", "unprintable"]


def test_a_list_of_which_nothing_is_left_is_an_error():
    with pytest.raises(InputError, match=r"none of the 2 prompt\(s\) in mine\.txt can be used: {'names_identity': 2}"):
        Sieve(AXES).subjects([("fine", ["baker"]), ("mine.txt", ["waitress", "male nurse"])])


def test_a_long_list_of_much_the_same_words_takes_seconds():
    texts = [f"a worker of kind {i} in place {i * 7919 % 10007}" for i in range(3_000)]
    assert Sieve((GENDER,)).subjects([("long", texts)]) == texts


def test_json_round_trip_of_a_style_dictionary_keeps_the_order():
    styles = {"b": ["two", "one"], "a": ["three"]}
    assert parse_list("styles.json", json.dumps(styles).encode()) == ["two", "one", "three"]


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.csv", "subject;theme\nbaker, at work;work\n", "semicolons between its columns, not commas; save it again"),
        ("a.csv", "\ufeffPrompt;Note\na nurse, smiling;x\n", "semicolons"),
        ("a.csv", '"prompt";"note"\n"a nurse";"x"\n', "semicolons"),
        ("a.csv", "sep=;\nsubject;theme\nbaker;work\n", "semicolons"),
        ("a.csv", "subject\ttheme\nbaker\twork\n", r"tabs between its columns, not commas; .* with tabs \.tsv"),
        ("a.csv", "id|caption\n1|a nurse\n", "vertical bars"),
        ("a.tsv", "subject,theme\nbaker,work\n", r"commas between its columns, not tabs; .* one with commas \.csv"),
        ("a.tsv", "id;text\n1;a nurse\n", "semicolons between its columns, not tabs"),
    ],
)
def test_other_separators_are_named(name, text, found):
    with pytest.raises(InputError, match=f"prompt list {name} has {found}"):
        parse_list(name, text.encode())


def test_semicolons_in_texts_separate_nothing():
    assert parse_list("a.csv", "\ufeffsubject,a;b\nbaker;welder,x\n".encode()) == ["baker;welder"]
    assert parse_list("a.tsv", b"subject\ta,b\nbaker, at work\tx\n") == ["baker, at work"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "subject,scene\nchef,in a kitchen\n"),
        ("a.tsv", "Scene\tsubject\nin a kitchen\tchef\n"),
        ("a.json", '[{"subject": "chef", "scene": "in a kitchen"}]'),
        ("a.jsonl", '{"subject": "chef", "Scenes": ["in a kitchen"]}'),
    ],
)
def test_a_scene_beside_the_subject_is_not_left_out_in_silence(name, text):
    with pytest.raises(
        InputError, match=r"the column 'scenes?' beside 'subject', which is not read; write both as one"
    ):
        parse_list(name, text.encode())


def test_notes_beside_a_prompt_are_no_part_of_it():
    assert parse_list("a.csv", b"prompt,scene,id\na chef in a kitchen,indoors,7\n") == ["a chef in a kitchen"]
    assert parse_list("a.csv", b"subject,category,id\nchef,food,7\n") == ["chef"]
