"""What training reads out of the store, and the training itself in this process."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from popalign_core.config import Axis, ModelConfig, RuntimeConfig
from storage.store import ArtifactRef, Store
from tasks.common.stage_object import Progress
from tasks.common.trained_models import find_trained
from tasks.stages.train_view import TrainView

if TYPE_CHECKING:
    import torch

    from popalign_core.models.trained_weights import TrainedModel
    from popalign_core.training.checkpoint import LogRow
    from popalign_core.training.data import PreferenceData, StoredLatents
    from popalign_core.training.probe import PopulationProbe


DENOISER_PARTS = ("unet", "transformer", "scheduler")
"""What training needs of a pipeline: latents and embeddings come from the store."""


@dataclass(frozen=True)
class TrainingRefs:
    """The artifacts that training reads.

    Attributes:
        preferences: Tables `preferences` and `retained`.
        sample: Latents and embeddings.
        prompts: The texts, or None.
        attributes: The images' classes, or None.
        start: A trained model that training starts from, or None for the base model.
    """

    preferences: ArtifactRef
    sample: ArtifactRef
    prompts: ArtifactRef | None = None
    attributes: ArtifactRef | None = None
    start: ArtifactRef | None = None

    def keys(self) -> dict[str, str]:
        """Input -> key of those that there are."""
        return {name: ref["key"] for name, ref in asdict(self).items() if ref is not None}

    def find_start(self, store: Store, model: ModelConfig) -> "TrainedModel | None":
        """The trained model that training starts from; None is the base model.

        Raises:
            MissingWeightsError: As `find_trained`.
        """
        return None if self.start is None else find_trained(store, self.start, model)


def run_training(
    store: Store,
    refs: TrainingRefs,
    view: TrainView,
    runtime: RuntimeConfig,
    work: Path,
    on_progress: Progress,
    is_orphaned: Callable[[], bool] | None = None,
    log_folder: Path | None = None,
) -> "tuple[Any, list[LogRow]]":
    """Train in this process: the trained denoiser, and the log.

    `is_orphaned` says when the launching process has gone: then training saves and ends as on SIGTERM.
    """
    from popalign_core.models.denoisers import find_denoiser
    from popalign_core.models.loading import load_pipeline, resolve_device
    from popalign_core.sampling.engine import time_ids
    from popalign_core.training.job import Observers, TrainingSubject
    from popalign_core.training.trainer import train_preferences

    parts = (*DENOISER_PARTS, "vae") if view.training.probe else DENOISER_PARTS
    start = refs.find_start(store, view.model)
    pipeline = load_pipeline(view.model, device=resolve_device(runtime.device), trained=start, components=parts)
    data = replace(read_preferences(store, refs, view.axes), guidance_scale=view.sampling.guidance_scale)
    denoiser = find_denoiser(pipeline)
    observers = Observers(
        on_step=lambda step, *_: on_progress(step, view.training.n_steps),
        probe=_make_probe(store, refs, pipeline, data, view, runtime),
        is_orphaned=is_orphaned,
        log_folder=log_folder,
    )
    subject = TrainingSubject(denoiser, pipeline.scheduler, data, time_ids(view.sampling))
    return denoiser, train_preferences(subject, view.training, work, runtime, observers)


def read_preferences(store: Store, refs: TrainingRefs, axes: Sequence[Axis]) -> "PreferenceData":
    """Join set members, their latents and their captions' embeddings.

    An image in two sets is two rows. Both sides of a pair carry the neutral prompt.

    Raises:
        InputError: When there are no preferences.
    """
    import torch

    from popalign_core.errors import InputError
    from popalign_core.training.data import PreferenceData
    from tasks.common.image_tables import read_images
    from tasks.common.tensors import read_embeddings

    members = store.read_table(refs.preferences, "preferences")
    if members.empty:
        raise InputError("there are no preferences to train on; see the drops of stage preferences, sample more images")
    places = read_images(store, refs.sample)[["image_id", "latents_file", "latents_row"]]
    members = members.merge(places, on="image_id")
    retained = store.read_table(refs.preferences, "retained").merge(places, on="image_id")
    ids, embeddings = read_embeddings(store.localize(refs.sample, "embeddings.safetensors"))
    captions = _list_captions(members, retained)
    # imported pairs may have tens of thousands of captions: no search through a list for each image
    row_of = {prompt_id: row for row, prompt_id in enumerate(ids)}
    number_of = {prompt_id: number for number, prompt_id in enumerate(captions)}
    rows = torch.tensor([row_of[prompt_id] for prompt_id in captions])
    empty = row_of[""]
    files = sorted({*members["latents_file"], *retained["latents_file"]})
    classes, target = _read_classes(store, refs.attributes, members, axes)
    return PreferenceData(
        latents=_stored_latents(store, refs.sample, files, members),
        preferred=torch.tensor((members["role"] == "preferred").tolist()),
        prompt_index=torch.tensor([number_of[prompt_id] for prompt_id in members["prompt_id"]]),
        set_index=torch.tensor(pd.factorize(members["set_id"])[0]),
        prompt_embeds=embeddings.prompt_embeds[rows],
        pooled_prompt_embeds=embeddings.pooled_prompt_embeds[rows],
        empty_prompt_embeds=embeddings.prompt_embeds[empty : empty + 1],
        empty_pooled=embeddings.pooled_prompt_embeds[empty : empty + 1],
        retained_latents=_stored_latents(store, refs.sample, files, retained),
        retained_prompt_index=torch.tensor(
            [number_of[prompt_id] for prompt_id in retained["prompt_id"]], dtype=torch.int64
        ),
        retained_generic=torch.tensor((retained["kind"] == "generic").tolist(), dtype=torch.bool),
        classes=classes,
        target=target,
    )


def _list_captions(members: pd.DataFrame, retained: pd.DataFrame) -> list[str]:
    """Prompt ids in the order of the rows of `PreferenceData.prompt_embeds`."""
    return sorted({*members["prompt_id"], *retained["prompt_id"]})


def _stored_latents(store: Store, sample: ArtifactRef, files: list[str], members: pd.DataFrame) -> "StoredLatents":
    """[N, C, h, w] in the order of `members`, read from the store's files when they are asked for."""
    from popalign_core.training.data import StoredLatents

    numbers = {name: number for number, name in enumerate(files)}
    places = [
        (numbers[file], int(row)) for file, row in zip(members["latents_file"], members["latents_row"], strict=True)
    ]
    return StoredLatents([store.localize(sample, name) for name in files], places)


