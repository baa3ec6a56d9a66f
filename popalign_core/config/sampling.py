"""The model, and how images are sampled from it."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from popalign_core.config.base import Frozen, Text


class LoraConfig(Frozen):
    """One of several LoRAs."""

    path: Text = Field(description="a .safetensors file, or a folder that training or peft wrote")
    scale: float = Field(default=1.0, description="scale at which it is fused")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.scale == 0:
            raise ValueError("scale is 0, which fuses nothing; leave this LoRA out, or give another scale")
        return self


class ModelConfig(Frozen):
    """A text-to-image model: `portraits`, a diffusers folder, a single file, or a hub id with a revision."""

    # What is None or empty by default is not hashed, so that keys made before a field existed stay.

    name: Text = Field(default="portraits", description="'portraits', a folder, a .safetensors file, or a hub id")
    revision: Text | None = Field(default=None, description="hub revision (commit); required for a hub id")
    config: Text | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="folder or hub id with the configurations of a single file; default: those of its family",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="precision in which the model is loaded"
    )
    storage: Literal["float8"] | None = Field(
        default=None, description="sampling: how the denoiser's weights are stored in memory; cast to dtype when used"
    )
    denoiser: Text | None = Field(
        default=None, description="folder or single file of a UNet or transformer that replaces the model's own"
    )
    vae: Text | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="folder of a VAE that replaces the model's own",
    )
    lora: Text | None = Field(
        default=None,
        description="a LoRA, fused into the model: a .safetensors file, or a folder written by training or peft",
    )
    lora_scale: float = Field(default=1.0, description="scale at which the LoRA is fused")
    loras: tuple[LoraConfig, ...] = Field(
        default=(),
        exclude_if=lambda value: not value,
        description="several LoRAs, fused in this order; excludes `lora`",
    )

    @property
    def all_loras(self) -> tuple[LoraConfig, ...]:
        """What is fused in, however it is written."""
        return self.loras if self.lora is None else (LoraConfig(path=self.lora, scale=self.lora_scale),)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.lora_scale == 0:
            raise ValueError("lora_scale is 0, which fuses nothing; leave lora out, or give another scale")
        if self.lora is None and self.lora_scale != 1:
            raise ValueError(f"lora_scale is {self.lora_scale:g}, but there is no lora; give one, or leave it out")
        if self.lora is not None and self.loras:
            raise ValueError("lora and loras both name LoRAs; give all of them in loras")
        return self


class AnnealingConfig(Frozen):
    """Annealed guidance: none above diffusion time `tau2`, full guidance below `tau1` (1 is pure noise)."""

    tau1: float = Field(
        default=0.6, ge=0, le=1, description="diffusion time from which guidance is full; 1 disables annealing"
    )
    tau2: float = Field(default=0.9, ge=0, le=1, description="diffusion time above which there is no guidance")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.tau1 >= self.tau2 and self.tau1 != 1:
            raise ValueError(f"tau1 {self.tau1} must be below tau2 {self.tau2} (or 1); typical values are 0.6 and 0.9")
        return self


class CADSConfig(AnnealingConfig):
    """Condition-annealed sampling (Sadat et al. 2023, arXiv:2310.17347)."""

    noise_scale: float = Field(default=0.25, ge=0, description="s: scale of the noise added to the condition")
    mixing: float = Field(default=1.0, ge=0, le=1, description="psi: weight of the rescaled condition")


class FairDiffusionConfig(Frozen):
    """Fair Diffusion (Friedrich et al. 2023, arXiv:2302.10893): semantic guidance towards a drawn identity."""

    subjects: tuple[Text, ...] = Field(default=(), description="subjects to apply it to; default: every neutral prompt")
    concept: Text = Field(
        default="{} person", description="concept that guidance steers towards; {} is replaced by the class's words"
    )
    scale: float = Field(default=4.0, gt=0, description="strength of the semantic guidance")
    threshold: float = Field(default=0.95, ge=0, lt=1, description="share of each channel that is left unchanged")
    warmup: float = Field(default=0.2, ge=0, lt=1, description="share of the steps before it starts")
    momentum_scale: float = Field(default=0.3, ge=0, le=1, description="weight of the momentum")
    momentum_beta: float = Field(default=0.6, ge=0, lt=1, description="decay of the momentum")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "{}" not in self.concept:
            raise ValueError(f"concept {self.concept!r} has no {{}}; write for example '{{}} person'")
        return self


class SDEditConfig(Frozen):
    """Images to start from in place of noise (SDEdit, Meng et al. 2022, arXiv:2108.01073), such as colour layouts."""

    folder: Text = Field(
        description="folder of images; image i of a prompt starts from file number i in name order, cycling"
    )
    strength: float = Field(default=0.8, gt=0, le=1, description="share of the steps that are run; 1 ignores the image")


_DIFFUSERS_NAMES = {
    "DPMSolverMultistepScheduler": "dpmsolver++",
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler-ancestral",
    "LCMScheduler": "lcm",
    "FlowMatchEulerDiscreteScheduler": "euler",
}


class SamplingConfig(Frozen):
    """How images are sampled."""

    n_steps: int = Field(default=12, ge=1, le=1000, description="sampling steps")
    guidance_scale: float = Field(
        default=2.5,
        ge=1.0,
        description="classifier-free guidance; 1 disables it. FLUX.1-dev takes it as an input, FLUX.1-schnell needs 1",
    )
    guidance_rescale: float = Field(default=0.0, ge=0, le=1, description="phi of rescaled CFG")
    guidance_interval: tuple[float, float] | None = Field(
        default=None, description="noise levels (low, high] at which guidance is applied; SDXL: 0.28 to 5.42"
    )
    dynamic_cfg: AnnealingConfig | None = Field(default=None, description="Dynamic-CFG: guidance is annealed in")
    cads: CADSConfig | None = Field(default=None, description="condition-annealed sampling (CADS)")
    scheduler: Annotated[
        Literal["dpmsolver++", "ddim", "euler", "euler-ancestral", "lcm"],
        BeforeValidator(lambda name: _DIFFUSERS_NAMES.get(name, name) if isinstance(name, str) else name),
    ] = Field(default="dpmsolver++", description="sampler; the diffusers class name is accepted too")
    reuse_interval: int = Field(
        default=1,
        ge=1,
        # 1 is left out of what is hashed: it changes nothing, and no key made before it was there
        exclude_if=lambda interval: interval == 1,
        description="DeepCache: the UNet's deep blocks run every n-th step; 1 disables it, 3 is usual",
    )
    timestep_spacing: Literal["leading", "trailing", "linspace"] | None = Field(
        default=None, description="default: the model's own; SDXL-Lightning needs 'trailing'"
    )
    eta: float = Field(default=0.0, ge=0, le=1, description="noise added at each ddim step")
    width: int = Field(default=64, ge=8, multiple_of=8, description="image width, px")
    height: int = Field(default=64, ge=8, multiple_of=8, description="image height, px")
    seed: int = Field(default=0, ge=0, description="stage seed; each image derives its own from it")
    inject_identity: bool = Field(
        default=False, description="add a random identity to the neutral prompt of each image"
    )
    fair_diffusion: FairDiffusionConfig | None = Field(
        default=None, description="Fair Diffusion: semantic guidance towards a random identity"
    )
    sdedit: SDEditConfig | None = Field(default=None, description="start from images instead of noise (SDEdit)")
    safety_checker: Text | None = Field(
        default=None, description="folder of the diffusers safety checker; flagged images are dropped and counted"
    )
    watermark: bool = Field(default=False, description="embed SDXL's invisible watermark; needs 256 px or more")

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
                f"n_steps is {self.n_steps}; lcm was distilled at 50 timesteps and takes no more; typical are 2 to 8",
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
