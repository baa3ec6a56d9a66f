"""Image classifiers with labels: any folder of transformers, or an ONNX file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from popalign_core.attributes.classifier_interface import Probabilities
from popalign_core.config import NetworkConfig
from popalign_core.errors import InputError, MissingWeightsError

_BATCH = 32
_SUM_TOLERANCE = 1e-3
_NUMBERS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
"""Inputs of an ONNX file that take normalised values."""
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Network:
    """A loaded network.

    Attributes:
        labels: Of its outputs, in order.
        run: Images `[H, W, 3]` RGB uint8 of any size to outputs `[N, K]`.
        is_logits: Whether a softmax over an axis's labels makes probabilities of the outputs, or they are some.
    """

    labels: tuple[str, ...]
    run: Callable[[Sequence[NDArray[np.uint8]]], FloatArray]
    is_logits: bool


class LabelClassifier:
    """Reads axes off a network's labels; attributes as those of `FaceClassifier`.

    The labels of one axis compete with each other only, so a network may hold several axes in one row of outputs, as
    FairFace's does. Several labels may mean one class.
    """

    def __init__(self, name: str, version: str, settings: NetworkConfig, network: Network) -> None:
        """Check that every label of the network has a place.

        Raises:
            InputError: When a label is in no axis, in two, or not the network's.
        """
        self.name, self.version, self._network = name, version, network
        self.axes = settings.classes
        self._labels = settings.axes
        named = [label for labels in settings.axes.values() for label in labels]
        outputs = network.labels
        for wrong, text in (
            (
                sorted({label for label in outputs if outputs.count(label) > 1}),
                "are labels of several outputs; name each apart",
            ),
            (sorted(set(outputs) - set(named)), "are in no axis; map each, to itself if no axis has its class"),
            (sorted(set(named) - set(outputs)), f"are not labels of the network, which has {outputs}"),
            (sorted({label for label in named if named.count(label) > 1}), "are in two axes; put each in one"),
        ):
            if wrong:
                raise InputError(f"attributes.classifiers.{name}.axes: {wrong} {text}")

    def classify(self, images: Sequence[NDArray[np.uint8]]) -> list[Probabilities]:
        """Probabilities of each axis's labels, added up to classes."""
        parts = [self._network.run(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)]
        outputs = np.concatenate(parts) if parts else np.empty((0, len(self._network.labels)))
        if not np.isfinite(outputs).all():
            raise InputError(f"classifier {self.name}: its outputs are not finite; its weights or its input are broken")
        return [{axis: self._read_axis(axis, row) for axis in self.axes} for row in outputs]

    def _read_axis(self, axis: str, row: FloatArray) -> dict[str, float]:
        labels = self._labels[axis]
        values = row[[self._network.labels.index(label) for label in labels]]
        if self._network.is_logits:
            values = np.exp(values - values.max())
            values /= values.sum()
        elif not (values >= 0).all() or abs(values.sum() - 1) > _SUM_TOLERANCE:
            raise InputError(
                f"classifier {self.name}: outputs {values.tolist()} for {axis!r} are not a distribution; "
                "set softmax = true"
            )
        shares = dict.fromkeys(self.axes[axis], 0.0)
        for name, value in zip(labels.values(), values, strict=True):
            shares[name] = min(1.0, shares[name] + float(value))
        return shares


