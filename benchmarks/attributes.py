"""Reading faces: `DeepFace.analyze` image by image, as public scripts call it, and this project's batched reader.

Both use the same detector, the same weight files and the same images, in turns, in one process, and must give the same
labels: gender, race and the age in years. The files are made here, in DeepFace's own format, with random numbers, in
two ways: with one trunk of convolutions for all heads, as the known recipe for these heads leaves them (VGG-Face with
all convolutions frozen), and with a trunk each. This project's reader compares the files and runs equal trunks once.
Which of the two the published files are cannot be seen without them.

    python benchmarks/attributes.py
    python benchmarks/attributes.py --images 32 --rounds 5 --axes gender race

The images are `../shared/data/portraits_256.zip` or `--pictures FILE.zip`.

On one thread of a busy AMD EPYC (AVX2, torch 2.13, 12 images, three heads, best of three rounds): 0.90 images/s against
0.14, 6.4 times, with one trunk; 0.49 against 0.17, 2.9 times, with a trunk each (an earlier run: 7.1 and 4.0). The
labels were identical. Two things are saved: a batch lays out the 400 MB of a head's first fully connected layer once,
where a call an image does so every time; and equal trunks run once. Finding a face takes 0.1 to 0.2 s in both, as the
detectors take one image at a time.
"""

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from popalign_core.attributes.classifier_interface import likeliest
from popalign_core.attributes.deepface import DeepFaceClassifier
from popalign_core.attributes.deepface_files import HEAD_WEIGHTS, modeling, weights_place
from popalign_core.attributes.detector import FaceDetector
from popalign_core.config import AttributesConfig

Images = list[NDArray[np.uint8]]
Label = tuple[str, str, int] | None

PORTRAITS = Path(__file__).resolve().parents[2] / "shared" / "data" / "portraits_256.zip"
GENDERS = {"Woman": "female", "Man": "male"}


def write_heads(crops: NDArray[np.float32], *, shared_trunk: bool) -> None:
    """The three files at `weights_place`; DeepFace's cache of models is emptied.

    Args:
        crops: Faces `[N, 224, 224, 3]` on which each output is given mean 0 and deviation 1, so that labels differ.
        shared_trunk: Whether all heads have the first one's convolutions.
    """
    modeling()
    from deepface.models.demography.pytorch import Age, Gender, Race

    torch.manual_seed(0)
    trunk: dict[str, torch.Tensor] = {}
    for axis, module in {"gender": Gender, "race": Race, "age": Age}.items():
        network = module.base_model().eval()
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        if shared_trunk:
            trunk = trunk or {name: value for name, value in network.state_dict().items() if ".conv" in name}
            network.load_state_dict(network.state_dict() | trunk)
        _standardise(network, torch.from_numpy(crops).permute(0, 3, 1, 2))
        place = weights_place(HEAD_WEIGHTS[axis][0])
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), place)
    if hasattr(modeling(), "cached_models"):
        modeling().cached_models["facial_attribute"].clear()


@torch.no_grad()
def _standardise(network: Any, faces: torch.Tensor) -> None:
    last = network.predictions
    outputs = last(network.backbone.embed(faces)[:, :, None, None]).flatten(1)
    last.bias.copy_(-outputs.mean(0) / outputs.std(0))
    last.weight.div_(outputs.std(0)[:, None, None, None])


def one_by_one(pictures: Images, backend: str, axes: Sequence[str]) -> list[Label]:
    """The public way: a call an image, and of its faces the largest."""
    from deepface import DeepFace
    from deepface.modules.exceptions import FaceNotDetected

    labels: list[Label] = []
    for pixels in pictures:
        bgr = np.ascontiguousarray(pixels[:, :, ::-1])
        try:
            faces: Any = DeepFace.analyze(bgr, actions=list(axes), detector_backend=backend, silent=True)
        except FaceNotDetected:
            labels.append(None)
            continue
        face = max(faces, key=lambda one: one["region"]["w"] * one["region"]["h"])
        labels.append((GENDERS[face["dominant_gender"]], face["dominant_race"], face.get("age", -1)))
    return labels


