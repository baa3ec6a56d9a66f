"""Training: objective, weights, optimiser, what is watched."""

from math import inf
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from popalign_core.config.base import Frozen, Text


class ProbeConfig(Frozen):
    """Measures the population during training: fixed training prompts, fixed seeds, the pipeline's own classifier."""

    every: int = Field(default=50, ge=1, description="steps between two measurements")
    n_prompts: int = Field(default=8, ge=1, description="number of neutral training prompts, evenly spaced")
    n_images: int = Field(default=16, ge=1, description="images per prompt")
    seed: int = Field(default=0, ge=0, description="seed of the images")
    stop_discrepancy: float | None = Field(
        default=None, gt=0, description="stop once the pooled discrepancy of every axis is at most this"
    )
    stop_clip_drop: float | None = Field(
        default=None, gt=0, description="stop when the CLIP score falls by more than this share of the base model's"
    )


class PopulationConfig(Frozen):
    """What a round samples, and how the classes of its images become advantages."""

    n_images: int = Field(default=16, ge=2, description="sampled for each neutral training prompt in each round")
    round_batch: int = Field(
        default=16,
        ge=1,
        description="images a forward while a round samples and reads: fixed here and not in runtime, since an image "
        "at the border of two classes may be read otherwise in a batch of another shape",
    )
    advantage: Literal["log-ratio", "leave-one-out"] = Field(
        default="log-ratio",
        description="log of target over smoothed share, or the gradient of the squared discrepancy, free of bias",
    )
    target_of: Literal["marginal", "joint"] = Field(
        default="marginal", description="what comes near the target: each axis's classes, or their products"
    )
    clip: float = Field(default=2.0, gt=0, description="of a log-ratio, both ways; of objective 'ratio-matching' too")
    smoothing: float = Field(default=0.5, gt=0, description="images added to each class before shares are taken")
    faceless: float = Field(default=-0.5, le=0, description="advantage of an image in which nobody can be read")