def load_transformers(settings: NetworkConfig, device: str) -> Network:
    """A folder that `save_pretrained` wrote, with its image processor; nothing is downloaded.

    Raises:
        MissingWeightsError: When a file is absent.
        DamagedWeightsError: When a tensor is absent, the folder holds another sort of model, or its image processor is
            not understood.
    """
    from transformers import AutoModelForImageClassification

    from popalign_core.models.image_processors import check_fit, load_preprocessing, preprocessing_file
    from popalign_core.models.weights_check import PartFolder, load_module

    folder = Path(settings.path)
    for file in (folder / "config.json", preprocessing_file(folder)):
        if not file.is_file():
            raise MissingWeightsError(
                f"the image classifier {folder} has no {file.name}; give a folder with all its files"
            )
    part = PartFolder("the image classifier", folder, "give a folder with all its files")
    preprocessing = load_preprocessing(part)
    model = load_module(AutoModelForImageClassification, part, torch.float32).eval()
    check_fit(part, preprocessing, model.forward)  # as a trial it is no call that hooks count
    model = model.to(torch.device(device))

    @torch.inference_mode()
    def run(images: Sequence[NDArray[np.uint8]]) -> FloatArray:
        values = preprocessing.apply_all(images)
        outputs: FloatArray = model(pixel_values=values.to(model.device)).logits.double().cpu().numpy()
        return outputs

    labels = model.config.id2label
    if sorted(labels) != list(range(len(labels))):
        raise part.refusal(f"id2label of config.json has the numbers {sorted(labels)}; they count from 0")
    return Network(tuple(str(labels[i]) for i in range(len(labels))), run, is_logits=True)


def load_onnx(settings: NetworkConfig, device: str) -> Network:
    """An ONNX file with one input `[N, 3, H, W]` and outputs `[N, K]`.

    Raises:
        MissingWeightsError: When it is absent.
        InputError: When it cannot be read, or its shapes are others.
    """
    import onnxruntime

    if not Path(settings.path).is_file():
        raise MissingWeightsError(f"there is no ONNX file at {settings.path}; put it there")
    wanted = ["CUDAExecutionProvider"] if device.startswith("cuda") else []
    known = onnxruntime.get_available_providers()
    providers = [*(name for name in wanted if name in known), "CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(settings.path, _session_options(onnxruntime), providers=providers)
    except Exception as error:  # onnxruntime's own errors have no other root
        raise InputError(f"{settings.path} cannot be read as ONNX ({str(error).splitlines()[0]})") from error
    given, made = session.get_inputs()[0], session.get_outputs()[0]
    shape, kind = list(given.shape), _NUMBERS.get(given.type)
    if len(shape) != 4 or shape[1] != 3 or kind is None or not all(isinstance(side, int) for side in shape[2:]):
        raise InputError(
            f"{settings.path} takes {given.type} {shape}; an image classifier takes floats [N, 3, height, width] of "
            "fixed size"
        )
    prepare = _resizing((shape[2], shape[3]), int(Image.Resampling.BILINEAR), 1 / 255, settings.mean, settings.std)
    batch = shape[0] if isinstance(shape[0], int) else None

    def run(images: Sequence[NDArray[np.uint8]]) -> FloatArray:
        values = np.stack([prepare(pixels) for pixels in images])
        step = batch or len(values)
        parts = [values[i : i + step] for i in range(0, len(values), step)]
        filled = [np.pad(part, [(0, step - len(part)), *[(0, 0)] * 3]) for part in parts]
        outputs = [session.run([made.name], {given.name: part.astype(kind)})[0] for part in filled]
        return np.concatenate(outputs).astype(np.float64)[: len(values)]

    try:
        outputs = run([np.full((*shape[2:], 3), 99, np.uint8)])
    except Exception as error:  # as above
        raise InputError(f"{settings.path} does not run on an image ({str(error).splitlines()[0]})") from error
    if outputs.shape != (1, len(settings.labels)):
        raise InputError(
            f"{settings.path} has outputs {[*outputs.shape]} of an image, but there are {len(settings.labels)} labels"
        )
    return Network(settings.labels, run, is_logits=settings.softmax)


def _session_options(onnxruntime: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return options


def _resizing(
    size: tuple[int, int], resample: int, scale: float, mean: Sequence[float], std: Sequence[float]
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """To exactly height x width, whatever the shape was, then normalised: `[3, H, W]`."""
    height, width = size
    centre, spread = np.asarray(mean, np.float32), np.asarray(std, np.float32)

    def prepare(pixels_u8: NDArray[np.uint8]) -> NDArray[np.float32]:
        resized = Image.fromarray(pixels_u8).resize((width, height), Image.Resampling(resample))
        values: NDArray[np.float32] = (np.asarray(resized, np.float32) * np.float32(scale) - centre) / spread
        return np.ascontiguousarray(values.transpose(2, 0, 1))

    return prepare
