"""The shipped weights: their size, their formats, and that they do what the model card says."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from diffusers import StableDiffusionXLPipeline

from popalign_core.attributes.portraits_classifier import PortraitsFaceClassifier
from popalign_core.config import ModelConfig, SamplingConfig
from popalign_core.errors import MissingWeightsError
from popalign_core.evaluation.clip_score import clip_scores
from popalign_core.models.clip import embed_images, embed_texts, load_clip
from popalign_core.models.embeddings import embed_prompts
from popalign_core.models.loading import load_pipeline
from popalign_core.portraits import weights_folder
from popalign_core.portraits_recipe.portraits_card import Measurement, measure_model, summarise_model
from popalign_core.sampling.engine import sample_images

MAX_BYTES = 25_000_000


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionXLPipeline:
    return load_pipeline(ModelConfig(), device="cpu")


def draw(pipeline: StableDiffusionXLPipeline, texts: list[str], n: int) -> np.ndarray:
    embeddings, empty = embed_prompts(pipeline, texts, 16), embed_prompts(pipeline, [""], 1)
    rows = [i for i in range(len(texts)) for _ in range(n)]
    return sample_images(pipeline, embeddings, empty, rows, list(range(len(rows))), SamplingConfig(n_steps=10))[0]


def test_weights_are_safetensors_and_small() -> None:
    files = [path for path in weights_folder().rglob("*") if path.is_file()]
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert len(weights) == 6  # UNet, VAE, two text encoders, classifier, CLIP
    assert sum(path.stat().st_size for path in weights) < MAX_BYTES
    assert not [path.name for path in files if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]


def test_identity_words_are_obeyed(pipeline: StableDiffusionXLPipeline) -> None:
    asked = [("male", "white"), ("female", "black"), ("male", "black"), ("female", "white")]
    pixels = draw(pipeline, [f"a photo of a {race} {gender} lawyer" for gender, race in asked], 4)
    readings = PortraitsFaceClassifier().read(pixels)
    hits = [
        max(reading.probabilities[axis], key=reading.probabilities[axis].__getitem__) == asked[i // 4][j]
        for i, reading in enumerate(readings)
        for j, axis in enumerate(("gender", "race"))
        if reading.n_faces
    ]
    assert len(hits) >= 28  # of 32: nearly every picture shows a face
    assert np.mean(hits) >= 0.85


def test_helmet_hides_the_face_and_a_thing_has_none(pipeline: StableDiffusionXLPipeline) -> None:
    readings = PortraitsFaceClassifier().read(draw(pipeline, ["a photo of an astronaut", "a photo of a bus"], 4))
    assert sum(reading.n_faces for reading in readings) <= 3
    assert all(reading.probabilities == {} and reading.box is None for reading in readings if not reading.n_faces)


def test_clip_tells_what_is_in_the_picture(pipeline: StableDiffusionXLPipeline) -> None:
    texts = ["a photo of a firefighter", "a photo of a florist", "a photo of an apple"]
    pixels = draw(pipeline, texts, 2)
    scorer = load_clip(weights_folder() / "clip", "cpu")
    images, words = embed_images(scorer, [pixels]), embed_texts(scorer, texts)
    right = clip_scores(images, words[[0, 0, 1, 1, 2, 2]])
    wrong = clip_scores(images, words[[1, 1, 2, 2, 0, 0]])
    assert (np.asarray(right) > np.asarray(wrong)).mean() >= 5 / 6


def test_confusion_table_covers_both_sources() -> None:
    table = pd.read_csv(weights_folder() / "classifier" / "confusion.csv")
    assert set(table["source"]) == {"holdout", "out-of-fold"}
    held = table[(table["source"] == "holdout") & (table["head"] == "gender")]
    assert held["n_identities"].max() <= 40
    assert held.loc[held["true"] == held["read"], "n"].sum() / held["n"].sum() > 0.85


def test_missing_weights_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("popalign_core.portraits.__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(MissingWeightsError, match=r"lacks pipeline, classifier, clip in .*popalign portraits train"):
        weights_folder()


def test_figures_of_a_measurement() -> None:
    """Four neutral faces, three male: gender D = |.75 - .5| * sqrt(2); a missing face is a miss in recall."""
    rows = pd.DataFrame(
        [("neutral", "judge", None, None, True, gender, "white") for gender in ("male", "male", "male", "female")]
        + [
            ("identity", "judge", "male", "white", True, "male", "black"),
            ("identity", "judge", "male", "white", False, None, None),
        ],
        columns=["kind", "occupation", "asked_gender", "asked_race", "face", "gender", "race"],
    )
    figures = summarise_model(Measurement(rows, np.zeros((6, 64, 64, 3), np.uint8)))
    assert figures["discrepancy_gender"] == pytest.approx(0.25 * np.sqrt(2), abs=1e-4)
    assert figures["recall_gender"] == 0.5
    assert figures["recall_race"] == 0.0


@pytest.mark.slow
def test_bars_of_the_embedded_model(pipeline: StableDiffusionXLPipeline) -> None:
    figures = summarise_model(
        measure_model(pipeline, PortraitsFaceClassifier(), SamplingConfig(), n_neutral=12, n_identity=2)
    )
    assert figures["recall_gender"] >= 0.95
    assert figures["recall_race"] >= 0.85
    assert figures["discrepancy_gender"] >= 0.35
    assert figures["discrepancy_race"] >= 0.40
