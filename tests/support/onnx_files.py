"""A tiny ONNX network, written field by field: the package `onnx` is not needed for that, nor installed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def write_colour_network(
    path: Path,
    weights: np.ndarray,
    bias: Sequence[float],
    size: tuple[int, int],
    *,
    batch: int | None = None,
    dtype: str = "float32",
    is_flat: bool = True,
    further_inputs: Sequence[str] = (),
) -> Path:
    """`[N, 3, H, W]` to `[N, K]`: weights `[3, K]` times the mean colour, plus bias; or to the means `[N, 3, 1, 1]`."""
    n_outputs = weights.shape[1]
    graph = (
        _message(1, _node("GlobalAveragePool", ["input"], "pooled"))
        + _message(1, _node("Flatten", ["pooled"], "flat"))
        + _message(1, _node("Gemm", ["flat", "weights", "bias"], "output"))
        + _text(2, "colours")
        + _message(5, _tensor("weights", weights, dtype))
        + _message(5, _tensor("bias", np.asarray(bias), dtype))
        + _message(11, _value("input", [batch, 3, *size], dtype))
        + b"".join(_message(11, _value(name, [1], dtype)) for name in further_inputs)
        + _message(
            12, _value("output", [batch, n_outputs], dtype) if is_flat else _value("pooled", [batch, 3, 1, 1], dtype)
        )
    )
    model = _number(1, 8) + _message(8, _text(1, "") + _number(2, 13)) + _message(7, graph)  # IR 8, operators 13
    path.write_bytes(model)
    return path


def _node(operator: str, inputs: Sequence[str], output: str) -> bytes:
    return b"".join(_text(1, name) for name in inputs) + _text(2, output) + _text(4, operator)


_ELEMENTS = {"float32": 1, "float16": 10}
"""As ONNX numbers the types."""


def _tensor(name: str, values: np.ndarray, dtype: str) -> bytes:
    dims = b"".join(_number(1, side) for side in values.shape)
    return dims + _number(2, _ELEMENTS[dtype]) + _text(8, name) + _message(9, values.astype(dtype).tobytes())


def _value(name: str, shape: Sequence[int | None], dtype: str) -> bytes:
    sides = b"".join(_message(1, _text(2, "n") if side is None else _number(1, side)) for side in shape)
    return _text(1, name) + _message(2, _message(1, _number(1, _ELEMENTS[dtype]) + _message(2, sides)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, value: str) -> bytes:
    return _message(field, value.encode())


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)
