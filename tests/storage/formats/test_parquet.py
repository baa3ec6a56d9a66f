import io
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from popalign_core.errors import StoreError
from storage.formats.parquet import decode, encode, group_tables, to_frame
from storage.formats.schemas import SCHEMAS, VERSION_KEY

ROWS: dict[str, list[dict[str, Any]]] = {
    "prompts": [
        {
            **{
                "prompt_id": "p",
                "text": "a photo of a doctor",
                "subject": "doctor",
                "kind": "neutral",
                "split": "train",
            },
            **{"identity": {}, "parent_id": None, "template": "a photo of {}", "source": "grammar"},
            "benchmark": "neutral",
        },
        {
            **{"prompt_id": "q", "text": "a photo of a female doctor", "subject": "doctor", "kind": "specific"},
            **{"split": "train", "identity": {"race": "black", "gender": "female"}, "parent_id": "p"},
            **{"template": "a photo of {}", "source": "grammar", "benchmark": "couples"},
        },
    ],
    "images": [
        {
            **{"image_id": "i", "prompt_id": "p", "index": 0, "seed": 2**63 - 1, "width": 64, "height": 64},
            **{"image": {"bytes": b"png", "path": None}, "latents_file": "latents-00000.safetensors", "latents_row": 0},
        }
    ],
    "attributes": [
        {
            **{"image_id": "i", "n_faces": 1, "box": [1.0, 2.0, 30.0, 40.0], "detector_score": 0.5, "axis": "gender"},
            **{"class": "female", "probability": 0.75, "classifier": "portraits@1", "drop_reason": None},
        },
        {
            **{"image_id": "j", "n_faces": 0, "box": None, "detector_score": 0.0, "axis": "gender"},
            **{"class": None, "probability": None, "classifier": "portraits@1", "drop_reason": "no_face"},
        },
    ],
    "preferences": [
        {
            **{"set_id": "s", "prompt_id": "p", "role": "preferred", "image_id": "i", "slot": 0},
            **{"target": {"gender=male": 0.5, "gender=female": 0.5}, "discrepancy": 0.0, "balance": 1.0},
        }
    ],
    "retained": [{"image_id": "i", "prompt_id": "q", "kind": "specific"}],
    "scores": [{"image_id": "i", "scorer": "clip", "version": "1", "unit": "100 x cosine", "value": 31.25}],
    "unmeasured": [{"metric": "pick_score", "reason": "not measured: there is nothing at PickScore_v1"}],
    "metrics": [
        {
            **{
                "system": "base",
                "benchmark": "neutral",
                "metric": "discrepancy_pooled",
                "axis": "gender",
                "value": 0.5,
            },
            **{"ci_low": None, "ci_high": None, "n": 10, "floor": 0.25, "scorer": "portraits@1", "note": ""},
        }
    ],
    "readings": [
        {
            **{
                "system": "base",
                "reading": "retinaface",
                "benchmark": "neutral",
                "metric": "discrepancy_pooled",
                "axis": "gender",
                "value": 0.5,
            },
            **{"ci_low": None, "ci_high": None, "n": 10, "floor": 0.25, "scorer": "portraits@1", "note": ""},
        }
    ],
    "training_log": [{"step": 0, "name": "loss", "value": 0.5}],
    "wins": [
        {
            **{"system": "aligned", "reference": "base", "benchmark": "generic", "scorer": "hps", "version": "v2.1"},
            **{"n": 4, "n_wins": 2, "n_ties": 1, "win_rate": 0.625, "ci_low": None, "ci_high": None, "p_value": 0.5},
            "p_adjusted": 1.0,
        }
    ],
    "drops": [{"stage": "attributes", "reason": "no_face", "n": 3}],
    "rejected": [{"text": "a waitress", "reason": "identity"}],
    "agreement": [{"axis": "gender", "n_agreed": 9, "n_disagreed": 1}],
    "calibration": [
        {
            **{"classifier": "portraits@1", "axis": "gender", "true_class": "male", "read_class": "female", "n": 1},
            **{"share": 0.25, "ci_low": 0.0, "ci_high": 0.75},
        }
    ],
}
ROWS["comparison"] = [
    {**ROWS["metrics"][0], "reference": "cads", "value": -0.25, "floor": None, "p_value": 0.5, "p_adjusted": None}
]
ROWS["per_prompt"] = [
    {
        **{"system": "base", "prompt_id": "p", "text": "a photo of a doctor", "axis": "gender", "n": 0, "n_images": 3},
        **{"discrepancy": None, "floor": None, "leading": "", "leading_share": None},
    }
]
ROWS["points"] = [
    {
        **{"parameter": "training.beta", "value": "20", "order": 1, "system": "aligned", "benchmark": "neutral"},
        **{"metric": "discrepancy_pooled", "axis": "gender", "estimate": None, "ci_low": None, "ci_high": None},
        **{"floor": None, "note": "not measured: diverged"},
    }
]
ROWS["front"] = [
    {
        **{"parameter": "training.beta", "system": "aligned", "value": "20"},
        **{"dominated_by_system": "aligned", "dominated_by_value": "10"},
    }
]
ROWS["votes"] = [
    {
        **{"study": "s", "system_a": "aligned", "system_b": "base", "rater": "r1", "position": 0, "pair_id": "x"},
        **{"prompt_id": "p", "prompt": "a photo of a doctor", "images_a": ["i", "j"], "images_b": ["k", "l"]},
        **{"question": "fairness", "first": "b", "answer": "tie", "is_check": False, "seconds": 2.5},
    }
]
ROWS["curated"] = [
    {
        **{"study": "s", "set_id": "x", "curator": "r1", "prompt_id": "p", "image_id": "i", "slot": 0},
        **{"n_accepted": 3, "n_undone": 1},
    }
]
ROWS["labels"] = [
    {
        **{"study": "s", "rater": "r1", "position": 0, "image_id": "i", "prompt_id": "p", "axis": "gender"},
        **{"class": "cannot tell", "seconds": 1.5},
    }
]
ROWS["costs"] = [{"system": "base", "what": "training", "value": 250.0, "unit": "steps"}]


def plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_every_table_comes_back_as_it_was(name: str) -> None:
    frame = pd.DataFrame(ROWS[name])
    assert plain(to_frame([decode(name, encode(name, frame), "here")])) == ROWS[name]


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_a_table_without_rows_keeps_its_types(name: str) -> None:
    data = encode(name, pd.DataFrame(columns=SCHEMAS[name].names))
    assert pq.read_schema(io.BytesIO(data)).equals(SCHEMAS[name])
    assert len(to_frame([decode(name, data, "here")])) == 0


def test_equal_rows_are_equal_bytes() -> None:
    frame = pd.DataFrame(ROWS["prompts"])
    turned = frame[frame.columns[::-1]].set_axis([7, 3])
    turned["identity"] = [{}, dict(reversed(ROWS["prompts"][1]["identity"].items()))]
    assert encode("prompts", turned) == encode("prompts", frame)


def test_no_pandas_metadata_and_no_time_are_in_a_table() -> None:
    metadata = pq.read_metadata(io.BytesIO(encode("scores", pd.DataFrame(ROWS["scores"])))).metadata
    assert set(metadata) == {b"popalign.table", b"popalign.schema_version", b"ARROW:schema"}
    assert metadata[VERSION_KEY] == b"2"
    assert b"pandas" not in encode("scores", pd.DataFrame(ROWS["scores"]))


