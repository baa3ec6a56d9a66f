"""What training reads out of the store, and the training itself in this process."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from popalign_core.config import Axis, RuntimeConfig, TrainingConfig
from storage.store import Store
from tasks.common.stage_object import Progress
from tasks.stages.round_inputs import TrainingRefs, latent_places, open_latents, read_class_numbers, read_members
from tasks.stages.train_view import TrainView

if TYPE_CHECKING:
    import torch

    from popalign_core.training.checkpoint import LogRow
    from popalign_core.training.data import PreferenceData
    from popalign_core.training.probe import PopulationProbe


DENOISER_PARTS = ("unet", "transformer", "scheduler")
"""What training needs of a pipeline: latents and embeddings come from the store."""


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
    data = read_preferences(store, refs, view.axes, view.training)
    data = replace(data, guidance_scale=view.sampling.guidance_scale)
    denoiser = find_denoiser(pipeline)
    observers = Observers(
        on_step=lambda step, *_: on_progress(step - view.last_step + view.training.n_steps, view.training.n_steps),
        probe=_make_probe(store, refs, pipeline, data, view, runtime),
        is_orphaned=is_orphaned,
        log_folder=log_folder,
    )
    ids, before, seen = time_ids(view.sampling), refs.read_before(store), _describe_round(store, refs, view.axes)
    subject = TrainingSubject(denoiser, pipeline.scheduler, data, ids, before, seen)
    return denoiser, train_preferences(subject, view.training, work, runtime, observers)


def read_preferences(
    store: Store, refs: TrainingRefs, axes: Sequence[Axis], training: TrainingConfig | None = None
) -> "PreferenceData":
    """Join set members, their latents and their captions' embeddings.

    An image in two sets is two rows. Both sides of a pair carry the neutral prompt.

    Args:
        store: Where everything is.
        refs: Of the training.
        axes: With their targets.
        training: What it needs besides: the members of a round, advantages, log-ratios; None needs nothing.

    Raises:
        InputError: When there are no preferences.
    """
    import torch

    from popalign_core.training.data import PreferenceData
    from tasks.common.tensors import read_embeddings

    members = read_members(store, refs, training)
    places = latent_places(store, refs.sample).drop(columns="prompt_id")
    retained = store.read_table(refs.preferences, "retained").merge(places, on="image_id")
    ids, embeddings = read_embeddings(store.localize(refs.sample, "embeddings.safetensors"))
    captions = _list_captions(members, retained)
    # imported pairs may have tens of thousands of captions: no search through a list for each image
    row_of = {prompt_id: row for row, prompt_id in enumerate(ids)}
    number_of = {prompt_id: number for number, prompt_id in enumerate(captions)}
    rows = torch.tensor([row_of[prompt_id] for prompt_id in captions])
    empty = row_of[""]
    files = sorted({*members["path"], *retained["path"]})
    classes, target = _read_classes(store, refs, members, axes)
    advantages, log_ratios = _read_wanted(store, refs, members, axes, training)
    return PreferenceData(
        latents=open_latents(members, files),
        preferred=torch.tensor((members["role"] == "preferred").tolist()),
        prompt_index=torch.tensor([number_of[prompt_id] for prompt_id in members["prompt_id"]]),
        set_index=torch.tensor(pd.factorize(members["set_id"])[0]),
        prompt_embeds=embeddings.prompt_embeds[rows],
        pooled_prompt_embeds=embeddings.pooled_prompt_embeds[rows],
        empty_prompt_embeds=embeddings.prompt_embeds[empty : empty + 1],
        empty_pooled=embeddings.pooled_prompt_embeds[empty : empty + 1],
        retained_latents=open_latents(retained, files),
        retained_prompt_index=torch.tensor(
            [number_of[prompt_id] for prompt_id in retained["prompt_id"]], dtype=torch.int64
        ),
        retained_generic=torch.tensor((retained["kind"] == "generic").tolist(), dtype=torch.bool),
        classes=classes,
        target=target,
        advantages=advantages,
        log_ratios=log_ratios,
    )


def _list_captions(members: pd.DataFrame, retained: pd.DataFrame) -> list[str]:
    """Prompt ids in the order of the rows of `PreferenceData.prompt_embeds`."""
    return sorted({*members["prompt_id"], *retained["prompt_id"]})


def _read_classes(
    store: Store, refs: TrainingRefs, members: pd.DataFrame, axes: Sequence[Axis]
) -> "tuple[torch.Tensor | None, torch.Tensor | None]":
    """Joint class of each member over all axes, and the target; one class more, of share 0, is for the unread.

    Of pairs of sets, for the objective that calibrates.
    """
    import numpy as np
    import torch

    if refs.attributes is None or refs.round_sample is not None:
        return None, None
    from popalign_core.training.population import joint_cells, joint_shares

    numbers = read_class_numbers(store, refs.attributes, members["image_id"].tolist(), axes)
    target = joint_shares([np.array(axis.shares()) for axis in axes]).ravel()
    cells = joint_cells(numbers, [len(axis.classes) for axis in axes])
    return (
        torch.from_numpy(np.where(cells < 0, len(target), cells)),
        torch.tensor([*target, 0.0], dtype=torch.float32),
    )


def _read_wanted(
    store: Store,
    refs: TrainingRefs,
    members: pd.DataFrame,
    axes: Sequence[Axis],
    training: TrainingConfig | None,
) -> "tuple[torch.Tensor | None, torch.Tensor | None]":
    """Advantages of what the policy sampled in a round, or log-ratios to the target of what the base sampled."""
    import numpy as np
    import torch

    from popalign_core.training.population import advantages_by_prompt, log_ratios_by_prompt

    targets, prompts = [np.array(axis.shares()) for axis in axes], pd.factorize(members["prompt_id"])[0]
    ids = members["image_id"].tolist()
    if training is not None and training.has_advantages and refs.round_attributes is not None:
        classes = read_class_numbers(store, refs.round_attributes, ids, axes)
        found = advantages_by_prompt(classes, prompts, targets, training.population)
        return torch.from_numpy(found).float(), None
    if training is not None and training.objective == "ratio-matching" and refs.attributes is not None:
        classes = read_class_numbers(store, refs.attributes, ids, axes)
        base = (members["role"] == "dispreferred").to_numpy()
        found = log_ratios_by_prompt(classes, prompts, base, targets, training.population)
        return None, torch.from_numpy(found).float()
    return None, None


def _describe_round(store: Store, refs: TrainingRefs, axes: Sequence[Axis]) -> dict[str, float]:
    """What the policy sampled in this round, in numbers for the log; nothing offline."""
    from popalign_core.training.population import describe_round

    if refs.round_sample is None or refs.round_attributes is None:
        return {}
    images = latent_places(store, refs.round_sample)
    classes = read_class_numbers(store, refs.round_attributes, images["image_id"].tolist(), axes)
    return describe_round(classes, pd.factorize(images["prompt_id"])[0], axes)


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
