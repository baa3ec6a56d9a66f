"""The face and attribute classifier of the embedded model: a small ResNet with three calibrated heads."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import ResNetConfig, ResNetForImageClassification

from popalign_core.portraits.image_pool import ImagePool
from popalign_core.portraits.occupations import GENDERS, RACES, THINGS
from popalign_core.portraits.part_training import LoopConfig, fit
from popalign_core.portraits.rendering import to_unit_range

HEADS: dict[str, tuple[str, ...]] = {"face": ("no", "yes"), "gender": GENDERS, "race": RACES}
"""Heads in the order of the logits."""

BATCH_SIZE = 64


@dataclass(frozen=True)
class Labels:
    """What is known of each image: `[N]` int64 class indices a head, -1 where unknown; who or what is in it."""

    classes: dict[str, Tensor]
    identity: NDArray[np.object_]


def make_classifier() -> ResNetForImageClassification:
    """The untrained network, 64 px RGB in [-1, 1] to 7 logits."""
    names = [f"{head}:{name}" for head, classes in HEADS.items() for name in classes]
    config = ResNetConfig(
        num_channels=3,
        embedding_size=32,
        hidden_sizes=[32, 64, 128, 192],
        depths=[1, 1, 2, 1],
        layer_type="basic",
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    return ResNetForImageClassification(config)


def make_labels(pool: ImagePool) -> Labels:
    """Targets from the rows of a pool: a covered face and an object are "no face"."""
    rows = pool.rows
    face = (rows["thing"].isna() & (rows["covered"] != True)).to_numpy()  # noqa: E712 (None, True and False occur)
    classes = {"face": torch.from_numpy(face.astype(np.int64))}
    for head in ("gender", "race"):
        index = rows[head].map({name: i for i, name in enumerate(HEADS[head])})
        classes[head] = torch.from_numpy(np.where(face, index.fillna(-1), -1).astype(np.int64))
    return Labels(classes, rows["portrait_id"].where(rows["thing"].isna(), rows["thing"]).to_numpy(object))


def split_heads(logits: Tensor) -> dict[str, Tensor]:
    """`[B, 7]` logits to one tensor a head."""
    parts = logits.split([len(classes) for classes in HEADS.values()], dim=1)
    return dict(zip(HEADS, parts, strict=True))


def train_classifier(
    classifier: ResNetForImageClassification,
    images: list[NDArray[np.uint8]],
    labels: Labels,
    config: LoopConfig,
    folder: Path,
    *,
    name: str = "classifier",
    on_step: Callable[[str, int, dict[str, float]], None] | None = None,
) -> None:
    """Cross-entropy on every head that has a label.

    Args:
        classifier: Trained in place.
        images: Versions of the same images (as drawn, through the autoencoder), each `[N, 64, 64, 3]` uint8.
        labels: One an image.
        config: The loop's.
        folder: Where checkpoint and log go.
        name: Of checkpoint and log.
        on_step: Progress.
    """
    # Images of one identity are many and alike: draw identities evenly within their cell, not images.
    groups = _groups(labels)

    def loss_fn(model: nn.Module, generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        index = np.array([_draw(groups, rng) for _ in range(BATCH_SIZE)])
        version = rng.integers(len(images), size=BATCH_SIZE)
        batch = np.stack([images[v][i] for v, i in zip(version, index, strict=True)])
        logits = split_heads(model(augment(batch, generator)).logits)
        loss, terms = torch.zeros(()), {}
        for head, values in logits.items():
            target = labels.classes[head][torch.from_numpy(index)]
            if (target >= 0).any():
                loss = loss + functional.cross_entropy(values, target, ignore_index=-1, label_smoothing=0.05)
                known = target >= 0
                terms[f"{head}_accuracy"] = float((values.argmax(1) == target)[known].float().mean())
        return loss, terms

    fit(name, classifier, loss_fn, config, folder, on_step)


def _groups(labels: Labels) -> list[list[NDArray[np.int64]]]:
    """Cells (gender x race, unknown race, covered faces, objects) -> identities -> image indices."""
    cells: dict[tuple[int, int, bool], dict[object, list[int]]] = {}
    for i, who in enumerate(labels.identity):
        key = (int(labels.classes["gender"][i]), int(labels.classes["race"][i]), who in THINGS)
        cells.setdefault(key, {}).setdefault(who, []).append(i)
    return [[np.array(indices) for indices in people.values()] for people in cells.values()]


def _draw(groups: list[list[NDArray[np.int64]]], rng: np.random.Generator) -> int:
    people = groups[rng.integers(len(groups))]
    indices = people[rng.integers(len(people))]
    return int(indices[rng.integers(len(indices))])


def augment(pixels_u8: NDArray[np.uint8], generator: torch.Generator) -> Tensor:
    """Shift, blur, noise, light and erased patches, so that sampled images are nothing new.

    Args:
        pixels_u8: `[B, 64, 64, 3]`.
        generator: Source of every random choice.

    Returns:
        `[B, 3, 64, 64]` float32 in about [-1, 1].
    """
    images = to_unit_range(pixels_u8, channels_last=False)
    n = len(images)
    padded = functional.pad(images, (4, 4, 4, 4), mode="replicate")
    dx, dy = (int(v) for v in torch.randint(0, 9, (2,), generator=generator))
    images = padded[..., dy : dy + 64, dx : dx + 64]
    mirrored = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    images = torch.where(mirrored, images.flip(-1), images)
    small = functional.interpolate(images, scale_factor=0.5, mode="bilinear", antialias=True)
    blurred = functional.interpolate(small, size=images.shape[-2:], mode="bilinear")
    images = images.lerp(blurred, torch.rand(n, 1, 1, 1, generator=generator))
    images = images * (1 + 0.16 * (torch.rand(n, 1, 1, 1, generator=generator) - 0.5))
    images = images + 0.12 * (torch.rand(n, 3, 1, 1, generator=generator) - 0.5)
    noise = torch.randn(images.shape, generator=generator)
    images = images + 0.06 * noise * torch.rand(n, 1, 1, 1, generator=generator)
    x, y = (int(v) for v in torch.randint(0, 52, (2,), generator=generator))
    images[: n // 3, :, y : y + 12, x : x + 12] = 0
    return images


@torch.no_grad()
def predict_logits(
    classifier: ResNetForImageClassification, pixels_u8: NDArray[np.uint8], batch_size: int = 128
) -> Tensor:
    """`[N, 64, 64, 3]` uint8 to `[N, 7]` float32 logits, averaged over the image and its mirror image.

    The images go to the classifier's device, the logits come back to the CPU.
    """
    device = next(classifier.parameters()).device
    chunks = []
    for i in range(0, len(pixels_u8), batch_size):
        images = to_unit_range(pixels_u8[i : i + batch_size], channels_last=False).to(device)
        chunks.append(((classifier(images).logits + classifier(images.flip(-1)).logits) / 2).cpu())
    return torch.cat(chunks)


def fit_temperatures(logits: Tensor, labels: Labels) -> dict[str, float]:
    """Temperature of each head by maximum likelihood on logits of unseen identities (Guo et al. 2017)."""
    grid = torch.logspace(-1, 1.3, 200)
    temperatures = {}
    for head, values in split_heads(logits).items():
        known = labels.classes[head] >= 0
        losses = [functional.cross_entropy(values[known] / t, labels.classes[head][known]) for t in grid]
        temperatures[head] = round(float(grid[int(torch.stack(losses).argmin())]), 4)
    return temperatures


def confusion_rows(logits: Tensor, labels: Labels, source: str) -> list[dict[str, object]]:
    """Rows (head, true, read, n, n_identities, source) of every head's confusion table."""
    rows: list[dict[str, object]] = []
    for head, values in split_heads(logits).items():
        truth, read = labels.classes[head].numpy(), values.argmax(1).numpy()
        for i, true_name in enumerate(HEADS[head]):
            people = {str(who) for who in labels.identity[truth == i] if who is not None}
            for j, read_name in enumerate(HEADS[head]):
                n = int(((truth == i) & (read == j)).sum())
                row = {"head": head, "true": true_name, "read": read_name, "n": n, "n_identities": len(people)}
                rows.append({**row, "source": source})
    return rows


def save_classifier(classifier: ResNetForImageClassification, temperatures: dict[str, float], folder: Path) -> None:
    """Half-precision safetensors, transformers' config, and `calibration.json`."""
    classifier.half().save_pretrained(folder)
    (folder / "calibration.json").write_text(json.dumps({"temperatures": temperatures}, indent=2) + "\n")
