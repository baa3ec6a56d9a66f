"""What a training reads of images: who is compared with whom, of which classes, and where the latents lie.

Offline these are the set members of `preferences`, all sampled by the base model. In a round the policy has sampled
images of its own for each neutral training prompt: they take the place of the dispreferred members, or, where the
objective weighs images by their advantage, of all members.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from popalign_core.config import Axis, ModelConfig, TrainingConfig
from popalign_core.errors import InputError
from storage.store import ArtifactRef, Store
from tasks.common.image_tables import read_images, seen_classes
from tasks.common.trained_models import find_trained

if TYPE_CHECKING:
    from popalign_core.models.trained_weights import TrainedModel
    from popalign_core.training.checkpoint import Checkpoint
    from popalign_core.training.data import StoredLatents
    from popalign_core.training.population import IntArray


STATE_FILE = "state.safetensors"
"""In the artifact of a round that another one goes on from."""


@dataclass(frozen=True)
class TrainingRefs:
    """The artifacts that training reads.

    Attributes:
        preferences: Tables `preferences` and `retained`.
        sample: Latents and embeddings.
        prompts: The texts, or None.
        attributes: The images' classes, or None.
        start: A trained model that training starts from, or None for the base model.
        round_sample: In a round, the images that the policy sampled for it.
        round_attributes: Their classes.
        before: The training of the round before; None in the first.
    """

    preferences: ArtifactRef
    sample: ArtifactRef
    prompts: ArtifactRef | None = None
    attributes: ArtifactRef | None = None
    start: ArtifactRef | None = None
    round_sample: ArtifactRef | None = None
    round_attributes: ArtifactRef | None = None
    before: ArtifactRef | None = None

    def keys(self) -> dict[str, str]:
        """Input -> key of those that there are."""
        return {name: ref["key"] for name, ref in asdict(self).items() if ref is not None}

    def find_start(self, store: Store, model: ModelConfig) -> "TrainedModel | None":
        """The trained model that training starts from; None is the base model.

        Raises:
            MissingWeightsError: As `find_trained`.
        """
        return None if self.start is None else find_trained(store, self.start, model)

    def read_before(self, store: Store) -> "Checkpoint | None":
        """The end of the round before, its log included; None in the first.

        Raises:
            DamagedWeightsError: When it cannot be read.
        """
        from popalign_core.training.round_state import load_round_state

        if self.before is None:
            return None
        log = store.read_table(self.before, "training_log")
        rows = [
            {"step": int(step), "name": name, "value": float(value)}
            for step, name, value in log[["step", "name", "value"]].itertuples(index=False)
        ]
        return load_round_state(store.localize(self.before, STATE_FILE), rows)


def read_members(store: Store, refs: TrainingRefs, training: TrainingConfig | None = None) -> pd.DataFrame:
    """The compared images: set_id, prompt_id, role, image_id, and where their latents lie (`path`, `latents_row`).

    Args:
        store: Where everything is.
        refs: Of the training.
        training: Its settings; None trains offline, on pairs of sets.

    Raises:
        InputError: When there are none.
    """
    members = store.read_table(refs.preferences, "preferences")[["set_id", "prompt_id", "role", "image_id"]]
    members = members.merge(latent_places(store, refs.sample).drop(columns="prompt_id"), on="image_id")
    if refs.round_sample is not None and refs.round_attributes is not None and training is not None:
        own = latent_places(store, refs.round_sample)
        if training.has_advantages:
            members = own.assign(set_id=own["prompt_id"], role="dispreferred")
        else:
            read = seen_classes(store.read_table(refs.round_attributes, "attributes"))
            members = _facing_policy(members, own[own["image_id"].isin(list(read))])
    if members.empty:
        raise InputError("there are no preferences to train on; see the drops of stage preferences, sample more images")
    return members


def _facing_policy(members: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """The preferred members, and in each set's other place all usable images that the policy sampled for its prompt."""
    sets = members[["set_id", "prompt_id"]].drop_duplicates()
    preferred = members[members["role"] == "preferred"]
    faced = sets.merge(own, on="prompt_id").assign(role="dispreferred")
    # a prompt for which the policy shows nobody that can be read has no other side: it is left out this round
    return pd.concat([preferred[preferred["set_id"].isin(faced["set_id"])], faced], ignore_index=True)


def latent_places(store: Store, sample: ArtifactRef) -> pd.DataFrame:
    """Where the latents of a sample's images lie on this machine: image_id, prompt_id, path, latents_row."""
    images = read_images(store, sample)
    local = {name: str(store.localize(sample, name)) for name in images["latents_file"].unique()}
    return images[["image_id", "prompt_id", "latents_row"]].assign(path=images["latents_file"].map(local))


def open_latents(members: pd.DataFrame, files: Sequence[str]) -> "StoredLatents":
    """[N, C, h, w] in the order of `members`, read from these files when they are asked for."""
    from pathlib import Path

    from popalign_core.training.data import StoredLatents

    numbers = {name: number for number, name in enumerate(files)}
    places = [(numbers[path], int(row)) for path, row in zip(members["path"], members["latents_row"], strict=True)]
    return StoredLatents([Path(name) for name in files], places)


def read_class_numbers(
    store: Store, attributes: ArtifactRef, image_ids: Sequence[str], axes: Sequence[Axis]
) -> "IntArray":
    """[N, A]: the number of each image's class on each axis, -1 where none could be read."""
    from popalign_core.training.population import class_numbers

    seen = seen_classes(store.read_table(attributes, "attributes"))
    rows = [class_numbers(seen.get(image_id, {}), axes) for image_id in image_ids]
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(axes))
