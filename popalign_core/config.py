"""The configuration: one frozen model a stage, composed into `PipelineConfig`, the flows' only parameter.

Everything here changes results and is hashed into artifact keys. What does not (batch size, workers, device)
lives in `RuntimeConfig`, which is never hashed.
"""

import tomllib
from collections.abc import Sized
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from popalign_core.errors import ConfigError

Text = Annotated[str, Field(min_length=1)]
SystemName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+_-]*$")]


def _is_empty(values: Sized) -> bool:
    return len(values) == 0


class Frozen(BaseModel):
    """Immutable, and refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


PHRASE = "{word} {subject}"


class Axis(Frozen):
    """An attribute whose distribution matters, as data: a user adds one without code."""

    name: Text
    classes: tuple[Text, ...] = Field(min_length=2, description="fixed class list; discrepancy is taken over all of it")
    words: dict[str, str] = Field(default={}, description="class -> words in a prompt; the class's own name if absent")
    # Left out of keys and documents when it is the usual one, so that the keys of before it came stay.
    phrase: str = Field(
        default=PHRASE,
        exclude_if=PHRASE.__eq__,
        description="how the words join the subject, such as '{subject} who is {word}'; the first axis joins first",
    )
    target: dict[str, float] | None = Field(default=None, description="class -> share, sums to 1; None is uniform")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"axis {self.name!r} names a class twice: {self.classes}; name each once")
        if self.phrase.count("{word}") != 1 or self.phrase.count("{subject}") != 1:
            raise ValueError(f"axis {self.name!r}: phrase {self.phrase!r} needs {{word}} and {{subject}}, each once")
        for field, mapping in (("words", self.words), ("target", self.target or {})):
            unknown = sorted(set(mapping) - set(self.classes))
            if unknown:
                raise ValueError(f"axis {self.name!r}: {field} has {unknown}, which are not among {self.classes}")
        if self.target is not None:
            total = sum(self.target.values())
            if abs(total - 1) > 1e-6 or min(self.target.values()) < 0:
                raise ValueError(f"axis {self.name!r}: target sums to {total:g}; give shares >= 0 that sum to 1")
        return self

    def word(self, name: str) -> str:
        """What a prompt says for a class."""
        return self.words.get(name, name)

    def shares(self) -> tuple[float, ...]:
        """The target distribution in the order of `classes`."""
        if self.target is None:
            return (1 / len(self.classes),) * len(self.classes)
        return tuple(self.target.get(name, 0.0) for name in self.classes)


THEMES = (
    "health", "science", "technology", "engineering", "education", "law", "finance", "office work", "service", "food",
    "farming", "trades", "manufacturing", "crafts", "arts", "music", "media", "sport", "transport", "safety",
)  # fmt: skip


class LLMConfig(Frozen):
    """An OpenAI-compatible endpoint. The key is read from the environment, never stored."""

    base_url: Text = "http://127.0.0.1:8000/v1"
    model: Text = "gpt-4o-mini"
    api_key_env: Text = "OPENAI_API_KEY"
    temperature: float = Field(default=1.0, ge=0, le=2)
    themes: tuple[Text, ...] = Field(default=THEMES, description="equally many prompts of each; one request is of one")
    n_parallel: int = Field(default=4, ge=1, description="calls under way at once")
    requests_per_minute: float | None = Field(default=None, gt=0, description="retries included; None sets no limit")
    max_retries: int = Field(default=4, ge=0, description="of one call: no answer, 408, 409, 429, 5xx")
    timeout_s: float = Field(default=60, gt=0)
    max_calls: int = Field(default=100, ge=1, description="answers paid for, those of earlier runs included")
    max_tokens_total: int | None = Field(
        default=None, ge=1, description="the same in tokens, as the server counts them"
    )


class PromptsConfig(Frozen):
    """Where neutral and generic prompts come from."""

    source: Literal["grammar", "llm"] = "grammar"
    carrier: Text = Field(default="a photo of {}", description="one template for neutral and specific prompts alike")
    train_subjects: tuple[Text, ...] = Field(default=(), description="grammar: occupations the preference data covers")
    eval_subjects: tuple[Text, ...] = Field(default=(), description="occupations the evaluation uses; disjoint")
    generic_subjects: tuple[Text, ...] = Field(default=(), description="objects and other prompts without people")
    retained_subjects: tuple[Text, ...] = Field(
        default=(), description="the same for training.retention to hold; disjoint from generic_subjects"
    )
    # Left out of keys and documents when they are not used, so that the keys of before they came stay.
    train_lists: tuple[Text, ...] = Field(
        default=(), exclude_if=_is_empty, description="more of train_subjects: names of shipped sets, or files"
    )
    eval_lists: tuple[Text, ...] = Field(default=(), exclude_if=_is_empty, description="more of eval_subjects")
    generic_lists: tuple[Text, ...] = Field(
        default=(), exclude_if=_is_empty, description="prompts like generic_subjects, but used as they are"
    )
    retained_lists: tuple[Text, ...] = Field(default=(), exclude_if=_is_empty, description="like retained_subjects")
    one_person: bool = Field(
        default=True, exclude_if=bool, description="drop prompts of several people, as written or listed by others"
    )
    n_train: int = Field(default=0, ge=0, description="llm: how many training prompts to write")
    llm: LLMConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "{}" not in self.carrier:
            raise ValueError(f"carrier {self.carrier!r} has no {{}}; write for example 'a photo of {{}}'")
        if self.source == "llm" and (self.llm is None or self.n_train == 0):
            raise ValueError("source 'llm' needs an [prompts.llm] table and n_train > 0")
        return self


class ModelConfig(Frozen):
    """A text-to-image model: the shipped `portraits`, a local diffusers folder, or a hub id with a revision."""

    name: Text = Field(default="portraits", description="'portraits', a folder, or a hub id")
    revision: str | None = Field(default=None, description="hub revision (commit); required for a hub id")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    storage: Literal["float8"] | None = Field(
        default=None, description="sampling: how the denoiser's weights are kept; they are cast to dtype when used"
    )
    denoiser: Text | None = Field(
        default=None, description="folder of a UNet or transformer alone, in place of the model's own"
    )
    lora: Text | None = Field(
        default=None, description="a .safetensors file, or a folder that training wrote; fused into the model"
    )
    lora_scale: float = Field(default=1.0, allow_inf_nan=False, description="how much of the LoRA is fused in")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.lora_scale == 0:
            raise ValueError("lora_scale is 0, which fuses nothing; leave lora out, or give another scale")
        if self.lora is None and self.lora_scale != 1:
            raise ValueError(f"lora_scale is {self.lora_scale:g}, but there is no lora; give one, or leave it out")
        return self


class AnnealingConfig(Frozen):
    """When guidance sets in: nothing before diffusion time `tau2`, all of it from `tau1` on (1 is pure noise)."""

    tau1: float = Field(default=0.6, ge=0, le=1, description="1 anneals nothing")
    tau2: float = Field(default=0.9, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.tau1 >= self.tau2 and self.tau1 != 1:
            raise ValueError(f"tau1 {self.tau1} must be below tau2 {self.tau2} (or 1); usual are 0.6 and 0.9")
        return self


class CADSConfig(AnnealingConfig):
    """Condition-annealed sampling (Sadat et al. 2023, arXiv:2310.17347)."""

    noise_scale: float = Field(default=0.25, ge=0, description="s")
    mixing: float = Field(default=1.0, ge=0, le=1, description="psi: share of the rescaled condition")


class FairDiffusionConfig(Frozen):
    """Fair Diffusion (Friedrich et al. 2023, arXiv:2302.10893): semantic guidance towards a drawn identity."""

    subjects: tuple[Text, ...] = Field(
        default=(), description="the look-up: subjects known as biased; every neutral prompt when empty"
    )
    concept: Text = Field(default="{} person", description="what is steered by; {} is a class's words")
    scale: float = Field(default=4.0, gt=0)
    threshold: float = Field(default=0.95, ge=0, lt=1, description="share of each channel that stays untouched")
    warmup: float = Field(default=0.2, ge=0, lt=1, description="share of the steps before it sets in")
    momentum_scale: float = Field(default=0.3, ge=0, le=1)
    momentum_beta: float = Field(default=0.6, ge=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "{}" not in self.concept:
            raise ValueError(f"concept {self.concept!r} has no {{}}; write for example '{{}} person'")
        return self


class SDEditConfig(Frozen):
    """Pictures to start from in place of noise (SDEdit, Meng et al. 2022, arXiv:2108.01073), such as colour layouts."""

    folder: Text = Field(description="of pictures; image i of a prompt starts from number i, by name, over and over")
    strength: float = Field(default=0.8, gt=0, le=1, description="share of the steps that is taken; 1 keeps nothing")


_DIFFUSERS_NAMES = {
    "DPMSolverMultistepScheduler": "dpmsolver++",
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-ancestral",
    "LCMScheduler": "lcm",
    "FlowMatchEulerDiscreteScheduler": "euler",
}


class SamplingConfig(Frozen):
    """How images are drawn."""

    n_steps: int = Field(default=12, ge=1, le=1000)
    guidance_scale: float = Field(
        default=2.5, ge=1.0, description="1 is no guidance; FLUX.1-dev is told the number, FLUX.1-schnell wants 1"
    )
    guidance_rescale: float = Field(default=0.0, ge=0, le=1, description="rescaled CFG: phi")
    guidance_interval: tuple[float, float] | None = Field(
        default=None, description="noise levels (low, high] with guidance; SDXL 0.28 to 5.42"
    )
    dynamic_cfg: AnnealingConfig | None = Field(default=None, description="guidance sets in gradually")
    cads: CADSConfig | None = None
    scheduler: Annotated[
        Literal["dpmsolver++", "ddim", "euler", "euler-ancestral", "lcm"],
        BeforeValidator(lambda name: _DIFFUSERS_NAMES.get(name, name) if isinstance(name, str) else name),
    ] = Field(default="dpmsolver++", description="or the name of the class in diffusers")
    reuse_interval: int = Field(
        default=1,
        ge=1,
        # 1 is left out of what is hashed: it changes nothing, and no key made before it was there
        exclude_if=lambda interval: interval == 1,
        description="the UNet's deep blocks run at every so manyth step (DeepCache); 1 is all, 3 is usual",
    )
    timestep_spacing: Literal["leading", "trailing", "linspace"] | None = Field(
        default=None, description="None is the model's own; Lightning wants 'trailing'"
    )
    eta: float = Field(default=0.0, ge=0, le=1, description="noise that ddim adds as it goes")
    width: int = Field(default=64, ge=8, multiple_of=8, description="px")
    height: int = Field(default=64, ge=8, multiple_of=8, description="px")
    seed: int = Field(default=0, ge=0)
    inject_identity: bool = Field(default=False, description="an identity drawn for each image goes into its prompt")
    fair_diffusion: FairDiffusionConfig | None = None
    sdedit: SDEditConfig | None = None
    safety_checker: Text | None = Field(
        default=None, description="folder of diffusers' safety checker; images it flags are dropped, and counted"
    )
    watermark: bool = Field(default=False, description="SDXL's invisible watermark; needs invisible-watermark")

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.guidance_interval or (0.0, 1.0)
        needs_guidance = {
            "guidance_rescale": bool(self.guidance_rescale),
            "guidance_interval": self.guidance_interval is not None,
            "dynamic_cfg": self.dynamic_cfg is not None,
        }
        idle = [name for name, is_set in needs_guidance.items() if is_set and self.guidance_scale == 1]
        for problem, text in (
            (not 0 <= low < high, f"guidance_interval is {self.guidance_interval}; give 0 <= low < high"),
            (idle, f"{', '.join(idle)} without guidance does nothing; set guidance_scale above 1"),
            (self.eta and self.scheduler != "ddim", f"eta {self.eta} is for ddim, scheduler is {self.scheduler!r}"),
            (
                self.scheduler == "lcm" and self.n_steps > 50,
                f"n_steps is {self.n_steps}; lcm was distilled at 50 timesteps and takes no more, usual are 2 to 8",
            ),
            (
                self.sdedit is not None and int(self.n_steps * self.sdedit.strength) < 1,
                f"sdedit.strength of {self.n_steps} n_steps leaves none to take; raise one of the two",
            ),
            (
                self.inject_identity and self.fair_diffusion is not None,
                "inject_identity and fair_diffusion both choose an identity; set one of the two",
            ),
        ):
            if problem:
                raise ValueError(text)
        return self


class ZeroShotConfig(Frozen):
    """A CLIP that is asked in words which class a picture shows."""

    kind: Literal["clip", "open-clip"]
    path: Text = Field(description="clip: a transformers folder; open-clip: a checkpoint file")
    architecture: str | None = Field(default=None, description="open-clip: the checkpoint's, such as ViT-B-32")
    axes: dict[str, dict[str, Text]] = Field(min_length=1, description="axis -> class -> words for the templates")
    templates: tuple[Text, ...] = Field(default=("a photo of {}",), min_length=1)
    margin: float = Field(default=0.25, ge=0, description="around the face, shares of the box on each side")

    @model_validator(mode="after")
    def _check(self) -> Self:
        bad = [template for template in self.templates if "{}" not in template]
        if bad:
            raise ValueError(f"templates {bad} have no {{}}; write for example 'a photo of {{}}'")
        if (self.kind == "open-clip") != (self.architecture is not None):
            raise ValueError(f"kind {self.kind!r} with architecture {self.architecture!r}; open-clip alone needs one")
        return self


class NetworkConfig(Frozen):
    """An image classifier with labels: a transformers folder, or an ONNX file."""

    kind: Literal["image-classifier", "onnx"]
    path: Text
    axes: dict[str, dict[str, Text]] = Field(
        min_length=1, description="axis -> label -> class; every label of the network once, those of an axis together"
    )
    labels: tuple[Text, ...] = Field(default=(), description="onnx: of its outputs, in order")
    softmax: bool = Field(default=True, description="onnx: whether its outputs are logits")
    mean: tuple[float, float, float] = Field(default=(0.485, 0.456, 0.406), description="onnx: of RGB in [0, 1]")
    std: tuple[float, float, float] = Field(default=(0.229, 0.224, 0.225), description="onnx: of RGB in [0, 1]")
    margin: float = Field(default=0.25, ge=0, description="around the face, shares of the box on each side")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind == "onnx") != bool(self.labels):
            raise ValueError(f"kind {self.kind!r} with {len(self.labels)} labels; onnx alone needs them")
        return self


class PeopleConfig(Frozen):
    """People's labels of stored images: a CSV or Parquet file with `image_id`, `axis` and `class`."""

    kind: Literal["people"]
    path: Text
    axes: dict[str, tuple[Text, ...]] = Field(min_length=1, description="axis -> the classes people chose from")