def _read_classes(
    store: Store, attributes: ArtifactRef | None, members: pd.DataFrame, axes: Sequence[Axis]
) -> "tuple[torch.Tensor | None, torch.Tensor | None]":
    """Joint class of each member over all axes, and the target; one class more, of share 0, is for the unread."""
    import numpy as np
    import torch

    if attributes is None:
        return None, None
    from popalign_core.attributes.filtering import classes_by_image

    seen = classes_by_image(store.read_table(attributes, "attributes"))
    sizes = [len(axis.classes) for axis in axes]
    unread = prod(sizes)
    numbers = []
    for image_id in members["image_id"]:
        names = [seen[image_id].get(axis.name, (None, None))[0] for axis in axes]
        known = [axis.classes.index(name) for axis, name in zip(axes, names, strict=True) if name in axis.classes]
        numbers.append(int(np.ravel_multi_index(known, sizes)) if len(known) == len(axes) else unread)
    target = np.ones(1)
    for axis in axes:
        target = np.outer(target, axis.shares()).ravel()
    return torch.tensor(numbers), torch.tensor([*target, 0.0], dtype=torch.float32)


def _make_probe(
    store: Store,
    refs: TrainingRefs,
    pipeline: Any,
    data: "PreferenceData",
    view: TrainView,
    runtime: RuntimeConfig,
) -> "PopulationProbe | None":
    """The population probe on neutral training prompts, evenly from all; None when none is configured."""
    settings = view.training.probe
    if settings is None or view.attributes is None:
        return None
    from popalign_core.attributes.filtering import check_classifier
    from popalign_core.models.clip import load_clip
    from popalign_core.models.embeddings import PromptEmbeddings
    from popalign_core.models.loading import resolve_device
    from popalign_core.training.probe import PopulationProbe
    from tasks.common.measuring import clip_folder, load_attribute_classifier

    device = resolve_device(runtime.device)
    classifier = load_attribute_classifier(view.attributes, str(device), view.axes)
    check_classifier(classifier, view.axes)
    neutral = data.prompt_index.unique()
    chosen = neutral[:: max(1, len(neutral) // settings.n_prompts)][: settings.n_prompts]
    texts = None
    if refs.prompts is not None:
        captions = _list_captions(*(store.read_table(refs.preferences, name) for name in ("preferences", "retained")))
        written = store.read_table(refs.prompts, "prompts").set_index("prompt_id")["text"]
        texts = [str(written[captions[row]]) for row in chosen.tolist()]
    return PopulationProbe(
        pipeline=pipeline,
        embeddings=PromptEmbeddings(data.prompt_embeds[chosen], data.pooled_prompt_embeds[chosen]),
        unconditional=PromptEmbeddings(data.empty_prompt_embeds, data.empty_pooled),
        sampling=view.sampling,
        settings=settings,
        axes=view.axes,
        attributes=view.attributes,
        classifier=classifier,
        batch_size=runtime.batch_size,
        clip=None if texts is None else load_clip(clip_folder(), device),
        texts=texts,
    )
