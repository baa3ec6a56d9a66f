"""Presets: whole configurations under a name."""

from collections.abc import Callable
from typing import Any

from popalign_core.config.attributes import AttributesConfig
from popalign_core.config.axes import DEEPFACE_RACE, GENDER, PORTRAIT_RACE
from popalign_core.config.evaluation import (
    AestheticsConfig,
    ClipScoreConfig,
    EvaluationConfig,
    HPSConfig,
    ImageRewardConfig,
    InceptionConfig,
    PickScoreConfig,
    ScorerConfig,
)
from popalign_core.config.pipeline import PipelineConfig, PreferencesConfig, SystemConfig
from popalign_core.config.prompts import PromptsConfig
from popalign_core.config.sampling import ModelConfig, SamplingConfig
from popalign_core.config.spelling import choose_from
from popalign_core.config.training import TrainingConfig
from popalign_core.errors import ConfigError
from popalign_core.portraits.occupations import EVAL_OCCUPATIONS, OCCUPATIONS, THINGS

# The usual scorers under their files' usual names; `popalign doctor` says how to get each.
_CLIP_L14 = "scorers/clip-vit-large-patch14"
PUBLIC_SCORERS: dict[str, ScorerConfig] = {
    "clip_score": ClipScoreConfig(kind="clip", path=_CLIP_L14),
    "hps_v2.0": HPSConfig(kind="hps", path="scorers/HPS_v2_compressed.pt", tokenizer=_CLIP_L14),
    "hps_v2.1": HPSConfig(kind="hps", path="scorers/HPS_v2.1_compressed.pt", tokenizer=_CLIP_L14),
    # Published with the tokenizer and the preprocessing of another CLIP, the same as this one's.
    "pick_score": PickScoreConfig(kind="pick-score", path="scorers/PickScore_v1", processor=_CLIP_L14),
    "aesthetics": AestheticsConfig(kind="aesthetics", path="scorers/sac+logos+ava1-l14-linearMSE.pth", clip=_CLIP_L14),
    "image_reward": ImageRewardConfig(
        kind="image-reward", path="scorers/ImageReward.pt", tokenizer="scorers/bert-base-uncased"
    ),
    "inception": InceptionConfig(kind="inception", path="scorers/inception-2015-12-05.pt"),
}

_TRAIN_OCCUPATIONS = tuple(o.name for o in OCCUPATIONS if o.name not in EVAL_OCCUPATIONS)
_TRAIN_THINGS = THINGS[::3]
_EVAL_THINGS = tuple(name for name in THINGS if name not in _TRAIN_THINGS)


def _portraits() -> PipelineConfig:
    """The embedded model: the whole pipeline in minutes on two cores."""
    return PipelineConfig(
        axes=(GENDER, PORTRAIT_RACE),
        prompts=PromptsConfig(
            train_subjects=_TRAIN_OCCUPATIONS,
            eval_subjects=EVAL_OCCUPATIONS,
            generic_subjects=_EVAL_THINGS,
            retained_subjects=_TRAIN_THINGS,
        ),
        # Little guidance: more of it makes a lean of .95 a certainty.
        sampling=SamplingConfig(guidance_scale=1.6),
        # Measured on this model: without retention race recall falls by 15 points; below timestep 300 who is in the
        # image is settled; of all objectives, each at its best beta, this one comes nearest the target on every seed
        # (the table in docs/figures.md).
        training=TrainingConfig(
            objective="diffusion-kto",
            beta=80,
            lora_rank=0,
            retention=15,
            min_timestep=300,
            trained_weights="conditioning",
            learning_rate=1.2e-3,
            learning_rate_schedule="linear",
            n_steps=250,
        ),
        evaluation=EvaluationConfig(n_generic=5),
        # Each objective at its best beta of those tried (the table in docs/figures.md).
        systems={
            "dpo": SystemConfig(training={"objective": "diffusion-dpo", "beta": 40}),
            "popalign": SystemConfig(training={"objective": "popalign", "beta": 20}),
            "dpo+popalign": SystemConfig(training={"objective": "popalign", "beta": 20}, start="dpo"),
        },
    )


def _smoke() -> PipelineConfig:
    """The same stages on a handful of prompts and steps, for tests; its figures mean nothing."""
    return PipelineConfig(
        axes=(GENDER, PORTRAIT_RACE),
        prompts=PromptsConfig(
            train_subjects=("doctor", "nurse", "astronaut"),
            eval_subjects=("judge", "dancer"),
            generic_subjects=("tree", "cat", "car"),
            retained_subjects=("moon",),
        ),
        sampling=SamplingConfig(n_steps=4),
        preferences=PreferencesConfig(n_neutral=6, n_specific=2, set_size=4, n_sets=1),
        training=TrainingConfig(lora_rank=0, n_steps=4, n_warmup_steps=1, n_pairs=4, checkpoint_every=2, retention=1),
        evaluation=EvaluationConfig(n_neutral=6, n_specific=1, n_generic=1, n_bootstrap=200),
    )


