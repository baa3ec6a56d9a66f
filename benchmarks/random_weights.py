"""Networks of random weights, written to the disk without ever being held in memory.

Tensors are made one by one and go straight into the file: what is held at a time is one of them, in float16.
"""

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

LARGEST_FILE = 10 * 10**9
"""Bytes; a network above it lies in several files with an index, as published."""


def write_network(network: Any, folder: Path, stem: str) -> None:
    """The configuration as its library saves it, and the weights in one file or in several with an index.

    Args:
        network: Of diffusers or transformers, without storage.
        folder: That is to hold it.
        stem: How its files of weights are called: `model` by transformers.
    """
    if stem == "model":
        network.config.architectures = [type(network).__name__]
        network.config.save_pretrained(folder)
    else:
        network.save_config(folder)
    shapes, seen = dict[str, tuple[int, ...]](), set[int]()
    for name, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:  # one that is tied to another is saved once
            shapes[name] = tuple(tensor.shape)
        seen.add(id(tensor))
    files = list(_split(shapes))
    if len(files) == 1:
        write_random(folder / f"{stem}.safetensors", shapes)
        return
    places = dict[str, str]()
    for number, part in enumerate(files, start=1):
        name = f"{stem}-{number:05}-of-{len(files):05}.safetensors"
        write_random(folder / name, part, seed=number)
        places |= dict.fromkeys(part, name)
    total = sum(2 * math.prod(shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _split(shapes: dict[str, tuple[int, ...]]) -> Iterator[dict[str, tuple[int, ...]]]:
    part, size = dict[str, tuple[int, ...]](), 0
    for name, shape in shapes.items():
        n_bytes = 2 * math.prod(shape)
        if part and size + n_bytes > LARGEST_FILE:
            yield part
            part, size = {}, 0
        part[name], size = shape, size + n_bytes
    yield part


def write_random(path: Path, shapes: dict[str, tuple[int, ...]], *, seed: int = 0) -> None:
    """A file of safetensors, tensor by tensor in float16.

    Matrices are normal with the deviation 1 / sqrt(fan-in), so that a signal keeps its size on its way through a
    network; scales of norms are 1, biases 0.

    Args:
        path: Of the file.
        shapes: Of its tensors, by name.
        seed: Of the numbers.
    """
    header, end = dict[str, Any](__metadata__={"format": "pt"}), 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(seed)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            tensor = torch.full(shape, float(name.endswith("weight")), dtype=torch.float16)
            if len(shape) > 1:
                tensor.normal_(0, math.prod(shape[1:]) ** -0.5, generator=generator)
            tensor.numpy().tofile(file)
