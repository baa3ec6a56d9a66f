"""The model card: what the embedded model does, measured, with sample grids and loss curves."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from diffusers import StableDiffusionXLPipeline
from numpy.typing import NDArray
from PIL import Image

from popalign_core.attributes.classifier_interface import AttributeClassifier
from popalign_core.config import SamplingConfig
from popalign_core.ids import image_seed
from popalign_core.models.embeddings import embed_prompts
from popalign_core.portraits.image_pool import plain_article
from popalign_core.portraits.occupations import GENDERS, IDENTITIES, OCCUPATIONS, RACES
from popalign_core.report.markdown import markdown_table
from popalign_core.sampling.engine import sample_images

CARRIER = "a photo of {}"
BATCH_SIZE = 32


@dataclass(frozen=True)
class Measurement:
    """Images of the model and what the classifier reads in them.

    Attributes:
        rows: One row an image: kind, occupation, asked_gender, asked_race, face, gender, race.
        pixels_u8: `[N, 64, 64, 3]` in the order of the rows.
    """

    rows: pd.DataFrame
    pixels_u8: NDArray[np.uint8]


def measure_model(
    pipeline: StableDiffusionXLPipeline,
    classifier: AttributeClassifier,
    config: SamplingConfig,
    *,
    n_neutral: int = 12,
    n_identity: int = 2,
) -> Measurement:
    """Sample every occupation with neutral and with identity captions and read the attributes.

    Args:
        pipeline: The assembled model.
        classifier: It was trained with identities held out.
        config: Steps, guidance, seed.
        n_neutral: Images a neutral prompt.
        n_identity: Images an identity prompt; covering occupations are left out.
    """
    asks: list[tuple[str, str, str | None, str | None]] = []
    for occupation in OCCUPATIONS:
        asks += [("neutral", occupation.name, None, None)] * n_neutral
        if occupation.cover is None:
            asks += [("identity", occupation.name, gender, race) for gender, race in IDENTITIES] * n_identity
    prompts = [_prompt(ask) for ask in asks]
    texts = sorted(set(prompts))
    embeddings, empty = embed_prompts(pipeline, texts, 64), embed_prompts(pipeline, [""], 1)
    index = [texts.index(prompt) for prompt in prompts]
    seeds = [image_seed(config.seed, prompt, i) for i, prompt in enumerate(prompts)]
    chunks = [
        sample_images(pipeline, embeddings, empty, index[i : i + BATCH_SIZE], seeds[i : i + BATCH_SIZE], config)[0]
        for i in range(0, len(asks), BATCH_SIZE)
    ]
    pixels = np.concatenate(chunks)
    rows = pd.DataFrame(asks, columns=["kind", "occupation", "asked_gender", "asked_race"])
    readings = classifier.read(pixels)
    rows["face"] = [reading.n_faces > 0 for reading in readings]
    for axis in ("gender", "race"):
        rows[axis] = [_likeliest(reading.probabilities[axis]) if reading.n_faces else None for reading in readings]
    return Measurement(rows, pixels)


def _likeliest(probabilities: Mapping[str, float]) -> str:
    return max(probabilities, key=probabilities.__getitem__)


def _prompt(ask: tuple[str, str, str | None, str | None]) -> str:
    words = [word for word in (ask[3], ask[2], ask[1]) if word]
    return CARRIER.format(plain_article(" ".join(words)))


def summarise_model(measurement: Measurement) -> dict[str, float]:
    """Recall on identity prompts and pooled discrepancy on neutral prompts (Eq. 13), faces only for the latter."""
    rows = measurement.rows
    asked, neutral = rows[rows["kind"] == "identity"], rows[(rows["kind"] == "neutral") & rows["face"]]
    figures = {"n_identity": float(len(asked)), "n_neutral_with_face": float(len(neutral))}
    figures["face_rate_identity"] = float(asked["face"].mean())
    for axis, classes in (("gender", GENDERS), ("race", RACES)):
        figures[f"recall_{axis}"] = float((asked[axis] == asked[f"asked_{axis}"]).mean())
        for name in classes:
            hits = asked[asked[f"asked_{axis}"] == name]
            figures[f"recall_{axis}_{name}"] = float((hits[axis] == name).mean())
            figures[f"share_{name}"] = float((neutral[axis] == name).mean())
        shares = np.array([(neutral[axis] == name).mean() for name in classes])
        figures[f"discrepancy_{axis}"] = float(np.linalg.norm(shares - 1 / len(classes)))
    return {key: round(value, 4) for key, value in figures.items()}


def save_grids(measurement: Measurement, folder: Path) -> None:
    """`identities.png`, a row an identity, and `neutral.png`, a row an occupation."""
    rows, pixels = measurement.rows, measurement.pixels_u8
    asked = [
        pixels[((rows["asked_gender"] == gender) & (rows["asked_race"] == race)).to_numpy()][:16]
        for gender, race in IDENTITIES
    ]
    neutral = [
        pixels[((rows["kind"] == "neutral") & (rows["occupation"] == occupation.name)).to_numpy()][:16]
        for occupation in OCCUPATIONS
    ]
    for name, grid in (("identities", asked), ("neutral", neutral)):
        width = min(map(len, grid))
        image = np.concatenate([np.concatenate(list(row[:width]), axis=1) for row in grid])
        Image.fromarray(image).save(folder / f"{name}.png", optimize=True)


def write_card(figures: dict[str, float], confusion: pd.DataFrame, curves: dict[str, list[dict[str, float]]]) -> str:
    """The model card in Markdown."""
    parts = [_ABOUT, "## Measured\n", markdown_table(["figure", "value"], [[k, f"{v:g}"] for k, v in figures.items()])]
    parts.append(
        "\n`discrepancy_*` is the pooled L2 distance to equal shares over faces found; `recall_*` the share of "
        "identity prompts whose picture the classifier reads as asked (no face counts as a miss).\n"
    )
    parts.append("## The classifier on people it never saw\n")
    parts.append(
        "`holdout`: the shipped network on the 40 held-out identities. `out-of-fold`: two networks, each on "
        "training identities it did not see. `n_identities` counts people, and objects where there is no face.\n"
    )
    columns = ["source", "head", "true", "read", "n", "n_identities"]
    parts.append(markdown_table(columns, confusion[columns].astype(str).values.tolist()))
    parts.append("\n## Loss curves\n")
    for name, rows in curves.items():
        picked = rows[:: max(1, len(rows) // 8)]
        if rows[-1] not in picked:
            picked = [*picked, rows[-1]]
        columns = list(rows[-1])
        cells = [[f"{row.get(column, float('nan')):g}" for column in columns] for row in picked]
        parts.append(f"{name}\n\n" + markdown_table(columns, cells) + "\n")
    return "\n".join(parts) + "\n![identities](identities.png)\n\n![neutral prompts](neutral.png)\n"


def save_card(measurement: Measurement, folder: Path) -> dict[str, float]:
    """Write grids and `README.md` beside the weights; returns the figures."""
    figures = summarise_model(measurement)
    save_grids(measurement, folder)
    confusion = pd.read_csv(folder / "classifier" / "confusion.csv")
    curves = json.loads((folder / "curves.json").read_text())
    (folder / "README.md").write_text(write_card(figures, confusion, curves))
    return figures


_ABOUT = """# The embedded model `portraits`