class TrainingConfig(Frozen):
    """Population DPO (Eq. 11), its baselines, and population policy optimisation on images of the policy's own."""

    objective: Literal[
        "popalign",
        "set-dpo",
        "diffusion-dpo",
        "diffusion-kto",
        "cgm-relax",
        "sft",
        "ratio-matching",
        "population-policy",
        "dgpo",
    ] = Field(default="popalign", description="training objective; 'popalign' is Eq. 11, 'set-dpo' Eq. 10")
    rounds: int = Field(
        default=1,
        ge=1,
        # 1 is left out of what is hashed: it changes nothing, and no key made before it was there
        exclude_if=lambda n: n == 1,
        description="in each the policy samples its training prompts anew, and trains for n_steps on what it sampled",
    )
    population: PopulationConfig = Field(
        default=PopulationConfig(),
        exclude_if=PopulationConfig().__eq__,
        description="of rounds and of the objectives 'population-policy', 'dgpo' and 'ratio-matching'",
    )
    beta: float | Literal["auto"] = Field(
        default=20.0,
        description="divergence penalty on errors averaged over C, H, W; 'auto' starts beta * (g - Z) at order one",
    )
    alpha: float = Field(default=0.5, ge=0, le=1, description="weight of the preferred side in the normaliser")
    normaliser: Literal["batch", "ema", "zero", "anchor"] = Field(
        default="zero",
        description="Z of Eq. 11: batch mean, moving mean, zero, or g on generic training prompts ('anchor')",
    )
    normaliser_decay: float = Field(default=0.9, ge=0, lt=1, description="'ema': decay of the moving mean")
    normaliser_bins: int = Field(default=1, ge=1, description="'batch': number of timestep ranges, each with its own Z")
    kl_weight: float = Field(default=0.05, ge=0, description="cgm-relax: weight of the divergence from the reference")
    preserve_preferred: bool = Field(
        default=False,
        description="Diffusion-SDPO: scale the dispreferred gradient so that the preferred error does not grow",
    )
    retention: float = Field(
        default=0.0,
        ge=0,
        description="weight of the squared distance to the reference under captions that alignment must not change: "
        "captions that name an identity, and prompts.retained_subjects",
    )
    optimizer: Literal["adamw", "adamw-8bit", "adafactor"] = Field(
        default="adamw", description="optimizer; 'adamw-8bit' needs the extra `bnb`"
    )
    learning_rate: float = Field(default=1e-4, gt=0, description="learning rate after the warm-up")
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        description="schedule after the warm-up; 'linear' and 'cosine' decay to 0 over the run, all its rounds",
    )
    timesteps: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(),
        description="train at these timesteps only, for few-step models such as SDXL-Turbo (249, 499, 749, 999)",
    )
    zero_terminal_snr: bool = Field(
        default=False,
        exclude_if=lambda is_on: not is_on,
        description="make the last timestep pure noise (arXiv:2305.08891), as SDXL-Turbo samples it",
    )
    min_timestep: int = Field(
        default=0, ge=0, description="lowest timestep that is trained; identity is decided at high noise"
    )
    timestep_sampling: Literal["uniform", "logit_normal"] = Field(
        default="uniform", description="distribution of training timesteps"
    )
    n_steps: int = Field(default=150, ge=1, description="optimizer steps, of each round")
    n_warmup_steps: int = Field(default=15, ge=0, description="steps of linear warm-up")
    n_pairs: int = Field(
        default=32,
        ge=1,
        description="pairs per step, over all processes; the two images of a pair share timestep and noise",
    )
    pairs_per_set: int = Field(
        default=1,
        ge=1,
        description="pairs from the same set pair that stay together in a batch; of 'population-policy' and 'dgpo' "
        "half the images of a prompt, which all share timestep and noise",
    )
    empty_caption_rate: float = Field(default=0.1, ge=0, le=1, description="share of captions replaced by an empty one")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradient clipping")
    weight_decay: float = Field(default=0.0, ge=0, description="weight decay")
    lora_rank: int = Field(
        default=8,
        ge=0,
        description="rank of the LoRA adapter; 0 trains the denoiser's own weights, see trained_weights",
    )
    lora_targets: tuple[Text, ...] = Field(
        default=(), description="name suffixes of the modules that get an adapter; default: the attention layers"
    )
    trained_weights: Literal["all", "conditioning"] = Field(
        default="all",
        description="full training: all weights, or 'conditioning', the cross-attention and added embedding",
    )
    ema_decay: float = Field(
        default=0.0, ge=0, lt=1, description="decay of the moving average of the weights; 0 disables it"
    )
    seed: int = Field(default=0, ge=0, description="seed of batches, timesteps and noise")
    checkpoint_every: int = Field(default=25, ge=1, description="steps between two checkpoints")
    max_error_ratio: float = Field(
        default=2.0,
        gt=1,
        description="divergence: largest ratio of the preferred error to the reference's, as a moving mean",
    )
    on_divergence: Literal["stop", "rollback"] = Field(
        default="stop",
        description="'rollback' returns to the last checkpoint at half the learning rate, up to three times",
    )
    probe: ProbeConfig | None = Field(default=None, description="measure the population during training")

    @property
    def uses_anchors(self) -> bool:
        """Whether Z comes from retained images of generic prompts."""
        return self.objective == "popalign" and self.normaliser == "anchor"

    @property
    def has_advantages(self) -> bool:
        """Whether images are weighed by their advantage among all that the policy sampled for their prompt."""
        return self.objective in ("population-policy", "dgpo")

    @property
    def is_on_policy(self) -> bool:
        """Whether it trains on images that the policy itself samples, in rounds."""
        return self.rounds > 1 or self.has_advantages

    @model_validator(mode="after")
    def _check(self) -> Self:
        no_sides = self.has_advantages or self.objective in ("sft", "cgm-relax")
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
                f"n_pairs {self.n_pairs} is not a multiple of pairs_per_set {self.pairs_per_set}",
            ),
            (
                self.preserve_preferred and no_sides,
                f"preserve_preferred scales a dispreferred side, which {self.objective!r} does not have",
            ),
            (self.beta == "auto" and self.objective == "sft", "beta is 'auto', but 'sft' has none; leave it out"),
            *self._problems_of_rounds(),
        ):
            if problem:
                raise ValueError(text)
        return self

    def _problems_of_rounds(self) -> tuple[tuple[bool, str], ...]:
        group, n_images = 2 * self.pairs_per_set, self.population.n_images
        return (
            (
                self.rounds > 1 and self.objective in ("sft", "cgm-relax", "ratio-matching"),
                f"rounds is {self.rounds}, but {self.objective!r} learns from the base model's images alone; set "
                "rounds to 1, or choose another objective",
            ),
            (
                self.rounds > 1 and self.uses_anchors,
                f"normaliser is 'anchor', which compares with the base model, and from the second of {self.rounds} "
                "rounds on the policy is compared with itself; choose batch, ema or zero",
            ),
            (
                self.has_advantages and group > n_images,
                f"pairs_per_set {self.pairs_per_set} takes {group} images of a prompt, and a round samples "
                f"population.n_images {n_images}; lower the one or raise the other",
            ),
            (
                self.beta == "auto" and (self.has_advantages or self.objective == "ratio-matching"),
                f"beta is 'auto', which is found by preferred and dispreferred sides, and {self.objective!r} has a "
                "scale of its own; give a number",
            ),
        )
