"""Tensor files beside the tables: safetensors, written whole or not at all."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from popalign_core.models.embeddings import PromptEmbeddings
from storage.roots import storage_errors, write_atomic


def encode_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Tensors under their names, as the content of a file.

    The metadata has one entry at most: safetensors writes several in an order that changes from call to call, and the
    same content would have many checksums.

    Raises:
        ValueError: When there are several.
    """
    if metadata is not None and len(metadata) > 1:
        raise ValueError(f"metadata {sorted(metadata)}: one entry at most, or the file's bytes are left to chance")
    return save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(metadata or {}))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write `encode_tensors` to a file that appears complete or not at all.

    Raises:
        StoreError: When it cannot be written, the disk being full for example.
    """
    data = encode_tensors(tensors, metadata)
    with storage_errors(f"write {path}"):
        write_atomic(path, data)


def write_embeddings(path: Path, prompt_ids: Sequence[str], embeddings: PromptEmbeddings) -> None:
    """Write P prompts' embeddings with their ids; by custom the last is the empty caption, id ""."""
    tensors = {"prompt_embeds": embeddings.prompt_embeds, "pooled_prompt_embeds": embeddings.pooled_prompt_embeds}
    write_tensors(path, tensors, {"prompt_ids": json.dumps(list(prompt_ids))})


def read_embeddings(path: Path) -> tuple[list[str], PromptEmbeddings]:
    """The prompt ids and embeddings of a file."""
    with safe_open(path, framework="pt") as file:
        ids: list[str] = json.loads(file.metadata()["prompt_ids"])
        return ids, PromptEmbeddings(file.get_tensor("prompt_embeds"), file.get_tensor("pooled_prompt_embeds"))