def batched(reader: DeepFaceClassifier, pictures: Images) -> list[Label]:
    """This project's reader on all of them."""
    labels: list[Label] = []
    for reading in reader.read(pictures):
        seen = reading.probabilities
        ages = seen.get("age")
        age = -1 if ages is None else int(sum(int(name) * share for name, share in ages.items()))
        labels.append((likeliest(seen["gender"]), likeliest(seen["race"]), age) if seen else None)
    return labels


def load_images(path: Path, n: int) -> Images:
    """The first images of a zip file, evenly from all of it."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        chosen = names[:: max(1, len(names) // n)][:n]
        return [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in chosen]


def compare(pictures: Images, options: argparse.Namespace) -> dict[str, Any]:
    """Both ways in turns on the weights that lie there now."""
    reader, detector = DeepFaceClassifier(_settings(options)), FaceDetector(_settings(options))
    systems: dict[str, Callable[[Images], list[Label]]] = {
        "DeepFace.analyze": lambda some: one_by_one(some, options.backend, options.axes),
        "popalign": lambda some: batched(reader, some),
    }
    labels = {name: system(pictures[:1]) for name, system in systems.items()}  # loads and warms up
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(options.rounds):
        for name, system in systems.items():
            start = time.perf_counter()
            labels[name] = system(pictures)
            seconds[name].append(time.perf_counter() - start)
    if labels["popalign"] != labels["DeepFace.analyze"]:
        raise SystemExit(f"the labels differ: {labels}")
    start = time.perf_counter()
    for pixels in pictures:
        detector.detect(pixels)
    detection = time.perf_counter() - start
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    return {
        "images_per_s": {name: round(len(pictures) / min(values), 3) for name, values in seconds.items()},
        "ratio_of_best_rounds": round(min(seconds["DeepFace.analyze"]) / min(seconds["popalign"]), 2),
        "ratio_of_neighbours": {"median": round(statistics.median(ratios), 2), "all": [round(x, 2) for x in ratios]},
        "detection_s_per_image": round(detection / len(pictures), 3),
        "distinct_labels": len(set(labels["popalign"])),
        "without_a_face": labels["popalign"].count(None),
    }


def _settings(options: argparse.Namespace) -> AttributesConfig:
    """A band of age a year; no face is too small, as for DeepFace."""
    bands = {str(age): age for age in range(101)} if "age" in options.axes else {}
    return AttributesConfig(
        classifier="deepface", detector_backend=options.backend, min_face_share=0, min_face_score=0, age_bands=bands
    )


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("--images", 16), ("--rounds", 3), ("--threads", 1)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--axes", nargs="+", choices=["gender", "race", "age"], default=["gender", "race", "age"])
    parser.add_argument("--backend", default="opencv")
    parser.add_argument("--pictures", type=Path, default=PORTRAITS)
    options = parser.parse_args()
    if not {"gender", "race"} <= set(options.axes):
        parser.error("--axes: gender and race are always read")
    return options


def main() -> None:
    """Run and print one JSON object."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    pictures = load_images(options.pictures, options.images)
    detector = FaceDetector(_settings(options))
    crops = np.stack([crop for crop in (detector.detect(pixels)[1] for pixels in pictures) if crop is not None])
    with tempfile.TemporaryDirectory() as home:
        os.environ["DEEPFACE_HOME"] = home
        results = {}
        for name, shared in (("one trunk for all heads", True), ("a trunk each", False)):
            write_heads(crops, shared_trunk=shared)
            results[name] = compare(pictures, options)
    settings = vars(options) | {"pictures": str(options.pictures), "torch": torch.__version__}
    sys.stdout.write(json.dumps(results | {"settings": settings}, indent=1) + "\n")


if __name__ == "__main__":
    main()
