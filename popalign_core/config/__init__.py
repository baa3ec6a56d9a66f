"""The configuration: one frozen model a stage, composed into `PipelineConfig`, the flows' only parameter.

Everything here changes results and is hashed into artifact keys. What does not (batch size, workers, device)
lives in `RuntimeConfig`, which is never hashed.
"""

from popalign_core.config.attributes import AttributesConfig, NetworkConfig, PeopleConfig, ZeroShotConfig
from popalign_core.config.base import PHRASE, Axis, Frozen, Text, describe_problems
from popalign_core.config.evaluation import (
    AestheticsConfig,
    ClipScoreConfig,
    EvaluationConfig,
    HPSConfig,
    ImageRewardConfig,
    InceptionConfig,
    OpenClipConfig,
    PickScoreConfig,
    ScorerConfig,
)
from popalign_core.config.files import load_config
from popalign_core.config.pipeline import (
    PipelineConfig,
    PreferencesConfig,
    SystemConfig,
    merge_documents,
    parse_config,
)
from popalign_core.config.prompts import BENCHMARKS, THEMES, BenchmarkConfig, Kind, LLMConfig, PromptsConfig
from popalign_core.config.runtime import RuntimeConfig
from popalign_core.config.sampling import (
    AnnealingConfig,
    CADSConfig,
    FairDiffusionConfig,
    LoraConfig,
    ModelConfig,
    SamplingConfig,
    SDEditConfig,
)
from popalign_core.config.training import PopulationConfig, ProbeConfig, TrainingConfig

__all__ = [
    "BENCHMARKS",
    "PHRASE",
    "THEMES",
    "AestheticsConfig",
    "AnnealingConfig",
    "AttributesConfig",
    "Axis",
    "BenchmarkConfig",
    "CADSConfig",
    "ClipScoreConfig",
    "EvaluationConfig",
    "FairDiffusionConfig",
    "Frozen",
    "HPSConfig",
    "ImageRewardConfig",
    "InceptionConfig",
    "Kind",
    "LLMConfig",
    "LoraConfig",
    "ModelConfig",
    "NetworkConfig",
    "OpenClipConfig",
    "PeopleConfig",
    "PickScoreConfig",
    "PipelineConfig",
    "PopulationConfig",
    "PreferencesConfig",
    "ProbeConfig",
    "PromptsConfig",
    "RuntimeConfig",
    "SDEditConfig",
    "SamplingConfig",
    "ScorerConfig",
    "SystemConfig",
    "Text",
    "TrainingConfig",
    "ZeroShotConfig",
    "describe_problems",
    "load_config",
    "merge_documents",
    "parse_config",
]
