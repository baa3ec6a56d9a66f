"""Tiny random pipelines of the model families in the real diffusers format, with the schedulers that they have there.

64 px, 8 x 8 latents, captions of 16 tokens.
"""

import string
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
WIDTH = 32
"""Of the text encoders and of the transformer."""


def make_ddim() -> DDIMScheduler:
    """SDXL's noise schedule with velocity prediction."""
    return DDIMScheduler(**BETAS, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False)


def make_sdxl(scheduler: Any) -> StableDiffusionXLPipeline:
    """Two CLIP text encoders, `text_time` UNet, tiny VAE."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer, encoder = _make_clip(projected=False)
        tokenizer_2, encoder_2 = _make_clip(projected=True)
        unet = _make_unet(
            cross_attention_dim=2 * WIDTH,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=WIDTH + 6 * 8,
        )
        vae = AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
            latent_channels=4,
            scaling_factor=0.5,
        )
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=encoder,
        text_encoder_2=encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def make_original_sdxl() -> StableDiffusionXLPipeline:
    """SDXL as single files hold it: a KL VAE, and text encoders that their widths tell apart."""
    pipeline = make_sdxl(EulerDiscreteScheduler(**BETAS, timestep_spacing="leading"))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        tokenizer_2, encoder_2 = _make_clip(projected=True, width=2 * WIDTH)
        unet = _make_unet(
            cross_attention_dim=3 * WIDTH,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=2 * WIDTH + 6 * 8,
        )
        vae = _make_vae(latent_channels=4)
    pipeline.register_modules(text_encoder_2=encoder_2, tokenizer_2=tokenizer_2, unet=unet, vae=vae)
    return pipeline


def make_sd15() -> StableDiffusionPipeline:
    """One CLIP text encoder, a UNet that reads no pooled embedding, no safety checker."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer, encoder = _make_clip(projected=False)
        unet = _make_unet(cross_attention_dim=WIDTH)
        vae = _make_vae(latent_channels=4)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=PNDMScheduler(**BETAS, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def make_sd3(*, with_t5: bool = True) -> StableDiffusion3Pipeline:
    """Two CLIP text encoders and a T5, transformer on patches of 2 x 2, 16-channel VAE with a shift."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer, encoder = _make_clip(projected=True)
        tokenizer_2, encoder_2 = _make_clip(projected=True)
        tokenizer_3, encoder_3 = _make_t5(2 * WIDTH) if with_t5 else (None, None)
        transformer = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=WIDTH // 2,
            caption_projection_dim=WIDTH,
            joint_attention_dim=2 * WIDTH,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=16,
        )
        vae = _make_vae(
            latent_channels=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    return StableDiffusion3Pipeline(
        vae=vae,
        text_encoder=encoder,
        text_encoder_2=encoder_2,
        text_encoder_3=encoder_3,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        tokenizer_3=tokenizer_3,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def make_flux(scheduler: Any, *, guidance_embeds: bool) -> FluxPipeline:
    """A CLIP for the pooled state, a T5, transformer on packed patches of 2 x 2, 16-channel VAE with a shift."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer, encoder = _make_clip(projected=False)
        tokenizer_2, encoder_2 = _make_t5(2 * WIDTH)
        transformer = FluxTransformer2DModel(
            in_channels=64,
            num_layers=2,
            num_single_layers=1,
            num_attention_heads=2,
            attention_head_dim=WIDTH // 2,
            joint_attention_dim=2 * WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        )
        vae = _make_vae(
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    return FluxPipeline(
        vae=vae,
        text_encoder=encoder,
        text_encoder_2=encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        transformer=transformer,
        scheduler=scheduler,
    )


MODELS: dict[str, Callable[[], Any]] = {
    "sdxl": lambda: make_sdxl(EulerDiscreteScheduler(**BETAS, timestep_spacing="leading")),
    "sdxl-v": lambda: make_sdxl(make_ddim()),
    "sdxl-turbo": lambda: make_sdxl(EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing")),
    "sd15": make_sd15,
    "sd3": make_sd3,
    "sd3-without-t5": lambda: make_sd3(with_t5=False),
    "flux-dev": lambda: make_flux(
        FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True), guidance_embeds=True
    ),
    "flux-schnell": lambda: make_flux(FlowMatchEulerDiscreteScheduler(shift=1.0), guidance_embeds=False),
}


def _make_unet(**options: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 1),
        **options,
    )


def _make_vae(**options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        **options,
    )


def _make_clip(*, projected: bool, width: int = WIDTH) -> tuple[CLIPTokenizer, Any]:
    letters = string.ascii_lowercase
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], model_max_length=16
    )
    config = CLIPTextConfig(
        vocab_size=len(pieces),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=width,
        bos_token_id=len(pieces) - 2,
        eos_token_id=len(pieces) - 1,
        pad_token_id=len(pieces) - 1,
    )
    return tokenizer, (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def _make_t5(width: int) -> tuple[T5Tokenizer, T5EncoderModel]:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in string.ascii_lowercase]
    config = T5Config(vocab_size=len(pieces), d_model=width, d_ff=32, d_kv=8, num_layers=1, num_heads=2)
    return T5Tokenizer(vocab=pieces, extra_ids=0), T5EncoderModel(config).eval()
