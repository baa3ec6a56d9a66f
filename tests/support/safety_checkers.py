"""A safety checker in the format of the public one, random and tiny, that flags some of the pictures it is made for."""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, cosine_distance
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig

from popalign_core.sampling.safety import SafetyChecker, load_safety_checker

Pixels = NDArray[np.uint8]
WIDTH = 16
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": WIDTH,
}
# Word for word what lies beside the public checkpoint, at its size here.
PREPROCESSOR = {
    "crop_size": 32,
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 32,
}


def checker_inputs(checker: SafetyChecker, pictures: Pixels) -> torch.Tensor:
    """As the stock pipeline makes them, from PIL pictures."""
    values: torch.Tensor = checker.preprocessing.processor([Image.fromarray(p) for p in pictures], return_tensors="pt")[
        "pixel_values"
    ]
    return values


def save_checker(path: Path, pictures: Pixels, quantile: float = 0.97) -> Path:
    """A random checkpoint with the public one's names; each concept's threshold is a quantile of the pictures."""
    path.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = StableDiffusionSafetyChecker(CLIPConfig(vision_config=VISION, projection_dim=WIDTH))
        model.concept_embeds.data = torch.randn(17, WIDTH)
        model.special_care_embeds.data = torch.randn(3, WIDTH)
    (path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    model.eval().save_pretrained(path)
    with torch.no_grad():
        values = checker_inputs(load_safety_checker(str(path)), pictures)
        embeds = model.visual_projection(model.vision_model(values)[1])
    concepts, care = cosine_distance(embeds, model.concept_embeds), cosine_distance(embeds, model.special_care_embeds)
    model.concept_embeds_weights.data = concepts.quantile(quantile, dim=0)
    model.special_care_embeds_weights.data = care.quantile(0.9, dim=0)
    model.save_pretrained(path)
    weights = load_file(path / "model.safetensors")
    renamed = {name.replace("vision_model.", "vision_model.vision_model."): weights[name] for name in weights}
    save_file(renamed, path / "model.safetensors", metadata={"format": "pt"})
    return path