class AttributesConfig(Frozen):
    """Who looks at the faces, and when an image is dropped."""

    classifier: Text | tuple[Text, ...] = Field(
        default="portraits", description="'portraits', 'deepface' or a name in `classifiers`; several vote"
    )
    detector_backend: Literal["opencv", "fastmtcnn", "retinaface", "yunet", "ssd", "centerface", "skip"] = "opencv"
    min_face_score: float = Field(default=0.5, ge=0, le=1)
    min_face_share: float = Field(default=0.02, ge=0, le=1, description="smallest face box, share of the image area")
    min_probability: float = Field(default=0.0, ge=0, le=1, description="smallest class probability; below: 'unsure'")
    several_faces: Literal["drop", "largest"] = Field(default="drop", description="what an image with more is worth")
    age_bands: dict[str, Annotated[int, Field(ge=0, le=100)]] = Field(
        default={}, description="deepface reads the axis `age`: class -> its youngest age, the first from 0"
    )
    classifiers: dict[str, Annotated[ZeroShotConfig | NetworkConfig | PeopleConfig, Field(discriminator="kind")]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The classifiers that read, in order."""
        return (self.classifier,) if isinstance(self.classifier, str) else self.classifier

    @model_validator(mode="after")
    def _check(self) -> Self:
        known, ages = ("portraits", "deepface", *self.classifiers), list(self.age_bands.values())
        unknown = [name for name in self.names if name not in known]
        for problem, text in (
            (unknown, f"classifier {unknown} is not known; choose from {known}, or describe it in `classifiers`"),
            (len(known) > len(set(known)), f"classifiers {known} name one twice; choose another name"),
            (len(set(self.names)) < max(1, len(self.names)), f"classifier {self.names}: name each once"),
            (ages and ages != [0, *sorted(set(ages) - {0})], f"age_bands {ages} must rise from 0"),
        ):
            if problem:
                raise ValueError(text)
        return self


class PreferencesConfig(Frozen):
    """Set preferences."""

    n_neutral: int = Field(default=20, ge=1, description="images a neutral prompt")
    n_specific: int = Field(default=4, ge=1, description="images an identity-specific prompt")
    n_retained: int = Field(default=4, ge=1, description="images a prompt of prompts.retained_subjects")
    set_size: int = Field(default=18, ge=1, description="images a set")
    n_sets: int = Field(default=1, ge=1, description="set pairs a prompt")
    seed: int = Field(default=0, ge=0)
    strategy: Literal["balanced", "paper", "pairwise", "mcmc"] = Field(
        default="balanced",
        description="preferred sets: as near the target as the images allow, drawn at random as in the paper, as "
        "balanced but in pairs of one image each, or by the paper's Markov chain with the classifier as judge",
    )
    target_of: Literal["joint", "marginal"] = Field(
        default="joint", description="what comes near: the share of each product of classes, or each axis's alone"
    )
    mcmc_steps: int = Field(default=500, ge=1, description="of a chain at most; it ends when the set cannot be nearer")


class ProbeConfig(Frozen):
    """A look at the population while training: fixed training prompts, fixed seeds, the pipeline's own classifier."""

    every: int = Field(default=50, ge=1, description="steps")
    n_prompts: int = Field(default=8, ge=1, description="neutral training prompts, evenly from all")
    n_images: int = Field(default=16, ge=1, description="a prompt")
    seed: int = Field(default=0, ge=0)
    stop_discrepancy: float | None = Field(
        default=None, gt=0, description="stop as soon as every axis's pooled discrepancy is at most this"
    )
    stop_clip_drop: float | None = Field(
        default=None, gt=0, description="stop when the CLIP score has fallen by more than this share of the base's"
    )


class TrainingConfig(Frozen):
    """Population DPO (Eq. 11) and its rivals."""

    objective: Literal["popalign", "set-dpo", "diffusion-dpo", "diffusion-kto", "cgm-relax", "sft"] = "popalign"
    beta: float | Literal["auto"] = Field(
        default=20.0,
        description="on the mean squared error over C, H, W; 'auto' makes beta * (g - Z) start at order one",
    )
    alpha: float = Field(default=0.5, ge=0, le=1, description="weight of the preferred side in the normaliser")
    normaliser: Literal["batch", "ema", "zero", "anchor"] = Field(
        default="zero",
        description="Z of Eq. 11: the batch's, its moving mean, none, or g on generic training prompts",
    )
    normaliser_decay: float = Field(default=0.9, ge=0, lt=1, description="of 'ema'")
    normaliser_bins: int = Field(default=1, ge=1, description="of 'batch': one Z for each of so many timestep ranges")
    kl_weight: float = Field(default=0.05, ge=0, description="cgm-relax: weight of the divergence from the reference")
    preserve_preferred: bool = Field(
        default=False, description="Diffusion-SDPO: scale the dispreferred gradient so that the preferred error stays"
    )
    retention: float = Field(
        default=0.0,
        ge=0,
        description="weight of the squared distance to the reference under captions that alignment must leave alone: "
        "those that name an identity, and those of prompts.retained_subjects",
    )
    optimizer: Literal["adamw", "adamw-8bit", "adafactor"] = "adamw"
    learning_rate: float = Field(default=1e-4, gt=0)
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="after the warm-up; 'linear' and 'cosine' fall to 0 over the whole run"
    )
    timesteps: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(), description="drawn from these alone: few-step models such as SDXL-Turbo (249, 499, 749, 999)"
    )
    min_timestep: int = Field(
        default=0, ge=0, description="timesteps are drawn from here up: who is in a picture is decided early"
    )
    timestep_sampling: Literal["uniform", "logit_normal"] = "uniform"
    n_steps: int = Field(default=150, ge=1)
    n_warmup_steps: int = Field(default=15, ge=0)
    n_pairs: int = Field(
        default=32, ge=1, description="pairs a step, over all processes; the two of a pair share timestep and noise"
    )
    pairs_per_set: int = Field(default=1, ge=1, description="pairs of one pair of sets that a batch holds together")
    empty_caption_rate: float = Field(default=0.1, ge=0, le=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    lora_rank: int = Field(default=8, ge=0, description="0 trains the UNet's own weights, as trained_weights says")
    lora_targets: tuple[Text, ...] = Field(
        default=(), description="ends of the names of the modules that get an adapter; the attention's if empty"
    )
    trained_weights: Literal["all", "conditioning"] = Field(
        default="all", description="'conditioning': cross-attention and added embedding, where the caption comes in"
    )
    ema_decay: float = Field(default=0.0, ge=0, lt=1, description="of the weights' moving mean; 0 keeps the last ones")
    seed: int = Field(default=0, ge=0)
    checkpoint_every: int = Field(default=25, ge=1, description="steps")
    max_error_ratio: float = Field(
        default=2.0,
        gt=1,
        description="preferred error over the reference's, moving mean: beyond, it diverges",
    )
    on_divergence: Literal["stop", "rollback"] = Field(
        default="stop", description="'rollback': back to the last checkpoint at half the learning rate, three times"
    )
    probe: ProbeConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for problem, text in (
            (
                self.beta != "auto" and not 0 < self.beta < inf,
                f"beta is {self.beta}; give a number above 0, or 'auto'",
            ),
            (
                self.lora_rank > 0 and self.trained_weights != "all",
                f"trained_weights {self.trained_weights!r} is for full training, lora_rank is {self.lora_rank}; "
                "a LoRA adapter has targets of its own: set one of the two",
            ),
            (self.lora_targets and not self.lora_rank, "lora_targets need a lora_rank > 0, which is 0"),
            (
                self.timesteps and (self.min_timestep or self.timestep_sampling != "uniform"),
                f"timesteps {self.timesteps} are the only ones drawn; leave min_timestep and timestep_sampling out",
            ),
            (
                self.normaliser_bins > 1 and (self.objective != "popalign" or self.normaliser != "batch"),
                f"normaliser_bins is {self.normaliser_bins}; bins are for objective 'popalign' with normaliser 'batch'",
            ),
            (
                self.n_pairs % self.pairs_per_set,
                f"n_pairs {self.n_pairs} is no multiple of pairs_per_set {self.pairs_per_set}",
            ),
            (
                self.preserve_preferred and self.objective in ("sft", "cgm-relax"),
                f"preserve_preferred scales a dispreferred side, which {self.objective!r} does not have",
            ),
            (self.beta == "auto" and self.objective == "sft", "beta is 'auto', but 'sft' has none; leave it out"),
        ):
            if problem:
                raise ValueError(text)
        return self


class EvaluationConfig(Frozen):
    """Benchmarks on prompts the preference data never saw."""

    n_neutral: int = Field(default=40, ge=2, description="images a neutral evaluation prompt")
    n_specific: int = Field(default=3, ge=1, description="images an identity-specific evaluation prompt")
    n_generic: int = Field(default=3, ge=1, description="images a generic prompt")
    n_bootstrap: int = Field(default=2000, ge=100)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    seed: int = Field(default=0, ge=0, description="of the sampled evaluation images and of the bootstrap")


class SystemConfig(Frozen):
    """Another way to get the evaluation images, to compare with: what it changes of `model` and `sampling`."""

    sampling: dict[str, Any] = Field(default={}, description="laid over the pipeline's sampling")
    model: dict[str, Any] = Field(default={}, description="laid over the pipeline's model")
    aligned: bool = Field(default=False, description="draw from the model that the pipeline trains")
    images: Text | None = Field(default=None, description="key of images made elsewhere, of `popalign import images`")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.images is not None and (self.sampling or self.model or self.aligned):
            raise ValueError(f"images {self.images!r} are drawn already: leave sampling, model and aligned out")
        if self.aligned and self.model:
            raise ValueError("aligned draws from the trained model: leave model out")
        return self


class PipelineConfig(Frozen):
    """Everything that decides the results of one run."""

    model: ModelConfig = ModelConfig()
    axes: tuple[Axis, ...] = Field(min_length=1)
    prompts: PromptsConfig
    sampling: SamplingConfig = SamplingConfig()
    attributes: AttributesConfig = AttributesConfig()
    preferences: PreferencesConfig = PreferencesConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    systems: dict[SystemName, SystemConfig] = Field(default={}, description="for `popalign compare`, by name")

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [axis.name for axis in self.axes]
        if len(set(names)) != len(names):
            raise ValueError(f"two axes share a name: {names}")
        return self


class RuntimeConfig(Frozen):
    """What may differ between machines without changing a result; never hashed."""

    root: Text = Field(default="artifacts", description="store root: a folder or any fsspec URL")
    device: Text = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
    batch_size: int = Field(
        default=32, ge=1, description="images a batch, at most: sampling takes fewer where memory does not hold them"
    )
    n_threads: int = Field(default=0, ge=0, description="torch threads; 0 takes all cores")
    shard_size: int = Field(default=128, ge=1, description="images a resumable shard")
    scratch: str | None = Field(default=None, description="local folder for building; default beside the root")
    n_processes: int = Field(default=1, ge=1, description="of training; more than 1 goes through `accelerate launch`")
    accelerate_config: str | None = Field(
        default=None, description="for `accelerate launch`: ddp, fsdp2, zero2, or a file of its own"
    )
    micro_pairs: int = Field(default=0, ge=0, description="training pairs a forward and process; 0 takes all at once")
    gradient_checkpointing: bool = Field(default=False, description="less memory for about a third more time")
    compile: bool = Field(default=False, description="torch.compile of the denoiser's repeated blocks")
    channels_last: bool = Field(default=True, description="sampling: memory layout that convolutions are fastest in")
    fuse_qkv: bool = Field(default=False, description="sampling: one projection in place of three")
    offload: bool = Field(default=False, description="sampling: on the GPU only what is at work, for small cards")
    keep_checkpoints: int = Field(default=2, ge=1, description="training checkpoints kept, the newest")
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    log_folder: str | None = Field(
        default=None, description="local folder the trackers write below; default logs/ below a local root, else here"
    )
    runner: Literal["inline", "threads", "processes", "ray", "dask"] = Field(
        default="inline", description="who draws the shards of images"
    )
    n_workers: int = Field(default=1, ge=1, description="of the runner; on one machine, at best one a GPU")
    runner_address: str | None = Field(
        default=None, description="of a running Ray or Dask cluster; None starts one on this machine"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.runner == "inline" and self.n_workers > 1:
            raise ValueError(
                f"n_workers is {self.n_workers}, but runner 'inline' has one; set runner to processes, ray or dask"
            )
        if self.runner == "threads" and self.n_workers > 1 and self.offload:
            raise ValueError("offload moves one model to and fro, which threads would share; set runner to processes")
        if self.runner_address is not None and self.runner not in ("ray", "dask"):
            raise ValueError(
                f"runner_address {self.runner_address!r} is for the runners ray and dask, not {self.runner!r}; "
                "leave it out or change runner"
            )
        return self


def load_config(path: Path) -> PipelineConfig:
    """Read a TOML file; a `preset = "NAME"` line at the top starts from that preset.

    Raises:
        ConfigError: When the file is missing, is not TOML, or does not fit.
    """
    from popalign_core.presets import preset

    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}; give an existing TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}; see README.md for an example") from error
    base = document.pop("preset", None)
    if base is not None:
        document = merge_documents(preset(base).model_dump(exclude_none=True), document)
    return parse_config(document, origin=str(path))


def parse_config(document: dict[str, Any], origin: str = "configuration") -> PipelineConfig:
    """Validate a document.

    Raises:
        ConfigError: With one line for every problem, naming the field and the value.
    """
    try:
        return PipelineConfig.model_validate(document)
    except ValidationError as error:
        problems = [f"  {'.'.join(map(str, item['loc'])) or '(top)'}: {item['msg']}" for item in error.errors()]
        raise ConfigError(f"{origin} does not fit, {len(problems)} problem(s):\n" + "\n".join(problems)) from error


def merge_documents(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """One document laid over another; tables are merged, everything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge_documents(result[key], value) if nested else value
    return result
