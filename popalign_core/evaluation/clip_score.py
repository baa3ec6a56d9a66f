"""CLIP score and zero-shot accuracy, from the embeddings of images and texts."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from popalign_core.errors import InputError
from popalign_core.models.clip import ClipScorer, embed_images, embed_texts


def clip_scores(image_embeds: Tensor, text_embeds: Tensor) -> NDArray[np.float64]:
    """100 x cosine of each image with its own text; both `[N, D]` of length 1, returns `[N]`."""
    if image_embeds.shape != text_embeds.shape:
        raise InputError(f"{len(image_embeds)} images but {len(text_embeds)} texts; give one text per image")
    scores: NDArray[np.float64] = 100.0 * (image_embeds * text_embeds).sum(dim=1).double().numpy()
    return scores


def score_images(scorer: ClipScorer, batches: Iterable[NDArray[np.uint8]], texts: Sequence[str]) -> NDArray[np.float64]:
    """CLIP score of each image with its prompt (Hessel et al. 2021, without the factor 2.5 and the cut at 0).

    Args:
        scorer: The CLIP.
        batches: Each `[B, H, W, 3]` uint8, N images in all.
        texts: N prompts.

    Returns:
        `[N]`, 100 x cosine.

    Raises:
        InputError: When there are not as many texts as images.
    """
    return clip_scores(embed_images(scorer, batches), embed_texts(scorer, texts))


def subject_accuracy(image_embeds: Tensor, candidate_embeds: Tensor, answers: Sequence[int]) -> NDArray[np.float64]:
    """Zero-shot accuracy: whether an image is nearer to its own prompt than to every other candidate.

    Args:
        image_embeds: `[N, D]`, from `embed_images`.
        candidate_embeds: `[C, D]`, from `embed_texts` of all distinct generic prompts.
        answers: `[N]` which candidate each image was asked for.

    Returns:
        `[N]`, 1 or 0.

    Raises:
        InputError: When the number of answers is not that of the images.
    """
    if len(answers) != len(image_embeds):
        raise InputError(f"{len(image_embeds)} images but {len(answers)} answers; give one answer per image")
    nearest = (image_embeds @ candidate_embeds.T).argmax(dim=1)
    right: NDArray[np.float64] = (nearest == torch.tensor(answers)).double().numpy()
    return right
