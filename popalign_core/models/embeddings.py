"""What a denoiser reads of prompts: the text encoders' states, computed once per distinct prompt."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from popalign_core.errors import InputError
from popalign_core.models.denoisers import pipeline_family

TEXT_PARTS = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
"""Components of a pipeline that read prompts."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptEmbeddings:
    """What the UNet reads of P prompts.

    Attributes:
        prompt_embeds: [P, L, D], all text encoders' token states; float32 where they are stored.
        pooled_prompt_embeds: [P, D2], the pooled state; D2 is 0 for a family without.
    """

    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor

    def __post_init__(self) -> None:
        shapes = tuple(self.prompt_embeds.shape), tuple(self.pooled_prompt_embeds.shape)
        if self.prompt_embeds.ndim != 3 or self.pooled_prompt_embeds.ndim != 2 or shapes[0][0] != shapes[1][0]:
            raise InputError(
                f"prompt embeddings must be [P, L, D] and [P, D2] with one P, got {shapes[0]} and {shapes[1]}"
            )

    def __len__(self) -> int:
        return len(self.prompt_embeds)

    def rows(self, index: Tensor | Sequence[int] | slice) -> "PromptEmbeddings":
        """Those of some prompts, in that order."""
        index = index if isinstance(index, slice) else torch.as_tensor(index, dtype=torch.int64)
        return PromptEmbeddings(self.prompt_embeds[index], self.pooled_prompt_embeds[index])

    def expand(self, n: int) -> "PromptEmbeddings":
        """The only prompt, n times, without a copy."""
        return PromptEmbeddings(self.prompt_embeds.expand(n, -1, -1), self.pooled_prompt_embeds.expand(n, -1))

    def to(self, device: torch.device, dtype: torch.dtype) -> "PromptEmbeddings":
        """On another device, in another type."""
        return PromptEmbeddings(self.prompt_embeds.to(device, dtype), self.pooled_prompt_embeds.to(device, dtype))


def concatenate(parts: Sequence[PromptEmbeddings]) -> PromptEmbeddings:
    """The prompts of all parts, one after the other."""
    return PromptEmbeddings(
        torch.cat([part.prompt_embeds for part in parts]), torch.cat([part.pooled_prompt_embeds for part in parts])
    )


@torch.inference_mode()
def embed_prompts(pipeline: Any, texts: Sequence[str], batch_size: int) -> PromptEmbeddings:
    """Encode prompts with all of the pipeline's text encoders; it needs no denoiser and no VAE.

    Of a prompt that is longer than they read, the words that are lost are named in a warning.

    The empty text "" is the unconditional prompt. Pipelines with `force_zeros_for_empty_prompt` (SDXL's own) were
    trained with zeros in its place, so there it becomes zeros, as in the stock pipeline.

    Args:
        pipeline: A loaded pipeline of a known family.
        texts: P prompts.
        batch_size: Prompts a forward.

    Returns:
        The embeddings on the CPU, float32, in the order of `texts`.

    Raises:
        InputError: When `texts` is empty.
    """
    if not texts:
        raise InputError("no prompt to embed: the list of texts is empty; give at least one")
    for text in texts:
        if lost := lost_words(pipeline, text):
            _log.warning("prompt %r is longer than the text encoders read and was truncated; lost: %r", text, lost)
    starts = range(0, len(texts), batch_size)
    embeddings = concatenate([_encode(pipeline, list(texts[start : start + batch_size])) for start in starts])
    if getattr(pipeline.config, "force_zeros_for_empty_prompt", False):
        empty = torch.tensor([text == "" for text in texts])
        embeddings.prompt_embeds[empty] = 0.0
        embeddings.pooled_prompt_embeds[empty] = 0.0
    return embeddings


def _encode(pipeline: Any, texts: list[str]) -> PromptEmbeddings:
    family = pipeline_family(pipeline)
    found = pipeline.encode_prompt(texts, device=pipeline.text_encoder.device, **family.encode_options)
    pooled = torch.zeros((len(texts), 0)) if family.pooled_output is None else found[family.pooled_output]
    return PromptEmbeddings(found[0].float().cpu(), pooled.float().cpu())


def lost_words(pipeline: Any, text: str) -> str:
    """The end of a prompt that none of a pipeline's text encoders reads, as it stands in the prompt; "" if all is read.

    T5 reads further than CLIP, SD3's three times and FLUX's seven: what it reads is not lost. A word that is cut is.
    """
    lengths = pipeline_family(pipeline).text_lengths
    end = max(
        (
            _end_of_reading(getattr(pipeline, f"tokenizer{suffix}"), text, lengths.get(suffix))
            for suffix in ("", "_2", "_3")
            if getattr(pipeline, f"text_encoder{suffix}", None) is not None
        ),
        default=len(text),
    )
    cut = (word.start() for word in re.finditer(r"\w+", text) if word.start() < end < word.end())
    return text[next(cut, end) :].strip()


def _end_of_reading(tokenizer: Any, text: str, max_length: int | None) -> int:
    """Where in the text the last token that is read ends; None is the tokenizer's own length."""
    tokens = tokenizer(text, truncation=True, max_length=max_length, return_offsets_mapping=True)
    return max((end for _, end in tokens["offset_mapping"]), default=0)
