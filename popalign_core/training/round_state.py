"""What a round of training leaves to the next one besides its model: a checkpoint as one file of safetensors.

The model's artifact has its weights in the model's dtype. Steps of a bfloat16 model may be finer than that, and
Adam's moments take hundreds of steps to find again; so the next round gets the float32 weights, the optimiser's state,
the moving mean and the count of steps, and goes on as if there had been no end.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from popalign_core.errors import DamagedWeightsError
from popalign_core.training.checkpoint import Checkpoint, LogRow

_RECORD = "state"
"""The one entry of the metadata: several would be written in an order of chance."""
_LATER = ("log", "fingerprint")
"""Of a checkpoint: the log is a table of the artifact, and the next round is another training with other data."""


def save_round_state(checkpoint: Checkpoint, file: Path) -> None:
    """Write the end of a round: the same bytes for the same training.

    Args:
        checkpoint: Of the last step.
        file: To write.
    """
    tensors: dict[str, Tensor] = {}
    record = {
        name: _take_out(getattr(checkpoint, name), name, tensors)
        for name in Checkpoint.__dataclass_fields__
        if name not in _LATER
    }
    save_file(tensors, file, metadata={_RECORD: json.dumps(record, sort_keys=True)})


def load_round_state(file: Path, log: list[LogRow]) -> Checkpoint:
    """The checkpoint that a round left.

    Args:
        file: As `save_round_state` wrote it.
        log: Rows of all rounds so far.

    Raises:
        DamagedWeightsError: When the file is not one.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            record = json.loads(opened.metadata()[_RECORD])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
        found = Checkpoint(
            **{name: _put_back(value, tensors) for name, value in record.items()}, log=[], fingerprint=""
        )
    except Exception as error:
        raise DamagedWeightsError(f"{file} holds no end of a round ({error!r:.200}); train that round again") from error
    return replace(found, log=log)


def _take_out(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON, its tensors out of it and under a name; tables as lists of pairs, for keys may be numbers."""
    if isinstance(value, Tensor):
        tensors[where] = value.detach().cpu().contiguous().clone()  # clone: safetensors refuses memory that is shared
        return {"tensor": where}
    if isinstance(value, dict):
        return {"table": [[key, _take_out(each, f"{where}/{key}", tensors)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        return [_take_out(each, f"{where}/{number}", tensors) for number, each in enumerate(value)]
    return value


def _put_back(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_put_back(each, tensors) for each in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _put_back(each, tensors) for key, each in value["table"]}
    return value