def test_shards_are_one_table() -> None:
    frame = pd.DataFrame(ROWS["attributes"])
    shards = [decode("attributes", encode("attributes", part), "here") for part in (frame.iloc[:1], frame.iloc[1:])]
    whole = to_frame(shards)
    assert list(whole["image_id"]) == ["i", "j"]
    assert whole["box"].tolist() == [[1.0, 2.0, 30.0, 40.0], None]
    assert whole["probability"].dtype == np.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns="value"), r"missing columns \['value'\], unknown columns \[\]"),
        (lambda frame: frame.assign(extra=1), r"missing columns \[\], unknown columns \['extra'\]"),
        (lambda frame: frame.assign(value="high"), "table 'scores' does not fit its schema: .*high"),
        (lambda frame: frame.assign(value=float("nan")), "does not fit its schema: .*value.* non-nullable"),
        (lambda frame: frame.assign(image_id=None), "does not fit its schema: .*image_id.* non-nullable"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused(change: Any, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        encode("scores", change(pd.DataFrame(ROWS["scores"])))


def test_a_map_column_must_hold_maps() -> None:
    with pytest.raises(StoreError, match="table 'prompts' does not fit its schema"):
        encode("prompts", pd.DataFrame(ROWS["prompts"]).assign(identity=None))


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(StoreError, match=r"there is no table 'opinions'; .*'scores'"):
        encode("opinions", pd.DataFrame())


def rewritten(data: bytes, change: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(change(pq.read_table(io.BytesIO(data))), sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda table: table.replace_schema_metadata({**table.schema.metadata, VERSION_KEY: b"1"}),
            r"old\.parquet: table 'scores' has schema version 1, this program reads version 2; .*--force",
        ),
        (lambda table: table.replace_schema_metadata({}), r"old\.parquet is not a table 'scores' .*it says None"),
        (
            lambda table: table.drop_columns("value"),
            r"old\.parquet: table 'scores' has not the columns of schema version 2",
        ),
    ],
)
def test_another_schema_says_so(change: Any, message: str) -> None:
    data = rewritten(encode("scores", pd.DataFrame(ROWS["scores"])), change)
    with pytest.raises(StoreError, match=message):
        decode("scores", data, "old.parquet")


def test_win_rates_of_before_they_were_corrected_are_read() -> None:
    def aged(table: pa.Table) -> pa.Table:
        return table.drop_columns("p_adjusted").replace_schema_metadata({**table.schema.metadata, VERSION_KEY: b"1"})

    frame = to_frame([decode("wins", rewritten(encode("wins", pd.DataFrame(ROWS["wins"])), aged), "old.parquet")])
    assert (frame["p_value"].tolist(), frame["p_adjusted"].isna().tolist()) == ([0.5], [True])


def test_prompts_of_before_there_were_benchmarks_are_read() -> None:
    """Their artifacts keep their keys, so they must be read."""

    def aged(table: pa.Table) -> pa.Table:
        return table.drop_columns("benchmark").replace_schema_metadata({**table.schema.metadata, VERSION_KEY: b"1"})

    data = rewritten(encode("prompts", pd.DataFrame(ROWS["prompts"])), aged)
    frame = to_frame([decode("prompts", data, "old.parquet")])
    assert list(frame) == SCHEMAS["prompts"].names
    assert frame["benchmark"].isna().all()
    assert frame["text"].tolist() == [row["text"] for row in ROWS["prompts"]]
    assert decode("prompts", data, "old.parquet", ["text"]).column_names == ["text"]
    assert decode("prompts", data, "old.parquet", ["kind", "benchmark"]).column_names == ["kind", "benchmark"]
    untrue = rewritten(data, lambda table: table.replace_schema_metadata({**table.schema.metadata, VERSION_KEY: b"2"}))
    with pytest.raises(StoreError, match="has not the columns of schema version 2"):
        decode("prompts", untrue, "old.parquet")


def test_another_table_says_so() -> None:
    with pytest.raises(StoreError, match=r"not a table 'drops' of this program \(it says 'scores'\)"):
        decode("drops", encode("scores", pd.DataFrame(ROWS["scores"])), "drops.parquet")


def test_what_is_not_parquet_says_so() -> None:
    with pytest.raises(StoreError, match=r"torn\.parquet cannot be read as Parquet"):
        decode("scores", encode("scores", pd.DataFrame(ROWS["scores"]))[:-20], "torn.parquet")


def test_schemas_carry_their_name() -> None:
    assert {schema.metadata[b"popalign.table"].decode() for schema in SCHEMAS.values()} == set(SCHEMAS)
    assert all(isinstance(schema, pa.Schema) for schema in SCHEMAS.values())


def test_files_are_grouped_by_table() -> None:
    files = ["images-00001.parquet", "drops.parquet", "images-00000.parquet", "model/x.parquet", "notes.txt"]
    assert group_tables(files) == {
        "drops": ["drops.parquet"],
        "images": ["images-00000.parquet", "images-00001.parquet"],
    }


@pytest.mark.parametrize("files", [["t-00001.parquet"], ["t.parquet", "t-00000.parquet"]])
def test_a_missing_shard_is_an_error(files: list[str]) -> None:
    with pytest.raises(StoreError, match=r"expected t\.parquet alone or shards from 00000 on"):
        group_tables(files)


def test_equal_maps_are_converted_once_and_give_the_same_bytes() -> None:
    shared, rows = {"b": 0.5, "a": 0.5}, []
    for number in range(4):
        rows.append(ROWS["preferences"][0] | {"slot": number, "target": shared})
    each = [row | {"target": dict(sorted(shared.items()))} for row in rows]
    assert encode("preferences", pd.DataFrame(rows)) == encode("preferences", pd.DataFrame(each))
    targets = to_frame([decode("preferences", encode("preferences", pd.DataFrame(rows)), "there")])["target"].tolist()
    assert [list(target.items()) for target in targets] == [[("a", 0.5), ("b", 0.5)]] * 4