def _sdxl() -> PipelineConfig:
    """The paper's recipe for SDXL (Table 1): needs its weights, DeepFace's weights and a GPU."""
    return PipelineConfig(
        model=ModelConfig(
            name="stabilityai/stable-diffusion-xl-base-1.0",
            revision="462165984030d82259a11f4367a4eed129e94a7b",
            dtype="bfloat16",
        ),
        axes=(GENDER, DEEPFACE_RACE),
        prompts=PromptsConfig(
            carrier="best quality, a realistic photo of {}",
            train_lists=("occupations-train",),
            eval_lists=("occupations-eval",),
            generic_subjects=THINGS,
        ),
        sampling=SamplingConfig(n_steps=50, guidance_scale=6.5, scheduler="euler", width=1024, height=1024),
        attributes=AttributesConfig(classifier="deepface", detector_backend="retinaface"),
        preferences=PreferencesConfig(n_neutral=100, n_specific=10, set_size=60, n_sets=1),
        training=TrainingConfig(
            lora_rank=0,
            normaliser="batch",
            beta=5000,
            learning_rate=5e-7,
            n_steps=750,
            n_warmup_steps=200,
            n_pairs=4,
            empty_caption_rate=0.2,
        ),
        evaluation=EvaluationConfig(n_neutral=100, n_specific=10, scorers=PUBLIC_SCORERS),
    )


def _sdxl_trial() -> PipelineConfig:
    """The recipe of `sdxl` cut to a few GPU hours: whether all of it works on the real model, and which way it goes.

    Images: 24 training subjects x (24 neutral + 12 identities x 2) = 1,152; for each of two systems 16 evaluation
    subjects x (40 + 12 x 1) + 20 things = 852; in all 2,856, where `sdxl` has 110,360. Training takes a third of its
    steps at three times its rate: the rates of all steps, warm-up included, add up to as much (3.25e-4).

    Hours on an A100 of 80 GB (312 TFLOP/s, of which .4 are reached: 125), at 6 TFLOP a forward of the UNet:
        sampling: 30 steps x 2 for guidance x 6 = 360 TFLOP an image; 2,856 x 360 / 125 = 8,225 s = 2.3 h
        training: 250 steps x 4 pairs = 1,000 pairs; at the published .24 pairs/s 1.2 h; by FLOP .13 h (two images a
            pair, each 6 forward, 12 backward, 6 again for gradient checkpointing, 6 of the reference: 60 TFLOP)
        faces: 2,816 images of people at 1.1 s (two heads, two cores) = .8 h of processor; a GPU is faster
    In all 3.2 to 4.3 h. `sdxl` at 50 steps: 110,360 x 600 / 125 = 147 h, and 3,000 pairs, 3.5 h.

    Memory of training: weights, gradients and AdamW's two moments in float32, 2.57e9 x 16 bytes = 41 GB, the frozen
    reference in bfloat16 5 GB, and activations: set `runtime.gradient_checkpointing=true runtime.micro_pairs=1`.
    Disk: 2,856 x 1024^2 px x 2 bytes = 6 GB of images; two checkpoints of 31 GB while it trains; 14 GB of models.
    """
    sdxl = _sdxl()
    return sdxl.model_copy(
        update={
            "prompts": sdxl.prompts.model_copy(
                update={
                    "train_lists": (),
                    "eval_lists": (),
                    "train_subjects": _TRAIN_OCCUPATIONS,
                    "eval_subjects": EVAL_OCCUPATIONS,
                    "generic_subjects": _TRAIN_THINGS,
                }
            ),
            "sampling": sdxl.sampling.model_copy(update={"n_steps": 30}),
            "preferences": sdxl.preferences.model_copy(update={"n_neutral": 24, "n_specific": 2, "set_size": 12}),
            "training": sdxl.training.model_copy(
                update={"learning_rate": 1.5e-6, "n_steps": 250, "n_warmup_steps": 67, "checkpoint_every": 125}
            ),
            "evaluation": sdxl.evaluation.model_copy(update={"n_neutral": 40, "n_specific": 1, "n_generic": 1}),
        }
    )


