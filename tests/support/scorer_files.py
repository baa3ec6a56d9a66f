"""Small checkpoints in the formats that scorers are published in, and their networks once more, in plain tensors."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from popalign_core.evaluation.quality.scorer_files import CLIP_MEAN, CLIP_STD

State = dict[str, Tensor]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
N_HEADS = 16
PATCH, N_PATCHES, WIDTH, DIM = 14, 16, 64, 32


def pictures(n: int, height: int = 70, width: int = 50, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(n)]


def clip_tokenizer(folder: Path) -> Path:
    """CLIP's tokenizer with letters for words."""
    from transformers import CLIPTokenizer

    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=20).save_pretrained(folder)
    return folder


def published_tokenizer(folder: Path) -> Path:
    """CLIP's tokenizer with CLIP's vocabulary, out of the package of open_clip."""
    import gzip

    from open_clip.tokenizer import bytes_to_unicode, default_bpe
    from transformers import CLIPTokenizer

    merges = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    pieces = [letter + end for end in ("", "</w>") for letter in bytes_to_unicode().values()]
    pieces += ["".join(merge.split()) for merge in merges] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    CLIPTokenizer(
        vocab=vocabulary, merges=[tuple(merge.split()) for merge in merges], model_max_length=77
    ).save_pretrained(folder)
    return folder


def bert_tokenizer(folder: Path) -> Path:
    """BERT's tokenizer with letters for words."""
    from transformers import BertTokenizer

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}).save_pretrained(folder)
    return folder


