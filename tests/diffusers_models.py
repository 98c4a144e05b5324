"""Tiny models with random weights in the folders that `diffusers` saves and the hub holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

UNET: dict[str, Any] = {
    "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
    "attention_head_dim": 8,
}  # fmt: skip
DECODER: dict[str, Any] = {
    "block_out_channels": (8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 4,
}


def save_sd_x4(folder: Path) -> Path:
    """A StableDiffusionUpscalePipeline."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        DDPMScheduler,
        StableDiffusionUpscalePipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = [*map(chr, range(97, 123)), *(f"{chr(code)}</w>" for code in range(97, 123))]
    words = [*letters, "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=[])
    tokenizer.model_max_length = 16
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=16, num_attention_heads=2,
            num_hidden_layers=1, max_position_embeddings=16, bos_token_id=len(words) - 2,
            eos_token_id=len(words) - 1, pad_token_id=len(words) - 1,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        in_channels=7,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        num_class_embeds=100,
        **UNET,
    )
    vae = AutoencoderKL(latent_channels=4, scaling_factor=0.08333, **DECODER)
    StableDiffusionUpscalePipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        low_res_scheduler=DDPMScheduler(),
        scheduler=DDIMScheduler(prediction_type="v_prediction"),
        max_noise_level=90,
    ).save_pretrained(folder)
    return folder


def save_ldm(folder: Path) -> Path:
    """An LDMSuperResolutionPipeline whose own scheduler draws noise at every step."""
    from diffusers import (
        EulerAncestralDiscreteScheduler,
        LDMSuperResolutionPipeline,
        UNet2DModel,
        VQModel,
    )

    torch.manual_seed(0)
    unet = UNet2DModel(
        in_channels=6,
        out_channels=3,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **UNET,
    )
    vqvae = VQModel(num_vq_embeddings=16, **DECODER)
    LDMSuperResolutionPipeline(
        vqvae=vqvae, unet=unet, scheduler=EulerAncestralDiscreteScheduler()
    ).save_pretrained(folder)
    return folder
