"""Hashes of hub models, which a store remembers by id and revision: who has no weights finds the same artifacts."""

from collections.abc import Iterable

from popalign_core.config import ModelConfig
from popalign_core.models.loading import hub_label, know_hub_hash, own_hash
from storage.store import Store

_HUB = "hub:"
"""Before a label: the records of base models go by hashes, these by labels."""


def keep_hub_hash(store: Store, model: ModelConfig) -> None:
    """Remember the hash of a hub model whose weights are here; nothing for others.

    Raises:
        StoreError: When the store cannot be written.
    """
    label = hub_label(model)
    if label is not None and (found := own_hash(model)) != label:
        store.model_records().add(_HUB + label, {"hash": found})


def learn_hub_hashes(store: Store, models: Iterable[ModelConfig]) -> None:
    """Let `model_hash` know the hub models whose weights are not here.

    Raises:
        StoreError: When the store cannot be read.
    """
    for model in models:
        label = hub_label(model)
        if label is None or own_hash(model) != label:
            continue
        for document in store.model_records().find(_HUB + label)[:1]:
            if isinstance(found := document.get("hash"), str):
                know_hub_hash(label, found)
