"""Measures the population while training: fixed prompts, fixed seeds, the pipeline's own classifier."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from popalign_core.attributes.classifier_interface import AttributeClassifier
from popalign_core.attributes.filtering import filter_readings
from popalign_core.config import AttributesConfig, Axis, ProbeConfig, SamplingConfig
from popalign_core.evaluation.clip_score import clip_scores
from popalign_core.evaluation.fairness import discrepancy
from popalign_core.ids import image_seed
from popalign_core.models.clip import ClipScorer, embed_images, embed_texts
from popalign_core.models.embeddings import PromptEmbeddings
from popalign_core.sampling.engine import sample_images


@dataclass(frozen=True)
class PopulationProbe:
    """Samples the same few images with whatever weights the pipeline has now, and measures them.

    Training prompts, never the evaluation's: a stop that looks at the evaluation would fit it.

    Attributes:
        pipeline: Whose denoiser is in training.
        embeddings: Neutral prompts.
        unconditional: The empty prompt.
        sampling: As the pipeline samples.
        settings: How many images, which seed.
        axes: Attributes whose discrepancy is taken, pooled over the prompts.
        attributes: Thresholds of the classifier.
        classifier: The classifier.
        batch_size: Images a forward.
        clip: Scores the images against `texts`; None leaves the CLIP score out.
        texts: The prompts' words.
    """

    pipeline: Any
    embeddings: PromptEmbeddings
    unconditional: PromptEmbeddings
    sampling: SamplingConfig
    settings: ProbeConfig
    axes: Sequence[Axis]
    attributes: AttributesConfig
    classifier: AttributeClassifier
    batch_size: int
    clip: ClipScorer | None = None
    texts: Sequence[str] | None = None

    def __call__(self) -> dict[str, float]:
        """`discrepancy/AXIS` (Eq. 13, over the faces that could be read), `face_share`, and `clip_score`."""
        n_prompts, n_images = len(self.embeddings.prompt_embeds), self.settings.n_images
        index = [prompt for prompt in range(n_prompts) for _ in range(n_images)]
        seeds = [image_seed(self.settings.seed, f"probe/{i // n_images}", i % n_images) for i in range(len(index))]
        pixels = self._draw(index, seeds)
        readings = self.classifier.read(pixels)
        names = [f"{i}" for i in range(len(readings))]
        table = filter_readings(readings, names, self.axes, self.attributes, self.classifier.name)
        found: dict[str, float] = {}
        for axis in self.axes:
            seen = table.loc[(table["axis"] == axis.name) & table["drop_reason"].isna(), "class"]
            counts = [int((seen == name).sum()) for name in axis.classes]
            # no face at all is as far from any target as possible
            found[f"discrepancy/{axis.name}"] = discrepancy(counts, axis.shares()) if sum(counts) else 1.0
        found["face_share"] = float(np.mean([reading.n_faces > 0 for reading in readings]))
        if self.clip is not None and self.texts is not None:
            texts = embed_texts(self.clip, list(self.texts))
            images = embed_images(self.clip, (pixels[i : i + 64] for i in range(0, len(pixels), 64)))
            found["clip_score"] = float(np.mean(clip_scores(images, texts[torch.tensor(index)])))
        return found

    def _draw(self, index: list[int], seeds: list[int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
        parts = [slice(start, start + self.batch_size) for start in range(0, len(index), self.batch_size)]
        sampled = [
            sample_images(self.pipeline, self.embeddings, self.unconditional, index[p], seeds[p], self.sampling)[0]
            for p in parts
        ]
        return np.concatenate(sampled)
