"""The model, and how images are sampled from it."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from popalign_core.config.base import Frozen, Text


class LoraConfig(Frozen):
    """One of several LoRAs."""

    path: Text = Field(description="a .safetensors file, or a folder that training or peft wrote")
    scale: float = Field(default=1.0, description="how much of it is fused in")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.scale == 0:
            raise ValueError("scale is 0, which fuses nothing; leave this LoRA out, or give another scale")
        return self


class ModelConfig(Frozen):
    """A text-to-image model: the shipped `portraits`, a diffusers folder, a single file, or a hub id with a revision.

    What is None or empty by default is left out of what is hashed: no key made before it was there changes.
    """

    name: Text = Field(default="portraits", description="'portraits', a folder, a .safetensors file, or a hub id")
    revision: Text | None = Field(default=None, description="hub revision (commit); required for a hub id")
    config: Text | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="folder or hub id that gives a single file its configurations; None is the family's own",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    storage: Literal["float8"] | None = Field(
        default=None, description="sampling: how the denoiser's weights are kept; they are cast to dtype when used"
    )
    denoiser: Text | None = Field(
        default=None, description="folder or single file of a UNet or transformer alone, in place of the model's own"
    )
    vae: Text | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="folder of a VAE alone, in place of the model's own",
    )
    lora: Text | None = Field(
        default=None, description="a .safetensors file, or a folder that training or peft wrote; fused into the model"
    )
    lora_scale: float = Field(default=1.0, description="how much of the LoRA is fused in")
    loras: tuple[LoraConfig, ...] = Field(
        default=(), exclude_if=lambda value: not value, description="several LoRAs, fused in this order; leave lora out"
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
    """Images to start from in place of noise (SDEdit, Meng et al. 2022, arXiv:2108.01073), such as colour layouts."""

    folder: Text = Field(description="of images; image i of a prompt starts from number i, by name, over and over")
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
    """How images are sampled."""

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
    watermark: bool = Field(default=False, description="SDXL's invisible watermark; needs 256 px")

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
