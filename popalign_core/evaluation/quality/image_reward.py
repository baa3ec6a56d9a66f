"""ImageReward (Xu et al. 2023, arXiv:2304.05977) over transformers: its own package wants libraries of 2022.

A BLIP reads the prompt with an eye on the image; five linear layers make a number of its first token, which is
standardised with the mean and the deviation that were published.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    PreTrainedModel,
)

from popalign_core.errors import InputError
from popalign_core.evaluation.quality.aesthetics import head_of
from popalign_core.evaluation.quality.scorer import Images, checked
from popalign_core.evaluation.quality.scorer_files import CLIP_MEAN, CLIP_STD, read_checkpoint, require, wrong_keys
from popalign_core.models.image_processors import ImagePreprocessing
from popalign_core.models.weights_check import PartFolder, load_tokenizer

_MEAN, _STD = 0.16717362830052426, 1.0333394966054072
_MAX_TOKENS = 35
_HEADS = {"vision": 16, "text": 12}
"""Of ViT-L and of BERT base; the tensors do not tell."""
_WHAT = "an ImageReward"
_VISION_PLACES = (
    (r"^patch_embed\.proj", "embeddings.patch_embedding"),
    (r"^pos_embed", "embeddings.position_embedding"),
    (r"^cls_token", "embeddings.class_embedding"),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.(\d+)\.", r"encoder.layers.\1."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"\.attn\.", ".self_attn."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
)


class ImageRewardScorer:
    """Attributes as those of `Scorer`."""

    unit = "standard deviations"

    def __init__(
        self, name: str, version: str, vision: PreTrainedModel, text: PreTrainedModel, head: nn.Module, tokenizer: Any
    ) -> None:
        self.name, self.version = name, version
        self._vision, self._text, self._head, self._tokenizer = vision, text, head, tokenizer
        side = vision.config.image_size
        self._preprocessing = ImagePreprocessing(
            side, (side, side), Image.Resampling.BICUBIC, 1 / 255, CLIP_MEAN, CLIP_STD
        )

    @torch.inference_mode()
    def score(self, images: Images, texts: Sequence[str]) -> NDArray[np.float64]:
        """One value an image."""
        if len(images) != len(texts):
            raise InputError(f"{len(images)} images but {len(texts)} texts; give one text per image")
        device = self._vision.device
        seen = self._vision(pixel_values=self._preprocessing.apply_all(images).to(device)).last_hidden_state
        tokens = self._tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=_MAX_TOKENS, return_tensors="pt"
        ).to(device)
        read = self._text(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            encoder_hidden_states=seen,
            is_decoder=False,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=device),
        ).last_hidden_state
        return checked(self.name, (self._head(read[:, 0])[:, 0] - _MEAN) / _STD)


def load_image_reward(
    name: str, version: str, path: Path, tokenizer: Path, device: torch.device | str = "cpu"
) -> ImageRewardScorer:
    """The published checkpoint with the tokenizer of bert-base-uncased.

    Args:
        name: Of the scorer.
        version: Of the scorer.
        path: ImageReward.pt; sizes are read off its tensors.
        tokenizer: A folder.
        device: Where the networks go.

    Raises:
        MissingWeightsError: When one of the two is not there.
        InputError: When one of the two is something else.
    """
    state, place = read_checkpoint(path), torch.device(device)
    if lacking := [part for part in _NEEDED if part not in state]:
        raise wrong_keys(path, _WHAT, lacking, sorted(state))
    vision = _load(BlipVisionModel(_vision_config(state)), _part(state, "blip.visual_encoder.", _VISION_PLACES), path)
    text_state = _part(state, "blip.text_encoder.")
    text_state.pop("embeddings.position_ids", None)  # 0, 1, 2, ...
    text = _load(BlipTextModel(_text_config(state), add_pooling_layer=False), text_state, path)
    head = head_of(_part(state, "mlp."), path, _WHAT)
    part = PartFolder("the tokenizer", require(tokenizer), "give that of bert-base-uncased")
    words = load_tokenizer(AutoTokenizer, part)
    if len(words) > text.config.vocab_size:
        raise InputError(f"the tokenizer in {tokenizer} knows {len(words)} tokens, {path} {text.config.vocab_size}")
    return ImageRewardScorer(name, version, vision.to(place), text.to(place), head.to(place), words)


_PATCH, _WORDS = "blip.visual_encoder.patch_embed.proj.weight", "blip.text_encoder.embeddings.word_embeddings.weight"
_PLACES, _POSITIONS = "blip.visual_encoder.pos_embed", "blip.text_encoder.embeddings.position_embeddings.weight"
_INNER = "blip.text_encoder.encoder.layer.0.intermediate.dense.weight"
_NEEDED = (_PATCH, _WORDS, _PLACES, _POSITIONS, _INNER)


def _vision_config(state: Mapping[str, Tensor]) -> BlipVisionConfig:
    width, _, patch, _ = state[_PATCH].shape
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=_count(state, r"blip\.visual_encoder\.blocks\.(\d+)\."),
        num_attention_heads=_HEADS["vision"],
        patch_size=patch,
        image_size=patch * round((state[_PLACES].shape[1] - 1) ** 0.5),
        layer_norm_eps=1e-6,
    )


def _text_config(state: Mapping[str, Tensor]) -> BlipTextConfig:
    n_tokens, width = state[_WORDS].shape
    return BlipTextConfig(
        vocab_size=n_tokens,
        hidden_size=width,
        encoder_hidden_size=state[_PATCH].shape[0],
        intermediate_size=len(state[_INNER]),
        num_hidden_layers=_count(state, r"blip\.text_encoder\.encoder\.layer\.(\d+)\."),
        num_attention_heads=_HEADS["text"],
        max_position_embeddings=len(state[_POSITIONS]),
        is_decoder=True,  # for it to have cross attention; told otherwise when it runs, it looks both ways
        bos_token_id=n_tokens - 2,
        sep_token_id=min(102, n_tokens - 1),
    )


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({found[1] for name in state if (found := re.match(pattern, name))})


def _part(state: Mapping[str, Tensor], prefix: str, places: Sequence[tuple[str, str]] = ()) -> dict[str, Tensor]:
    """The tensors below a prefix, under transformers' names."""
    found = {}
    for name, tensor in state.items():
        if name.startswith(prefix):
            inner = name.removeprefix(prefix)
            for pattern, new in places:
                inner = re.sub(pattern, new, inner)
            found[inner] = tensor.float()
    return found


def _load(network: PreTrainedModel, state: Mapping[str, Tensor], path: Path) -> PreTrainedModel:
    expected = network.state_dict()
    missing, unknown = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if missing or unknown:
        raise wrong_keys(path, _WHAT, missing, unknown)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path} is not {_WHAT}: {error}; get it again") from error
    return network.eval().requires_grad_(False)