A `StableDiffusionXLPipeline` of 64 x 64 px (UNet of 4.1 M parameters, `AutoencoderTiny` with 12 x 8 x 8 latents, two
small CLIP text encoders), a ResNet face/gender/race classifier and a small CLIP. All of it was trained from scratch by
`popalign portraits train` on two CPU cores, so that every stage of PopAlign does its real work on any machine.

## Data and license

- 160 of 200 synthetic portraits (nobody in them exists) of faker-js/assets-person-portrait, CC0 1.0; the other 40
  identities are held out from every part. `race` is *perceived appearance*; only 91 training portraits carry it, and
  15 of those are labelled asian, so faces of that label repeat.
- 60 objects rendered from the Noto Color Emoji font (OFL 1.1 / Apache-2.0).
- The weights are released under the project's license, Apache-2.0. The pictures themselves are not shipped.

Persons are cut out of their background, put before a plain backdrop and dressed in their occupation's colour. The
occupations' joint distributions over gender and race in `occupations.py` are **invented for this demonstration** and
biased on purpose: the model exists to be repaired.

## What to doubt

- Classifier and generator learnt from the same 160 people, so it reads generated faces more surely than new ones:
  trust the holdout rows below, not the recall, for people it never saw. They hold few people (4 labelled asian).
- The CLIP judge learnt from pictures like the generator's, on people of every identity alike. It says whether a
  picture shows its caption in this small world and nothing about how good it looks.
- `out-of-fold` race rows are the honest warning: with half of 15 asian identities to learn from, the other half is
  read right about half of the time.
- Objects are the generator's weak side: see the zero-shot accuracy in the report.

## What it must not be used for

It makes no claim about real people or occupations. It knows two genders and three coarse appearance labels, which
is not how people are. Do not use the classifier on photographs of anyone, and do not use the generator for anything
but trying out PopAlign.
"""