def _published_training(**changes: Any) -> TrainingConfig:
    """Diffusion-DPO's published recipe (Wallace et al. 2023, arXiv:2311.12908, section 5.1), with changes.

    A batch of 2048 pairs wants `runtime.micro_pairs`, as many as the device holds, and many processes; a smaller one
    wants `learning_rate` 1e-8 times `n_pairs`.
    """
    n_pairs = 2048
    recipe = {
        "objective": "diffusion-dpo",
        "lora_rank": 0,
        "beta": 5000,
        "optimizer": "adafactor",
        "learning_rate": 1e-8 * n_pairs,
        "n_pairs": n_pairs,
        "n_steps": 2000,
        "n_warmup_steps": 200,
        "empty_caption_rate": 0.2,
    }
    return TrainingConfig.model_validate(recipe | changes)


def _sdxl_dpo() -> PipelineConfig:
    """Pairwise Diffusion-DPO for SDXL, by its own recipe: the paper's baseline. Trained on people's comparisons with
    `popalign train` it is the base of its SDXL-DPO rows.

    PopAlign from there is the preset `sdxl` with `model.name` set to the folder that this one's training wrote; from
    the public checkpoint, which is a UNet alone, it is `sdxl` with `model.denoiser` set to its folder: `hf download
    mhdang/dpo-sdxl-text2image-v1 --include 'unet/*' --local-dir dpo-sdxl` leaves it in dpo-sdxl/unet.
    """
    return _sdxl().model_copy(update={"training": _published_training()})


def _four_step_training() -> TrainingConfig:
    """At the four timesteps alone that a distilled model samples at, and not for guidance, which it does without."""
    return _published_training(
        objective="popalign", normaliser="batch", timesteps=(249, 499, 749, 999), empty_caption_rate=0
    )


def _sdxl_turbo() -> PipelineConfig:
    """PopAlign on SDXL-Turbo: four steps without guidance, trained at the four timesteps that it samples at.

    Of these the last is pure noise, as in sampling: the public Diffusion-DPO script does the same with `--is_turbo`.
    """
    sdxl = _sdxl()
    return sdxl.model_copy(
        update={
            "model": sdxl.model.model_copy(
                update={"name": "stabilityai/sdxl-turbo", "revision": "71153311d3dbb46851df1931d3ca6e939de83304"}
            ),
            "sampling": sdxl.sampling.model_copy(
                update={"n_steps": 4, "guidance_scale": 1.0, "width": 512, "height": 512}
            ),
            "training": _four_step_training().model_copy(update={"zero_terminal_snr": True}),
        }
    )


def _sdxl_lightning() -> PipelineConfig:
    """PopAlign on SDXL-Lightning (Lin et al. 2024, arXiv:2402.13929): SDXL with the four-step adapter fused in.

    `hf download ByteDance/SDXL-Lightning sdxl_lightning_4step_lora.safetensors --local-dir loras` gets the adapter.
    """
    sdxl = _sdxl()
    return sdxl.model_copy(
        update={
            "model": sdxl.model.model_copy(update={"lora": "loras/sdxl_lightning_4step_lora.safetensors"}),
            "sampling": sdxl.sampling.model_copy(
                update={"n_steps": 4, "guidance_scale": 1.0, "timestep_spacing": "trailing"}
            ),
            "training": _four_step_training(),
        }
    )


def _sd15() -> PipelineConfig:
    """PopAlign on Stable Diffusion 1.5."""
    sdxl = _sdxl()
    return sdxl.model_copy(
        update={
            "model": sdxl.model.model_copy(
                update={
                    "name": "stable-diffusion-v1-5/stable-diffusion-v1-5",
                    "revision": "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
                }
            ),
            "sampling": sdxl.sampling.model_copy(update={"guidance_scale": 7.5, "width": 512, "height": 512}),
            "training": _published_training(
                objective="popalign", normaliser="batch", optimizer="adamw", n_warmup_steps=500
            ),
        }
    )


PRESETS: dict[str, Callable[[], PipelineConfig]] = {
    "portraits": _portraits,
    "smoke": _smoke,
    "sdxl": _sdxl,
    "sdxl-trial": _sdxl_trial,
    "sdxl-dpo": _sdxl_dpo,
    "sdxl-turbo": _sdxl_turbo,
    "sdxl-lightning": _sdxl_lightning,
    "sd15": _sd15,
}


def preset(name: str) -> PipelineConfig:
    """The configuration of a preset.

    Raises:
        ConfigError: For an unknown name.
    """
    if name not in list(PRESETS):  # a file may hold anything under this name, a table too
        known = choose_from(name, PRESETS)
        raise ConfigError(f"unknown preset {name!r}; {known}, or give a TOML or .json file with --config")
    return PRESETS[name]()


def preset_name(config: PipelineConfig) -> str:
    """The preset that a configuration is, unchanged; '' when it is none."""
    return next((name for name, make in PRESETS.items() if make() == config), "")
