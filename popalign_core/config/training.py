"""Training: objective, weights, optimiser, what is watched."""

from math import inf
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from popalign_core.config.base import Frozen, Text


class ProbeConfig(Frozen):
    """Measuring the population while training: fixed training prompts, fixed seeds, the pipeline's own classifier."""

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


class PopulationConfig(Frozen):
    """What a round samples, and how the classes of its images become advantages."""

    n_images: int = Field(default=16, ge=2, description="sampled for each neutral training prompt in each round")
    batch_size: int = Field(
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
    ] = "popalign"
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
        description="on the mean squared error over C, H, W; 'auto' makes beta * (g - Z) start at order one",
    )
    alpha: float = Field(default=0.5, ge=0, le=1, description="weight of the preferred side in the normaliser")
    normaliser: Literal["batch", "ema", "zero", "anchor"] = Field(
        default="zero",
        description="Z of Eq. 11: the batch's, its moving mean, none, or g on generic training prompts",
    )
    normaliser_decay: float = Field(default=0.9, ge=0, lt=1, description="of 'ema'")
    normaliser_bins: int = Field(default=1, ge=1, description="of 'batch': number of timestep ranges with a Z each")
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
        default="constant",
        description="after the warm-up; 'linear' and 'cosine' fall to 0 over the whole run, all rounds of it",
    )
    timesteps: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(), description="drawn from these alone: few-step models such as SDXL-Turbo (249, 499, 749, 999)"
    )
    zero_terminal_snr: bool = Field(
        default=False,
        exclude_if=lambda is_on: not is_on,
        description="the last timestep is pure noise (arXiv:2305.08891), as SDXL-Turbo samples it; diffusion models",
    )
    min_timestep: int = Field(
        default=0, ge=0, description="the lowest timestep that is trained: who is in an image is decided at high noise"
    )
    timestep_sampling: Literal["uniform", "logit_normal"] = "uniform"
    n_steps: int = Field(default=150, ge=1, description="of a round")
    n_warmup_steps: int = Field(default=15, ge=0)
    n_pairs: int = Field(
        default=32, ge=1, description="pairs a step, over all processes; the two of a pair share timestep and noise"
    )
    pairs_per_set: int = Field(
        default=1,
        ge=1,
        description="pairs of one pair of sets that a batch holds together; of 'population-policy' and 'dgpo' half the "
        "images of a prompt, which all share timestep and noise",
    )
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
                f"n_pairs {self.n_pairs} is no multiple of pairs_per_set {self.pairs_per_set}",
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
