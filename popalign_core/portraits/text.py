"""Tokenizer and text encoders of the embedded model, in the formats of transformers."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from popalign_core.portraits.pieces import END, START, learn_pieces

MAX_TOKENS = 24
TEXT_WIDTH = 64


def make_tokenizer(words: Sequence[str]) -> CLIPTokenizer:
    """A CLIP tokenizer in which every given word is one token; other words fall apart into known pieces."""
    vocabulary, merges = learn_pieces(words)
    return CLIPTokenizer(
        vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS, bos_token=START, eos_token=END,
        unk_token=END, pad_token=END,
    )  # fmt: skip


def text_config(tokenizer: CLIPTokenizer, n_layers: int = 2, width: int = TEXT_WIDTH) -> CLIPTextConfig:
    """Configuration shared by the encoders."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 4,
        projection_dim=width,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def make_text_encoders(tokenizer: CLIPTokenizer) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """The two untrained encoders of the pipeline."""
    return CLIPTextModel(text_config(tokenizer)), CLIPTextModelWithProjection(text_config(tokenizer))


def encode_tokens(
    first: CLIPTextModel, second: CLIPTextModelWithProjection, input_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """What SDXL conditions on: penultimate states of both encoders side by side, and the second's pooled projection.

    Args:
        first: CLIP text model.
        second: CLIP text model with projection.
        input_ids: `[B, L]` int64.

    Returns:
        prompt_embeds `[B, L, 128]` and pooled_prompt_embeds `[B, 64]`.
    """
    one = first(input_ids, output_hidden_states=True)
    two = second(input_ids, output_hidden_states=True)
    return torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1), two.text_embeds


def tokenise(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Captions to padded `[B, 24]` int64 ids, as the pipeline does it."""
    encoded = tokenizer(
        list(captions), padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    input_ids: Tensor = encoded.input_ids
    return input_ids
