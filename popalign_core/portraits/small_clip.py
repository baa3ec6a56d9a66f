"""The small CLIP of the embedded model: image and text tower for the CLIP score and zero-shot objects."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionConfig

from popalign_core.portraits.classifier import augment
from popalign_core.portraits.image_pool import ImagePool, write_caption
from popalign_core.portraits.part_training import LoopConfig, fit
from popalign_core.portraits.rendering import SIZE
from popalign_core.portraits.text import text_config, tokenise

BATCH_SIZE = 96
WIDTH = 96


def make_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """The untrained model."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=WIDTH * 4,
        projection_dim=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=8,
        hidden_act="gelu",
    )
    text = text_config(tokenizer, n_layers=2, width=WIDTH)
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH))


def contrastive_loss(logits: Tensor, same: Tensor) -> Tensor:
    """CLIP's symmetric loss in which equal captions count as one class.

    Args:
        logits: `[B, B]`, images by texts, scaled.
        same: `[B, B]` bool, whether two captions are equal.

    Returns:
        Scalar.
    """
    target = same.float() / same.sum(1, keepdim=True)
    rows = -(target * functional.log_softmax(logits, dim=1)).sum(1).mean()
    columns = -(target * functional.log_softmax(logits.T, dim=1)).sum(1).mean()
    return (rows + columns) / 2


def train_clip(
    clip: CLIPModel,
    tokenizer: CLIPTokenizer,
    pool: ImagePool,
    config: LoopConfig,
    folder: Path,
    *,
    on_step: Callable[[str, int, dict[str, float]], None] | None = None,
) -> None:
    """Contrastive training on objects and on people of every identity alike, half of them with the identity named.

    Neutral draws are left out. They repeat the occupations' bias, and a judge that has learnt it scores the same
    image lower when its person is not the usual one: a fair population would then always cost CLIP score.

    Args:
        clip: Trained in place.
        tokenizer: Of the captions.
        pool: Images and what is in them.
        config: The loop's.
        folder: Where checkpoint and log go.
        on_step: Progress.
    """
    pool = pool.select(pool.rows["draw"].isin(["identity", "thing"]).to_numpy())
    rows = pool.rows.to_dict("records")
    known: dict[str, Tensor] = {}

    def captions_of(index: Tensor, rng: np.random.Generator) -> list[str]:
        captions = []
        for i in index.tolist():
            caption = ""
            while not caption:
                named = rows[i]["draw"] == "thing" or rng.random() < 0.5
                caption = write_caption(rows[i] if named else {**rows[i], "draw": "neutral"}, rng)
            captions.append(caption)
        return captions

    def loss_fn(model: nn.Module, generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        index = torch.randint(len(rows), (BATCH_SIZE,), generator=generator)
        captions = captions_of(index, rng)
        for caption in set(captions) - known.keys():
            known[caption] = tokenise(tokenizer, [caption])[0]
        images = augment(pool.pixels_u8[index.numpy()], generator)
        output = model(input_ids=torch.stack([known[caption] for caption in captions]), pixel_values=images)
        content = np.array([caption.split(" of ", 1)[1] for caption in captions])
        same = torch.from_numpy(content[:, None] == content[None, :])
        loss = contrastive_loss(output.logits_per_image, same)
        hit = same.gather(1, output.logits_per_image.argmax(1, keepdim=True)).float().mean()
        return loss, {"accuracy": float(hit)}

    fit("clip", clip, loss_fn, config, folder, on_step)


def save_clip(clip: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Half-precision safetensors, tokenizer, and an image processor's configuration."""
    clip.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": SIZE, "width": SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_convert_rgb": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
