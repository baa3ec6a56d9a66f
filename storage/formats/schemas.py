"""The pyarrow schemas of every table, each with a version. Change a schema: raise its number, note it in CHANGELOG."""

import json
from typing import Any, Final

import pyarrow as pa

TABLE_KEY: Final = b"popalign.table"
VERSION_KEY: Final = b"popalign.schema_version"

# What HF `datasets` looks for: it then shows the column `image` as PIL images.
_HF_FEATURES: Final = {b"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}}).encode()}

_TEXT = pa.string()
_I32, _I64, _F32, _F64 = pa.int32(), pa.int64(), pa.float32(), pa.float64()


def _schema(
    name: str,
    version: int,
    columns: dict[str, Any],
    *,
    optional: tuple[str, ...] = (),
    extra: dict[bytes, bytes] | None = None,
) -> pa.Schema:
    fields = [pa.field(column, kind, nullable=column in optional) for column, kind in columns.items()]
    return pa.schema(fields, {TABLE_KEY: name.encode(), VERSION_KEY: str(version).encode()} | (extra or {}))


_METRICS = {
    "system": _TEXT,
    "benchmark": _TEXT,
    "metric": _TEXT,
    "axis": _TEXT,
    "value": _F64,
    "ci_low": _F64,
    "ci_high": _F64,
    "n": _I64,
    "floor": _F64,
    "scorer": _TEXT,
    "note": _TEXT,  # "" when there is nothing to say; why, where value is absent
}
_METRICS_OPTIONAL = ("value", "ci_low", "ci_high", "floor")

_COMPARISON = {
    "system": _TEXT,
    "reference": _TEXT,
    "benchmark": _TEXT,
    "metric": _TEXT,
    "axis": _TEXT,
    "value": _F64,  # system minus reference
    "ci_low": _F64,
    "ci_high": _F64,
    "n": _I64,
    "floor": _F64,  # always absent: so that both tables can be read by one program
    "scorer": _TEXT,
    "p_value": _F64,
    "p_adjusted": _F64,  # Holm, over the headline rows of the table
    "note": _TEXT,
}

SCHEMAS: Final[dict[str, pa.Schema]] = {
    "prompts": _schema(
        "prompts",
        2,
        {
            "prompt_id": _TEXT,
            "text": _TEXT,
            "subject": _TEXT,
            "kind": _TEXT,  # neutral, specific, generic
            "split": _TEXT,  # train, eval
            "identity": pa.map_(_TEXT, _TEXT),  # axis -> class
            "parent_id": _TEXT,
            "template": _TEXT,
            "source": _TEXT,
            "benchmark": _TEXT,  # neutral, specific, generic, or a name of its own
        },
        optional=("parent_id", "benchmark"),
    ),
    "images": _schema(
        "images",
        1,
        {
            "image_id": _TEXT,
            "prompt_id": _TEXT,
            "index": _I32,
            "seed": _I64,
            "width": _I32,  # px
            "height": _I32,  # px
            "image": pa.struct([("bytes", pa.binary()), ("path", _TEXT)]),  # PNG; nullable, or `datasets` refuses it
            "latents_file": _TEXT,
            "latents_row": _I32,
        },
        optional=("image",),
        extra=_HF_FEATURES,
    ),
    "attributes": _schema(
        "attributes",
        1,
        {
            "image_id": _TEXT,
            "n_faces": _I32,
            "box": pa.list_(_F32),  # x, y, w, h in px
            "detector_score": _F32,
            "axis": _TEXT,
            "class": _TEXT,
            "probability": _F32,
            "classifier": _TEXT,  # name@version
            "drop_reason": _TEXT,
        },
        optional=("box", "class", "probability", "drop_reason"),
    ),
    "preferences": _schema(
        "preferences",
        1,
        {
            "set_id": _TEXT,
            "prompt_id": _TEXT,
            "role": _TEXT,  # preferred, dispreferred
            "image_id": _TEXT,
            "slot": _I32,
            "target": pa.map_(_TEXT, _F64),  # "axis=class" -> share
            "discrepancy": _F64,
            "balance": _F64,
        },
    ),
    "retained": _schema("retained", 1, {"image_id": _TEXT, "prompt_id": _TEXT, "kind": _TEXT}),
    "scores": _schema(
        "scores", 2, {"image_id": _TEXT, "scorer": _TEXT, "version": _TEXT, "unit": _TEXT, "value": _F64}
    ),
    "unmeasured": _schema("unmeasured", 1, {"metric": _TEXT, "reason": _TEXT}),
    "metrics": _schema("metrics", 2, _METRICS, optional=_METRICS_OPTIONAL),
    "readings": _schema("readings", 1, {"reading": _TEXT, **_METRICS}, optional=_METRICS_OPTIONAL),
    "comparison": _schema("comparison", 2, _COMPARISON, optional=(*_METRICS_OPTIONAL, "p_value", "p_adjusted")),
    "wins": _schema(
        "wins",
        2,
        {
            "system": _TEXT,
            "reference": _TEXT,
            "benchmark": _TEXT,
            "scorer": _TEXT,
            "version": _TEXT,
            "n": _I64,  # pairs of images
            "n_wins": _I64,  # of the system
            "n_ties": _I64,
            "win_rate": _F64,  # a tie counts half
            "ci_low": _F64,
            "ci_high": _F64,
            "p_value": _F64,
            "p_adjusted": _F64,  # Holm, over the rows of the table
        },
        optional=("win_rate", "ci_low", "ci_high", "p_value", "p_adjusted"),
    ),
    "training_log": _schema("training_log", 1, {"step": _I64, "name": _TEXT, "value": _F64}),
    "drops": _schema("drops", 1, {"stage": _TEXT, "reason": _TEXT, "n": _I64}),
    "agreement": _schema("agreement", 1, {"axis": _TEXT, "n_agreed": _I64, "n_disagreed": _I64}),
    "calibration": _schema(
        "calibration",
        1,
        {
            "classifier": _TEXT,  # name@version
            "axis": _TEXT,
            "true_class": _TEXT,
            "read_class": _TEXT,  # "" where no class was read
            "n": _I64,
            "share": _F64,  # of the images read, among those of the true class; of all for ""
            "ci_low": _F64,
            "ci_high": _F64,
        },
        optional=("share", "ci_low", "ci_high"),
    ),
    "per_prompt": _schema(
        "per_prompt",
        1,
        {
            "system": _TEXT,
            "prompt_id": _TEXT,
            "text": _TEXT,
            "axis": _TEXT,
            "n": _I64,  # images read
            "n_images": _I64,
            "discrepancy": _F64,
            "floor": _F64,
            "leading": _TEXT,  # most frequent class
            "leading_share": _F64,
        },
        optional=("discrepancy", "floor", "leading_share"),
    ),
    "points": _schema(
        "points",
        1,
        {
            "parameter": _TEXT,
            "value": _TEXT,
            "order": _I64,
            "system": _TEXT,
            "benchmark": _TEXT,
            "metric": _TEXT,
            "axis": _TEXT,
            "estimate": _F64,
            "ci_low": _F64,
            "ci_high": _F64,
            "floor": _F64,
            "note": _TEXT,
        },
        optional=("estimate", "ci_low", "ci_high", "floor"),
    ),
    "front": _schema(
        "front",
        1,
        {
            "parameter": _TEXT,
            "system": _TEXT,
            "value": _TEXT,
            "dominated_by_system": _TEXT,  # "" on the front
            "dominated_by_value": _TEXT,
        },
    ),
    "costs": _schema("costs", 1, {"system": _TEXT, "what": _TEXT, "value": _F64, "unit": _TEXT}),
    "votes": _schema(
        "votes",
        1,
        {
            "study": _TEXT,
            "system_a": _TEXT,
            "system_b": _TEXT,
            "rater": _TEXT,  # a pseudonym: neither links nor the database's ids lead to it
            "position": _I32,  # in the rater's plan
            "pair_id": _TEXT,
            "prompt_id": _TEXT,
            "prompt": _TEXT,
            "images_a": pa.list_(_TEXT),
            "images_b": pa.list_(_TEXT),
            "question": _TEXT,
            "first": _TEXT,  # a, b: the side that stood first
            "answer": _TEXT,  # a, b, tie
            "is_check": pa.bool_(),  # the right answer is a
            "seconds": _F64,
        },
    ),
    "curated": _schema(
        "curated",
        1,
        {
            "study": _TEXT,
            "set_id": _TEXT,
            "curator": _TEXT,  # a pseudonym, as in votes
            "prompt_id": _TEXT,  # neutral
            "image_id": _TEXT,
            "slot": _I32,
            "n_accepted": _I32,  # steps of the chain, in every row of its set
            "n_undone": _I32,
        },
    ),
    "labels": _schema(
        "labels",
        1,
        {
            "study": _TEXT,
            "rater": _TEXT,  # a pseudonym, as in votes
            "position": _I32,
            "image_id": _TEXT,
            "prompt_id": _TEXT,
            "axis": _TEXT,
            "class": _TEXT,  # or `cannot tell`
            "seconds": _F64,
        },
    ),
    "rejected": _schema("rejected", 1, {"text": _TEXT, "reason": _TEXT}),
}
"""Table -> schema; its name and version are in the schema's metadata and go into the Parquet file."""

ADDED: Final[dict[tuple[str, int], tuple[str, ...]]] = {
    ("prompts", 2): ("benchmark",),
    ("wins", 2): ("p_adjusted",),
}
"""Nullable columns that a version brought and that are all it brought: tables of the one before are read without."""


PICK_A_PIC: Final = pa.schema(
    {
        "are_different": pa.bool_(),
        "best_image_uid": _TEXT,
        "caption": _TEXT,
        "has_label": pa.bool_(),
        "image_0_uid": _TEXT,
        "image_1_uid": _TEXT,
        "jpg_0": pa.binary(),  # PNG under this name: lossless, and decoders go by content
        "jpg_1": pa.binary(),
        "label_0": _F64,
        "label_1": _F64,
        "model_0": _TEXT,
        "model_1": _TEXT,
        "num_example_per_prompt": _I64,
        "ranking_id": _I64,
        "user_id": _I64,
    }
)
"""Pairs as Pick-a-Pic publishes them and Diffusion-DPO trainers read them; for `popalign export`, no table of ours."""

SET_MEMBERS: Final = pa.schema(
    {
        "set_id": _TEXT,
        "prompt_id": _TEXT,
        "caption": _TEXT,
        "role": _TEXT,
        "slot": _I32,
        "image_id": _TEXT,
        "image": pa.struct([("bytes", pa.binary()), ("path", _TEXT)]),
        "discrepancy": _F64,
        "balance": _F64,
        "target": pa.list_(pa.struct([("class", _TEXT), ("share", _F64)])),  # `datasets` knows no maps
    },
    _HF_FEATURES,
)
"""The members of set preferences with their images, for HF `datasets`; for `popalign export`, no table of ours."""


def schema_version(schema: pa.Schema) -> int | None:
    """The version in a schema's metadata; None when this program did not write it."""
    text = (schema.metadata or {}).get(VERSION_KEY, b"")
    return int(text) if text.isdigit() else None


def table_name(schema: pa.Schema) -> str | None:
    """The table's name in a schema's metadata; None when this program did not write it."""
    name = (schema.metadata or {}).get(TABLE_KEY)
    return name.decode() if name else None
