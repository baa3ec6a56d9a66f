"""The recipe of the embedded model, from the data packs to the shipped weights. The same call again resumes."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderTiny, StableDiffusionXLPipeline
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPTokenizer

from popalign_core.config import SamplingConfig
from popalign_core.portraits.autoencoder import (
    decode_portraits,
    encode_portraits,
    make_autoencoder,
    train_autoencoder,
)
from popalign_core.portraits.classifier import (
    Labels,
    confusion_rows,
    fit_temperatures,
    make_classifier,
    make_labels,
    predict_logits,
    save_classifier,
    train_classifier,
)
from popalign_core.portraits.decoder import train_decoder
from popalign_core.portraits.denoiser import make_denoiser, make_sampling_scheduler, train_denoiser
from popalign_core.portraits.image_pool import ImagePool, build_pool, vocabulary
from popalign_core.portraits.occupations import THINGS
from popalign_core.portraits.part_training import LoopConfig
from popalign_core.portraits.small_clip import make_clip, save_clip, train_clip
from popalign_core.portraits.text import make_tokenizer
from popalign_core.portraits_recipe.portraits_card import measure_model, save_card

OnStep = Callable[[str, int, dict[str, float]], None]
N_FOLDS = 2


@dataclass(frozen=True)
class Recipe:
    """Sizes and loops of every part; the defaults made the shipped weights."""

    n_neutral: int = 9000
    n_identity: int = 9000
    n_extra: int = 3000
    n_things: int = 3600
    n_holdout: int = 1600
    autoencoder: LoopConfig = field(default_factory=lambda: LoopConfig(steps=5000, learning_rate=2e-3, ema_decay=0.995))
    autoencoder_batch: int = 16
    decoder: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=1600, learning_rate=4e-4, ema_decay=0.995, weight_decay=0.0, seed=4)
    )
    denoiser: LoopConfig = field(default_factory=lambda: LoopConfig(steps=8000, learning_rate=1.2e-3, seed=1))
    denoiser_batch: int = 64
    classifier: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=700, learning_rate=1e-3, ema_decay=0.99, weight_decay=0.05, seed=2)
    )
    clip: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=1500, learning_rate=1e-3, weight_decay=0.05, seed=3)
    )


def load_pool(data_dir: Path, work_dir: Path, recipe: Recipe, split: str = "train") -> ImagePool:
    """Render the pool of a split, or read it back from `work_dir`."""
    pixels, rows = work_dir / f"pool-{split}.npy", work_dir / f"pool-{split}.parquet"
    if not rows.exists():
        train = split == "train"
        pool = build_pool(
            data_dir,
            split=split,
            n_neutral=recipe.n_neutral if train else 0,
            n_identity=recipe.n_identity if train else recipe.n_holdout,
            n_extra=recipe.n_extra if train else recipe.n_holdout // 2,
            n_things=recipe.n_things if train else recipe.n_holdout // 4,
            seed=1 if train else 2,
        )
        np.save(pixels, pool.pixels_u8)
        pool.rows.to_parquet(rows)
    return ImagePool(np.load(pixels, mmap_mode="r"), pd.read_parquet(rows))


def captioned(pool: ImagePool) -> ImagePool:
    """The images whose caption is known."""
    return pool.select((pool.rows["draw"] != "extra").to_numpy())


def train_parts(data_dir: Path, work_dir: Path, recipe: Recipe, parts: tuple[str, ...], on_step: OnStep | None) -> None:
    """Train some of "autoencoder", "decoder", "denoiser", "clip", "classifier" into `work_dir`.

    Raises:
        FileNotFoundError: When a data pack is missing.
        ValueError: For an unknown part.
    """
    trainers = {
        "autoencoder": load_autoencoder,
        "decoder": load_sharp_autoencoder,
        "denoiser": load_denoiser,
        "clip": load_small_clip,
        "classifier": load_classifier,
    }
    unknown = sorted(set(parts) - set(trainers))
    if unknown:
        raise ValueError(f"unknown parts {unknown}; choose from {list(trainers)}")
    work_dir.mkdir(parents=True, exist_ok=True)
    for part in parts:
        trainers[part](data_dir, work_dir, recipe, on_step)


def load_autoencoder(data_dir: Path, work_dir: Path, recipe: Recipe, on_step: OnStep | None = None) -> AutoencoderTiny:
    """The trained autoencoder; trains what is left to train."""
    torch.manual_seed(0)
    autoencoder = make_autoencoder()
    pool = load_pool(data_dir, work_dir, recipe)
    train_autoencoder(
        autoencoder, pool.pixels_u8, recipe.autoencoder, work_dir, batch_size=recipe.autoencoder_batch, on_step=on_step
    )
    return autoencoder


def load_latents(autoencoder: AutoencoderTiny, pool: ImagePool, work_dir: Path) -> Tensor:
    """Latents of the whole training pool, `[N, 12, 8, 8]`, computed once."""
    path = work_dir / "latents.npy"
    if not path.exists():
        temporary = work_dir / "latents.tmp.npy"
        np.save(temporary, encode_portraits(autoencoder, pool.pixels_u8).numpy())
        temporary.replace(path)
    return torch.from_numpy(np.load(path))


def load_sharp_autoencoder(
    data_dir: Path, work_dir: Path, recipe: Recipe, on_step: OnStep | None = None
) -> AutoencoderTiny:
    """The autoencoder with its sharpened decoder; trains what is left to train."""
    autoencoder = load_autoencoder(data_dir, work_dir, recipe, on_step)
    pool = load_pool(data_dir, work_dir, recipe)
    latents = load_latents(autoencoder, pool, work_dir)
    torch.manual_seed(4)
    train_decoder(autoencoder, pool.pixels_u8, latents, recipe.decoder, work_dir, on_step=on_step)
    return autoencoder


def load_denoiser(
    data_dir: Path, work_dir: Path, recipe: Recipe, on_step: OnStep | None = None
) -> tuple[nn.ModuleDict, CLIPTokenizer]:
    """The trained denoiser with its tokenizer; trains what is left to train."""
    pool = load_pool(data_dir, work_dir, recipe)
    latents = load_latents(load_autoencoder(data_dir, work_dir, recipe, on_step), pool, work_dir)
    known = torch.tensor((pool.rows["draw"] != "extra").to_numpy())
    tokenizer = make_tokenizer(vocabulary(data_dir))
    torch.manual_seed(1)
    denoiser = make_denoiser(tokenizer)
    train_denoiser(
        denoiser,
        tokenizer,
        captioned(pool),
        latents[known],
        recipe.denoiser,
        work_dir,
        batch_size=recipe.denoiser_batch,
        on_step=on_step,
    )
    return denoiser, tokenizer


def load_small_clip(
    data_dir: Path, work_dir: Path, recipe: Recipe, on_step: OnStep | None = None
) -> tuple[nn.Module, CLIPTokenizer]:
    """The trained CLIP with its tokenizer; trains what is left to train."""
    tokenizer = make_tokenizer(vocabulary(data_dir))
    torch.manual_seed(3)
    clip = make_clip(tokenizer)
    pool = captioned(load_pool(data_dir, work_dir, recipe))
    train_clip(clip, tokenizer, pool, recipe.clip, work_dir, on_step=on_step)
    return clip, tokenizer


def load_classifier(
    data_dir: Path, work_dir: Path, recipe: Recipe, on_step: OnStep | None = None
) -> tuple[nn.Module, dict[str, float], pd.DataFrame]:
    """The trained classifier, its temperatures and its confusion table.

    Temperatures come from logits of identities that the network of their fold never saw; the confusion table holds
    those out-of-fold readings and, for the shipped network, the identities of the holdout split.
    """
    autoencoder = load_sharp_autoencoder(data_dir, work_dir, recipe, on_step)
    pool = load_pool(data_dir, work_dir, recipe)
    # Neutral draws repeat the biased joint; the classifier learns from the even ones.
    pool = pool.select((pool.rows["draw"] != "neutral").to_numpy())
    seen = _through_autoencoder(autoencoder, pool.pixels_u8, work_dir / "seen-train.npy")
    labels = make_labels(pool)
    rows: list[dict[str, object]] = []

    everyone = np.ones(len(pool.rows), bool)
    classifier = _fit_classifier(pool, seen, labels, everyone, recipe, work_dir, "classifier", on_step)
    out_of_fold = torch.empty(len(pool.rows), 7)
    folds = _folds(labels)
    for fold in range(N_FOLDS):
        inside = folds != fold
        network = _fit_classifier(pool, seen, labels, inside, recipe, work_dir, f"classifier-fold{fold}", on_step)
        out_of_fold[~inside] = predict_logits(network, seen[~inside])
    rows += confusion_rows(out_of_fold, labels, "out-of-fold")
    temperatures = fit_temperatures(out_of_fold, labels)

    holdout = load_pool(data_dir, work_dir, recipe, "holdout")
    held = _through_autoencoder(autoencoder, holdout.pixels_u8, work_dir / "seen-holdout.npy")
    rows += confusion_rows(predict_logits(classifier, held), make_labels(holdout), "holdout")
    return classifier, temperatures, pd.DataFrame(rows)


def _fit_classifier(
    pool: ImagePool,
    seen: NDArray[np.uint8],
    labels: Labels,
    inside: NDArray[np.bool_],
    recipe: Recipe,
    work_dir: Path,
    name: str,
    on_step: OnStep | None,
) -> nn.Module:
    torch.manual_seed(2)
    network: nn.Module = make_classifier()
    mask = torch.from_numpy(inside)
    part = Labels({head: values[mask] for head, values in labels.classes.items()}, labels.identity[inside])
    images = [pool.pixels_u8[inside], seen[inside]]
    train_classifier(network, images, part, recipe.classifier, work_dir, name=name, on_step=on_step)
    return network


def _folds(labels: Labels) -> NDArray[np.int64]:
    """A fold for every image, by identity or object, spread within each cell of gender and race."""
    cells: dict[tuple[int, int], list[str]] = {}
    genders, races = labels.classes["gender"].tolist(), labels.classes["race"].tolist()
    for who, gender, race in zip(labels.identity, genders, races, strict=True):
        people = cells.setdefault((gender, race), [])
        if (gender >= 0 or who in THINGS) and who not in people:
            people.append(who)
    fold_of = {who: i % N_FOLDS for people in cells.values() for i, who in enumerate(sorted(people))}
    return np.array([fold_of.get(who, i % N_FOLDS) for i, who in enumerate(labels.identity)])


def _through_autoencoder(autoencoder: AutoencoderTiny, pixels_u8: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
    """The images as the autoencoder gives them back, which is how sampled images look."""
    if not path.exists():
        decoded = [
            decode_portraits(autoencoder, encode_portraits(autoencoder, pixels_u8[i : i + 256]))
            for i in range(0, len(pixels_u8), 256)
        ]
        np.save(path, np.concatenate(decoded))
    return np.asarray(np.load(path))


def assemble_pipeline(
    autoencoder: AutoencoderTiny, denoiser: nn.ModuleDict, tokenizer: CLIPTokenizer
) -> StableDiffusionXLPipeline:
    """The parts as the pipeline that everything else samples from."""
    return StableDiffusionXLPipeline(
        vae=autoencoder,
        text_encoder=denoiser["text_encoder"],
        text_encoder_2=denoiser["text_encoder_2"],
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=denoiser["unet"],
        scheduler=make_sampling_scheduler(),
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def save_weights(data_dir: Path, work_dir: Path, out_dir: Path, recipe: Recipe) -> None:
    """Write `pipeline/`, `classifier/` and `clip/`, half precision, with the confusion table and the loss curves."""
    denoiser, tokenizer = load_denoiser(data_dir, work_dir, recipe)
    pipeline = assemble_pipeline(load_sharp_autoencoder(data_dir, work_dir, recipe), denoiser, tokenizer)
    pipeline.to(torch.float16).save_pretrained(out_dir / "pipeline", safe_serialization=True)
    classifier, temperatures, confusion = load_classifier(data_dir, work_dir, recipe)
    save_classifier(classifier, temperatures, out_dir / "classifier")
    confusion.to_csv(out_dir / "classifier" / "confusion.csv", index=False)
    save_clip(*load_small_clip(data_dir, work_dir, recipe), out_dir / "clip")
    curves = {
        name: [json.loads(line) for line in (work_dir / f"{name}.jsonl").read_text().splitlines()][::4]
        for name in ("autoencoder", "decoder", "denoiser", "clip", "classifier")
    }
    (out_dir / "curves.json").write_text(json.dumps(curves) + "\n")


def train_portraits(
    data_dir: Path, out_dir: Path, work_dir: Path, *, recipe: Recipe | None = None, on_step: OnStep | None = None
) -> dict[str, float]:
    """The whole recipe: train every part, write the weights, measure them and write the model card.

    Args:
        data_dir: Folder with `portraits.parquet` and `things.parquet`.
        out_dir: Where the weights go.
        work_dir: Where pools, checkpoints and logs are kept; the same call again resumes from them.
        recipe: Sizes and loops; None takes the shipped weights' own.
        on_step: Called with (part, step, averages).

    Returns:
        The measured figures of the model card.

    Raises:
        FileNotFoundError: When a data pack is missing.
    """
    from popalign_core.attributes.portraits_classifier import PortraitsFaceClassifier

    recipe = recipe or Recipe()
    train_parts(data_dir, work_dir, recipe, ("autoencoder", "decoder", "denoiser", "clip", "classifier"), on_step)
    save_weights(data_dir, work_dir, out_dir, recipe)
    pipeline = StableDiffusionXLPipeline.from_pretrained(out_dir / "pipeline").to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    reader = PortraitsFaceClassifier(folder=out_dir / "classifier")
    return save_card(measure_model(pipeline, reader, SamplingConfig()), out_dir)
