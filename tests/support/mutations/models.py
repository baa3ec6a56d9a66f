"""Mutations of models: pipelines of each family, CLIP, image classifiers, LoRAs."""

from mutations.judging import Kind
from mutations.lora_mutations import LORAS
from mutations.model_world import ModelWorld
from mutations.processor_mutations import PROCESSORS
from mutations.settings_mutations import SETTINGS
from mutations.weight_mutations import WEIGHTS

MODELS = Kind("models", ModelWorld, {**WEIGHTS, **SETTINGS, **PROCESSORS, **LORAS}, n_commands=15)