def open_clip_state(seed: int = 0, n_tokens: int = 2 * len(LETTERS) + 2, length: int = 20, layers: int = 2) -> State:
    """A state dict as open_clip's ViT models have it."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * (0.3 if len(shape) > 1 else 0.1)

    def norm(name: str) -> State:
        return {f"{name}.weight": 1 + random(WIDTH), f"{name}.bias": random(WIDTH)}

    state = {
        "positional_embedding": random(length, WIDTH),
        "text_projection": random(WIDTH, DIM),
        "logit_scale": torch.tensor(3.0),
        "token_embedding.weight": random(n_tokens, WIDTH),
        "visual.class_embedding": random(WIDTH),
        "visual.positional_embedding": random(N_PATCHES + 1, WIDTH),
        "visual.proj": random(WIDTH, DIM),
        "visual.conv1.weight": random(WIDTH, 3, PATCH, PATCH),
    }
    state |= norm("ln_final") | norm("visual.ln_pre") | norm("visual.ln_post")
    for tower in ("", "visual."):
        for number in range(layers):
            block = f"{tower}transformer.resblocks.{number}"
            state |= norm(f"{block}.ln_1") | norm(f"{block}.ln_2")
            state |= {f"{block}.attn.in_proj_weight": random(3 * WIDTH, WIDTH)}
            state |= {f"{block}.attn.in_proj_bias": random(3 * WIDTH)}
            for name, rows, columns in (
                ("attn.out_proj", WIDTH, WIDTH),
                ("mlp.c_fc", 4 * WIDTH, WIDTH),
                ("mlp.c_proj", WIDTH, 4 * WIDTH),
            ):
                state |= {f"{block}.{name}.weight": random(rows, columns), f"{block}.{name}.bias": random(rows)}
    return state


def open_clip_image(state: State, values: Tensor) -> Tensor:
    """The image tower of such a state dict on preprocessed pictures `[B, 3, h, w]`; length 1."""
    x = F.conv2d(values, state["visual.conv1.weight"], stride=PATCH).flatten(2).mT
    x = torch.cat([state["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + state["visual.positional_embedding"]
    x = _norm(x, state, "visual.ln_pre")
    x = _norm(_blocks(x, state, "visual.", causal=False)[:, 0], state, "visual.ln_post")
    return F.normalize(x @ state["visual.proj"], dim=1)


def open_clip_text(state: State, tokens: Tensor) -> Tensor:
    """The text tower on tokens `[B, L]`, read where the largest stands; length 1."""
    x = state["token_embedding.weight"][tokens] + state["positional_embedding"]
    x = _norm(_blocks(x, state, "", causal=True), state, "ln_final")
    return F.normalize(x[torch.arange(len(x)), tokens.argmax(1)] @ state["text_projection"], dim=1)


def _blocks(x: Tensor, state: State, tower: str, *, causal: bool) -> Tensor:
    number = 0
    while (block := f"{tower}transformer.resblocks.{number}") + ".ln_1.weight" in state:
        query, key, value = _linear(_norm(x, state, f"{block}.ln_1"), state, f"{block}.attn.in_proj", "_").chunk(3, -1)
        x = x + _linear(_attend(query, key, value, N_HEADS, causal=causal), state, f"{block}.attn.out_proj")
        inner = F.gelu(_linear(_norm(x, state, f"{block}.ln_2"), state, f"{block}.mlp.c_fc"))
        x, number = x + _linear(inner, state, f"{block}.mlp.c_proj"), number + 1
    return x


def aesthetic_state(width: int = DIM, prefix: str = "layers.", seed: int = 0) -> State:
    """The five linear layers, numbered with the dropouts between them."""
    generator, widths, state = torch.Generator().manual_seed(seed), (width, 1024, 128, 64, 16, 1), {}
    for number, columns, rows in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        state[f"{prefix}{number}.weight"] = torch.randn(rows, columns, generator=generator) / columns**0.5
        state[f"{prefix}{number}.bias"] = torch.randn(rows, generator=generator)
    return state


def apply_layers(x: Tensor, state: State, prefix: str = "layers.") -> Tensor:
    for number in (0, 2, 4, 6, 7):
        x = _linear(x, state, f"{prefix}{number}")
    return x[:, 0]


def reward_state(seed: int = 0, width: int = 48, n_tokens: int = 60, layers: int = 2) -> State:
    """A state dict as ImageReward.pt has it: BLIP's picture and text towers, layers of no use here, the last layers."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * (0.2 if len(shape) > 1 else 0.1)

    def linear(name: str, rows: int, columns: int) -> State:
        return {f"{name}.weight": random(rows, columns), f"{name}.bias": random(rows)}

    def norm(name: str, size: int) -> State:
        return {f"{name}.weight": 1 + random(size), f"{name}.bias": random(size)}

    see, read = "blip.visual_encoder", "blip.text_encoder"
    state = {
        f"{see}.cls_token": random(1, 1, WIDTH),
        f"{see}.pos_embed": random(1, 5, WIDTH),
        f"{see}.patch_embed.proj.weight": random(WIDTH, 3, 16, 16),
        f"{see}.patch_embed.proj.bias": random(WIDTH),
        f"{read}.embeddings.position_ids": torch.arange(40)[None],
        f"{read}.embeddings.word_embeddings.weight": random(n_tokens, width),
        f"{read}.embeddings.position_embeddings.weight": random(40, width),
    }
    state |= norm(f"{see}.norm", WIDTH) | norm(f"{read}.embeddings.LayerNorm", width)
    state |= linear("blip.vision_proj", 4, WIDTH) | linear("blip.text_proj", 4, width)
    for number in range(layers):
        block, layer = f"{see}.blocks.{number}", f"{read}.encoder.layer.{number}"
        state |= norm(f"{block}.norm1", WIDTH) | norm(f"{block}.norm2", WIDTH)
        state |= linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH) | linear(f"{block}.attn.proj", WIDTH, WIDTH)
        state |= linear(f"{block}.mlp.fc1", 4 * WIDTH, WIDTH) | linear(f"{block}.mlp.fc2", WIDTH, 4 * WIDTH)
        for kind, source in (("attention", width), ("crossattention", WIDTH)):
            state |= linear(f"{layer}.{kind}.self.query", width, width)
            state |= linear(f"{layer}.{kind}.self.key", width, source)
            state |= linear(f"{layer}.{kind}.self.value", width, source)
            state |= linear(f"{layer}.{kind}.output.dense", width, width)
            state |= norm(f"{layer}.{kind}.output.LayerNorm", width)
        state |= linear(f"{layer}.intermediate.dense", 96, width) | linear(f"{layer}.output.dense", width, 96)
        state |= norm(f"{layer}.output.LayerNorm", width)
    return state | aesthetic_state(width, "mlp.layers.", seed)


