"""DeepFace's gender, race and age networks, run together on batches of faces.

Each is a VGG-Face whose last layers were fine-tuned. Where two heads' convolutions are equal, number by number, they
are run once for both, which is most of the work: so it is when training froze them, as the known recipe for these heads
does. The numbers are compared when the files are read, so nothing depends on how they were made.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from popalign_core.attributes.deepface_files import HEAD_WEIGHTS, prepare, require_weights
from popalign_core.errors import MissingWeightsError

_BATCH = 16
"""Faces a forward pass; VGG-Face keeps about 50 MB of activations for each."""
_CONVOLUTIONS = (
    ("conv1_1", "conv1_2"),
    ("conv2_1", "conv2_2"),
    ("conv3_1", "conv3_2", "conv3_3"),
    ("conv4_1", "conv4_2", "conv4_3"),
    ("conv5_1", "conv5_2", "conv5_3"),
)
"""Layers of VGG-Face before each pooling."""


class FaceHeads:
    """The networks of some axes, each distinct trunk of them once."""

    def __init__(self, axes: Sequence[str], device: str = "cpu") -> None:
        """Read the weight files.

        Args:
            axes: Among `gender`, `race` and `age`.
            device: Where the networks go.

        Raises:
            MissingWeightsError: When a file is absent, damaged, or another network's.
        """
        for axis in axes:
            require_weights(*HEAD_WEIGHTS[axis])
        self._device = torch.device(device)
        self._networks: dict[str, nn.Module] = {}
        self._trunk_of: dict[str, str] = {}
        for axis in axes:
            network = _load(axis)
            same = (other for other in set(self._trunk_of.values()) if _same_trunk(network, self._networks[other]))
            self._trunk_of[axis] = next(same, axis)
            # one trunk in memory for all that share it
            network.backbone = _with_trunk(network.backbone, self._networks.get(self._trunk_of[axis], network).backbone)
            self._networks[axis] = network.requires_grad_(False).to(self._device)

    @torch.inference_mode()
    def read(self, crops: Sequence[NDArray[np.float32]]) -> dict[str, NDArray[np.float64]]:
        """Probabilities of faces `[224, 224, 3]` BGR in [0, 1]: axis -> `[N, K]`, each row summing to 1."""
        parts: dict[str, list[Tensor]] = {axis: [] for axis in self._networks}
        for start in range(0, len(crops), _BATCH):
            batch = torch.from_numpy(np.stack(crops[start : start + _BATCH])).permute(0, 3, 1, 2).to(self._device)
            features = {
                trunk: _features(self._networks[trunk].backbone, batch) for trunk in set(self._trunk_of.values())
            }
            for axis, network in self._networks.items():
                parts[axis].append(_classify(network, features[self._trunk_of[axis]]).double().cpu())
        return {axis: torch.cat(found).numpy() if found else np.empty((0, 0)) for axis, found in parts.items()}


def _load(axis: str) -> Any:
    prepare()
    module = importlib.import_module(f"deepface.models.demography.pytorch.{axis.capitalize()}")
    try:
        return module.load_model()
    except (ValueError, RuntimeError) as error:
        file, url = HEAD_WEIGHTS[axis]
        raise MissingWeightsError(
            f"DeepFace weights {file} cannot be read ({str(error).splitlines()[0]}); get them again from {url}"
        ) from error


def _layers(backbone: Any) -> list[tuple[str, Any]]:
    return [(name, getattr(backbone, name)) for block in _CONVOLUTIONS for name in block]


def _same_trunk(one: Any, other: Any) -> bool:
    pairs = zip(_layers(one.backbone), _layers(other.backbone), strict=True)
    return all(torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias) for (_, a), (_, b) in pairs)


def _with_trunk(backbone: Any, source: Any) -> Any:
    for name, layer in _layers(source):
        setattr(backbone, name, layer)
    return backbone


def _features(backbone: Any, batch: Tensor) -> Tensor:
    """`[N, 3, 224, 224]` to `[N, 25088]`."""
    for block in _CONVOLUTIONS:
        for name in block:
            batch = functional.relu(getattr(backbone, name)(batch), inplace=True)
        batch = functional.max_pool2d(batch, 2)
    return batch.flatten(1)


def _classify(network: Any, features: Tensor) -> Tensor:
    """The fully connected layers, which the files hold as convolutions over the whole map; `[N, K]`, sums to 1."""
    for layer in (network.backbone.fc6, network.backbone.fc7):
        features = functional.relu(_connect(layer, features), inplace=True)
    return torch.softmax(_connect(network.predictions, features), dim=1)


def _connect(layer: Any, features: Tensor) -> Tensor:
    return functional.linear(features, layer.weight.flatten(1), layer.bias)


def age_shares(ages: NDArray[np.float64], bands: Mapping[str, int]) -> NDArray[np.float64]:
    """Probabilities of the ages 0 to 100 `[N, 101]` added up to those of bands `[N, K]`.

    Args:
        ages: Each row sums to 1.
        bands: Class -> its youngest age, youngest class first; the first begins at 0.
    """
    shares: NDArray[np.float64] = np.add.reduceat(ages, list(bands.values()), axis=1)
    return shares
