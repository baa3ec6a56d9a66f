"""People's labels as readings: by id, by majority, and never made up."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from popalign_core.attributes.filtering import filter_readings
from popalign_core.attributes.people_labels import PeopleClassifier, read_labels
from popalign_core.config import AttributesConfig, Axis
from popalign_core.errors import InputError, MissingWeightsError

AXES = {"gender": ("male", "female"), "race": ("white", "black", "asian")}
ROWS = [
    ("a", "gender", "male"), ("a", "gender", "male"), ("a", "gender", "female"), ("a", "race", "black"),
    ("b", "gender", "female"),
    ("c", "gender", "male"), ("c", "gender", "female"), ("c", "race", "white"),
]  # fmt: skip
TABLE = pd.DataFrame(ROWS, columns=["image_id", "axis", "class"])
NOTHING = np.zeros((8, 8, 3), np.uint8)


def judged(ids):
    classifier = PeopleClassifier("people", "1", AXES, TABLE)
    axes = [Axis(name=name, classes=classes) for name, classes in AXES.items()]
    return filter_readings(classifier.read([NOTHING] * len(ids), ids), ids, axes, AttributesConfig(), "people@1")


def test_most_people_decide_and_their_share_is_the_probability():
    table = judged(["b", "a"])
    assert table["class"].tolist() == ["female", None, "male", "black"]
    assert table["probability"].tolist() == pytest.approx([1, 1, 2 / 3, 1])
    assert table["drop_reason"].tolist() == [None, "unsure", None, None]  # nobody labelled the race of b


def test_a_tie_is_unsure_and_an_image_that_nobody_saw_says_so():
    table = judged(["c", "z"])
    assert table["drop_reason"].tolist() == ["unsure", None, "unlabelled", "unlabelled"]
    assert table["class"].tolist() == [None, "white", None, None]


def test_pictures_without_ids_are_not_read():
    with pytest.raises(InputError, match="knows stored images by their ids, but 1 came with 0 ids"):
        PeopleClassifier("people", "1", AXES, TABLE).read([NOTHING])


def test_a_class_that_nobody_could_choose_is_named():
    with pytest.raises(InputError, match=r"the labels \[\('race', 'asain'\)\] are not among the classes"):
        PeopleClassifier("people", "1", AXES, pd.DataFrame([("a", "race", "asain")], columns=TABLE.columns))


@pytest.mark.parametrize("said", ["Race", "race ", "ethnicity"])
def test_an_axis_that_nobody_labelled_is_named(said):
    """It would be unsure on every image, as if nobody could tell."""
    with pytest.raises(InputError, match=rf"the axis 'race' has no label; the labels are of .*'{said}'"):
        PeopleClassifier("people", "1", AXES, TABLE.replace({"axis": {"race": said}}))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_both_sorts_of_table_are_read_as_text(tmp_path, suffix):
    path = tmp_path / f"labels{suffix}"
    table = TABLE.assign(image_id=["007"] * len(TABLE), rater=1)
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    read = read_labels(path)
    assert read.columns.tolist() == ["image_id", "axis", "class"]
    assert set(read["image_id"]) == {"007"}
    assert read["class"].tolist() == TABLE["class"].tolist()


def test_tables_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "labels.csv"
    with pytest.raises(MissingWeightsError, match="there are no labels at"):
        read_labels(path)
    for content, reason in (
        ("image,axis,class\na,gender,male\n", r"lacks the columns \['image_id'\], it has \['image', 'axis', 'class'\]"),
        ("image_id,axis,class\n", "has 0 rows"),
        ("image_id,axis,class\na,gender,\n", "has 1 rows, 1 with an empty cell"),
        ("", "cannot be read"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=reason):
            read_labels(path)
    (tmp_path / "labels.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="cannot be read"):
        read_labels(tmp_path / "labels.parquet")


NAMES = ["None", "NA", "null", "nan", "N/A", ""]


def write_labels(path, classes, **more):
    table = pd.DataFrame({"image_id": [str(n) for n in range(len(classes))], "axis": "hat", "class": classes} | more)
    table.to_csv(path, index=False) if path.suffix == ".csv" else table.to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".PARQUET"])
def test_classes_that_mean_nothing_elsewhere_are_classes(tmp_path, suffix):
    assert read_labels(write_labels(tmp_path / f"l{suffix}", NAMES[:-1]))["class"].tolist() == NAMES[:-1]


def test_an_empty_cell_is_empty_all_the_same(tmp_path):
    with pytest.raises(InputError, match="has 6 rows, 1 with an empty cell"):
        read_labels(write_labels(tmp_path / "labels.csv", NAMES))


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (pd.Categorical(["a", "NA"]), ["a", "NA"]),
        (pd.array(["a", "b"], "string[pyarrow]"), ["a", "b"]),
        (pd.array([1, 2], "Int64"), ["1", "2"]),
        ([True, False], ["True", "False"]),
    ],
)
def test_siblings_of_text_are_text(tmp_path, classes, expected):
    assert read_labels(write_labels(tmp_path / "labels.parquet", classes))["class"].tolist() == expected


@pytest.mark.parametrize("image_id", ["4.93E+27", "4,93472E+15", "5e+18", "1234567890123456.0", "inf"])
def test_ids_that_a_spreadsheet_took_for_numbers_are_refused(tmp_path, image_id):
    table = pd.DataFrame({"image_id": ["0a1b2c3d4e5f6071", image_id], "axis": "hat", "class": "a"})
    table.to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(InputError, match=r"has 1 image_id\(s\) like .*a spreadsheet took ids for numbers"):
        read_labels(tmp_path / "labels.csv")


@pytest.mark.parametrize("image_id", ["49347e7152321234", "1234567890123456", "12e5", "image.1"])
def test_ids_that_only_look_like_numbers_are_ids(tmp_path, image_id):
    table = pd.DataFrame({"image_id": [image_id], "axis": "hat", "class": "a"})
    table.to_csv(tmp_path / "labels.csv", index=False)
    assert read_labels(tmp_path / "labels.csv")["image_id"].tolist() == [image_id]


def test_an_index_is_a_column_like_others(tmp_path):
    TABLE.set_index("image_id").to_parquet(tmp_path / "labels.parquet")
    assert read_labels(tmp_path / "labels.parquet")["image_id"].tolist() == TABLE["image_id"].tolist()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"image_id,axis,class,class\na,hat,one,two\n", r"has the columns \['class'\] more than once"),
        (b"image_id,axis,class\na,hat,one,\nb,hat,two,\n", "cannot be read .*Expected 3 fields in line 2, saw 4"),
        (b"image_id;axis;class\na;hat;one\n", "has semicolons between its columns, not commas.*; give UTF-8 CSV with"),
        (b"\xef\xbb\xbfimage_id;axis;class\na;hat;1,5\n", "has semicolons between its columns"),
        (b"image_id\taxis\tclass\na\that\tone\n", "has tabs between its columns, not commas"),
        (b"sep=;\nimage_id;axis;class\na;hat;one\n", "has semicolons between its columns"),
        ("image_id,axis,class\na,hat,béret\n".encode("latin1"), "cannot be read .*; give UTF-8 CSV with commas"),
        ("image_id,axis,class\na,hat,one\n".encode("utf-16"), "cannot be read .*; give UTF-8 CSV with commas"),
        (b'image_id,axis,class\na,hat,"one\n', "cannot be read .*EOF inside string"),
    ],
)
def test_csv_that_would_be_misread_is_refused(tmp_path, content, reason):
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(InputError, match=reason):
        read_labels(tmp_path / "labels.csv")


def test_lines_end_at_newlines_and_may_begin_with_a_mark(tmp_path):
    (tmp_path / "labels.csv").write_text("\ufeffimage_id,axis,class\na,hat,one\u2028two\n", encoding="utf-8")
    assert read_labels(tmp_path / "labels.csv").to_numpy().tolist() == [["a", "hat", "one\u2028two"]]


def test_damaged_parquet_is_refused_whatever_pandas_makes_of_it(tmp_path):
    good = write_labels(tmp_path / "labels.parquet", ["a", "b"]).read_bytes()
    generator, footer = np.random.default_rng(5), len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    n_refused = 0
    for number in range(200):
        bad = bytearray(good[: generator.integers(len(good))] if number % 4 == 0 else good)
        for place in generator.integers(footer, len(good), 3):
            if place < len(bad):
                bad[place] = int(generator.integers(256))
        (tmp_path / "labels.parquet").write_bytes(bad)
        try:
            read_labels(tmp_path / "labels.parquet")
        except InputError:
            n_refused += 1
    assert n_refused > 100  # and nothing else was raised


@pytest.mark.parametrize("column", ["image_id", "axis", "class"])
def test_a_page_that_is_not_what_its_checksum_says_is_refused(tmp_path, column):
    path = tmp_path / "labels.parquet"
    table = pa.table({"image_id": ["a", "b"], "axis": ["hat", "hat"], "class": ["long", "lank"]})
    pq.write_table(table, path, use_dictionary=False, compression="none", write_page_checksum=True)
    content = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(0).column(table.schema.get_field_index(column))
    content[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        read_labels(path)