def reward(state: State, values: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """ImageReward of preprocessed pictures `[B, 3, 32, 32]` and tokens `[B, L]`, before it is standardised."""
    see, read = "blip.visual_encoder", "blip.text_encoder"
    x = F.conv2d(values, state[f"{see}.patch_embed.proj.weight"], state[f"{see}.patch_embed.proj.bias"], 16)
    x = torch.cat([state[f"{see}.cls_token"].expand(len(x), 1, -1), x.flatten(2).mT], 1) + state[f"{see}.pos_embed"]
    for number in range(2):
        block = f"{see}.blocks.{number}"
        query, key, value = _linear(_norm(x, state, f"{block}.norm1", 1e-6), state, f"{block}.attn.qkv").chunk(3, -1)
        x = x + _linear(_attend(query, key, value, 16), state, f"{block}.attn.proj")
        inner = F.gelu(_linear(_norm(x, state, f"{block}.norm2", 1e-6), state, f"{block}.mlp.fc1"))
        x = x + _linear(inner, state, f"{block}.mlp.fc2")
    seen = _norm(x, state, f"{see}.norm", 1e-6)
    y = state[f"{read}.embeddings.word_embeddings.weight"][tokens]
    y = y + state[f"{read}.embeddings.position_embeddings.weight"][: tokens.shape[1]]
    y = _norm(y, state, f"{read}.embeddings.LayerNorm", 1e-12)
    for number in range(2):
        layer = f"{read}.encoder.layer.{number}"
        for kind, source, allowed in (("attention", None, mask), ("crossattention", seen, None)):
            source = y if source is None else source
            parts = [_linear(one, state, f"{layer}.{kind}.self.{name}") for one, name in
                     ((y, "query"), (source, "key"), (source, "value"))]  # fmt: skip
            new = _linear(_attend(*parts, 12, mask=allowed), state, f"{layer}.{kind}.output.dense")
            y = _norm(y + new, state, f"{layer}.{kind}.output.LayerNorm", 1e-12)
        inner = F.gelu(_linear(y, state, f"{layer}.intermediate.dense"))
        y = _norm(y + _linear(inner, state, f"{layer}.output.dense"), state, f"{layer}.output.LayerNorm", 1e-12)
    return apply_layers(y[:, 0], state, "mlp.layers.")


def cropped(picture: np.ndarray, side: int) -> Tensor:
    """OpenAI's preprocessing: the shorter side to `side`, by PIL's bicubic filter, then the middle."""
    image = Image.fromarray(picture)
    scale = side / min(image.size)
    image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    values = torch.from_numpy(np.array(image.crop((left, top, left + side, top + side)))).permute(2, 0, 1).float() / 255
    return (values - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, n_heads: int, *, causal: bool = False, mask: Tensor | None = None
) -> Tensor:
    heads = [x.unflatten(-1, (n_heads, -1)).transpose(1, 2) for x in (query, key, value)]
    weights = heads[0] @ heads[1].mT / heads[0].shape[-1] ** 0.5
    if causal:
        weights = weights + torch.full(weights.shape[-2:], -torch.inf).triu(1)
    if mask is not None:
        weights = weights.masked_fill(mask[:, None, None] == 0, -torch.inf)
    return (weights.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2)


def _linear(x: Tensor, state: State, name: str, dot: str = ".") -> Tensor:
    return F.linear(x, state[f"{name}{dot}weight"], state[f"{name}{dot}bias"])


def _norm(x: Tensor, state: State, name: str, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def save_clip_folder(folder: Path, seed: int = 0) -> Any:
    """A CLIP in transformers' format that takes 32 px and embeds in `DIM` dimensions, with tokenizer; the model."""
    import json

    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    n_pieces = 2 * len(LETTERS) + 2
    text = CLIPTextConfig(
        vocab_size=n_pieces,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=20,
        bos_token_id=n_pieces - 2,
        eos_token_id=n_pieces - 1,
        pad_token_id=n_pieces - 1,
    )
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=DIM)
        model = CLIPModel(config).eval()
    model.save_pretrained(folder)
    clip_tokenizer(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = sizes | {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return model
