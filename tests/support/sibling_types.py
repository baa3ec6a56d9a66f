"""The same values in other Arrow types: what pandas, polars, Spark, DuckDB and HF `datasets` make of one table."""

import decimal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

Make = Callable[[Sequence[Any]], pa.Array]

TEXTS: Final[Mapping[str, Make]] = {
    "string": lambda cells: pa.array(cells, pa.string()),
    "large_string": lambda cells: pa.array(cells, pa.large_string()),
    "string_view": lambda cells: pa.array(cells, pa.string_view()),
    "categorical": lambda cells: pa.array(cells, pa.string()).dictionary_encode(),
    "large categorical": lambda cells: pa.array(cells, pa.large_string()).dictionary_encode(),
}
NUMBERS: Final[Mapping[str, Make]] = {
    "double": lambda cells: pa.array(cells, pa.float64()),
    "float": lambda cells: pa.array(cells, pa.float32()),
    "half": lambda cells: pa.array(cells, pa.float16()),
    "decimal": lambda cells: pa.array([_decimal(cell) for cell in cells], pa.decimal128(10, 2)),
    "categorical": lambda cells: pa.array(cells, pa.float64()).dictionary_encode(),
}
WHOLES: Final[Mapping[str, Make]] = {
    "int64": lambda cells: pa.array([_int(cell) for cell in cells], pa.int64()),
    "int8": lambda cells: pa.array([_int(cell) for cell in cells], pa.int8()),
    "uint64": lambda cells: pa.array([_int(cell) for cell in cells], pa.uint64()),
    **NUMBERS,
}
BOOLEANS: Final[Mapping[str, Make]] = {
    "bool": lambda cells: pa.array([None if cell is None else bool(cell) for cell in cells], pa.bool_()),
    **WHOLES,
}
_BYTES: Final[Mapping[str, Make]] = {
    "binary": lambda cells: pa.array(cells, pa.binary()),
    "large_binary": lambda cells: pa.array(cells, pa.large_binary()),
    "binary_view": lambda cells: pa.array(cells, pa.binary_view()),
    "categorical": lambda cells: pa.array(cells, pa.binary()).dictionary_encode(),
}


def _struct(make: Make, path: Make | None) -> Make:
    def build(cells: Sequence[Any]) -> pa.Array:
        parts = {"bytes": make(cells)} | ({"path": path([None] * len(cells))} if path else {})
        return pa.StructArray.from_arrays(list(parts.values()), list(parts))

    return build


IMAGES: Final[Mapping[str, Make]] = {
    **_BYTES,
    **{f"struct of {name}": _struct(make, TEXTS["string"]) for name, make in _BYTES.items()},
    "struct of bytes alone": _struct(_BYTES["binary"], None),
    "struct with a path of type null": _struct(_BYTES["binary"], lambda cells: pa.nulls(len(cells))),
}


def _shares(outer: Callable[[pa.DataType], pa.DataType], share: pa.DataType) -> Make:
    kind = outer(pa.struct([("share", share), ("more", pa.int8()), ("class", pa.large_string())]))
    return lambda cells: pa.array(
        [
            None if cell is None else [None, *({"class": name, "share": part} for name, part in cell.items())]
            for cell in cells
        ],
        kind,
    )


SHARES: Final[Mapping[str, Make]] = {
    "list": _shares(pa.list_, pa.float64()),
    "large list": _shares(pa.large_list, pa.float32()),
    "map": lambda cells: pa.array(
        [None if cell is None else list(cell.items()) for cell in cells], pa.map_(pa.string(), pa.float64())
    ),
}


def _int(cell: float | None) -> int | None:
    return None if cell is None else int(cell)


def _decimal(cell: float | None) -> decimal.Decimal | None:
    return None if cell is None else decimal.Decimal(repr(float(cell))).quantize(decimal.Decimal("0.01"))
