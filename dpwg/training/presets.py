"""Presets: the sizes and the settings of a whole family of models, by name.

`faces-128` is what ships of drawn faces, `photos-128` of photographs. The 256-pixel ones are sized
after the paper's family: 256 codes a scale and about 350 M parameters, captions read by CLIP or T5,
and the last doublings by a public super-resolution model that diffusers runs. They were never
trained at full size here, and nothing in them was tuned. What protects the records (noise, clip
norm, batch, steps, delta) is in no preset: that is each run's own plan.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from dpwg.config import MINILM, ModelConfig, SuperResolutionConfig, TokenizerConfig
from dpwg.method.captions import TextEncoder
from dpwg.method.tokenizer import SpectralTokenizer
from dpwg.method.transformer import WaveletGPT
from dpwg.training.private import Finetuning
from dpwg.training.public_model import Pretraining
from dpwg.training.tokenizer import TokenizerTraining
from dpwg.training.upsampler import SuperResolutionTraining
from dpwg.upsampling.upsamplers import DEFAULT_UPSAMPLER

C = TypeVar("C", TokenizerConfig, ModelConfig, SuperResolutionConfig)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What each part is, and how it is trained.

    `text_encoder` and `upsampler` are public parts by their names, the upsampler for images of the
    tokenizer's size; `superresolution` is this project's own model for the same step. Raises
    ValueError where the parts do not fit each other.
    """

    name: str
    tokenizer: TokenizerConfig
    model: ModelConfig
    superresolution: SuperResolutionConfig
    text_encoder: str
    upsampler: str
    tokenizer_training: TokenizerTraining
    superresolution_training: SuperResolutionTraining
    pretraining: Pretraining
    finetuning: Finetuning

    def __post_init__(self) -> None:
        codes = ModelConfig.for_tokenizer(self.tokenizer)
        for name in ("codebook_sizes", "code_widths", "positions", "codes"):
            if (own := getattr(self.model, name)) != (given := getattr(codes, name)):
                raise ValueError(
                    f"Expected the model's {name}={own} to be the tokenizer's {given}."
                )
        if (size := self.superresolution.coarse_size) != self.tokenizer.coarse_size:
            raise ValueError(
                f"Expected the super-resolution model's coarse_size={size} to be the tokenizer's "
                f"{self.tokenizer.coarse_size}."
            )

    @property
    def image_size(self) -> int:
        """The side of the full images."""
        return self.superresolution.coarse_size << self.superresolution.levels

    def new_model(self, tokenizer: SpectralTokenizer, encoder: TextEncoder) -> WaveletGPT:
        """An untrained WaveletGPT of this size, for this tokenizer's codes and this encoder.

        Raises ValueError for a tokenizer of other images or other positions.
        """
        codes = ModelConfig.for_tokenizer(tokenizer.config)
        shape = (tokenizer.config.coarse_size, codes.positions, codes.codes, codes.scales)
        own = self.model
        if shape != (self.tokenizer.coarse_size, own.positions, own.codes, own.scales):
            raise ValueError(
                f"Expected a tokenizer of the preset {self.name!r}, found one of {shape[0]} pixels "
                f"with {shape[3]} scales of {shape[1]} x {shape[2]} codes; make it with `python -m "
                f"dpwg tokenizer --preset {self.name} --out FOLDER`, and pass --tokenizer FOLDER."
            )
        sizes = _sizes(own) | {"text_width": encoder.width, "text_tokens": encoder.max_tokens}
        return WaveletGPT.for_tokenizer(tokenizer, **sizes)

    def shrunk(self, by: int) -> Self:
        """The same structure with widths, blocks, channels and codebooks divided: for tests.

        Images, scales, positions and codes are as many as before, and so are the settings.
        """
        tokenizer = _divided(self.tokenizer, by)
        model = ModelConfig.for_tokenizer(tokenizer, **_sizes(_divided(self.model, by)))
        return dataclasses.replace(
            self,
            tokenizer=tokenizer,
            model=model,
            superresolution=_divided(self.superresolution, by),
        )


def get_preset(name: str) -> Preset:
    """A preset by its name. Raises ValueError for an unknown one."""
    if name not in PRESETS:
        raise ValueError(f"Expected preset={name!r:.80} in {list(PRESETS)}.")
    return PRESETS[name]


def _sizes(model: ModelConfig) -> dict[str, int]:
    """What a ModelConfig does not take from its tokenizer."""
    names = ("text_width", "text_tokens", "width", "blocks", "heads", "code_hidden")
    return {name: getattr(model, name) for name in names}


def _divided(config: C, by: int) -> C:
    changed: dict[str, Any] = {"heads": 2}
    for name, value in config.to_json().items():
        if name in ("width", "code_hidden", "channels"):
            changed[name] = max(8, value // by) if value else 0
        elif name.endswith("blocks") or name == "residuals":
            changed[name] = max(1, value // by)
        elif name == "codebook_sizes" and isinstance(config, TokenizerConfig):
            changed[name] = tuple(max(4, size // by) for size in value)
    return dataclasses.replace(config, **changed)


def _of_256_pixels(
    name: str, *, text_encoder: str, text_width: int, text_tokens: int, upsampler: str, steps: int
) -> Preset:
    """64x64 coarse images in three scales of 256 codes, times four."""
    tokenizer = TokenizerConfig(
        coarse_size=64,
        levels=2,
        grid=8,
        codebook_sizes=(4096, 4096, 4096),
        width=512,
        heads=8,
        encoder_blocks=4,
        decoder_blocks=8,
    )
    return Preset(
        name=name,
        tokenizer=tokenizer,
        model=ModelConfig.for_tokenizer(
            tokenizer,
            text_width=text_width,
            text_tokens=text_tokens,
            width=1024,
            blocks=24,
            heads=16,
            code_hidden=512,
        ),
        superresolution=SuperResolutionConfig(
            coarse_size=64, width=512, heads=8, blocks=8, channels=96, residuals=6
        ),
        text_encoder=text_encoder,
        upsampler=upsampler,
        tokenizer_training=TokenizerTraining(
            steps=steps, batch=256, learning_rate=4e-4, warmup=1000, revive_every=1000
        ),
        superresolution_training=SuperResolutionTraining(
            images=200_000, steps=steps, batch=64, learning_rate=4e-4, warmup=1000
        ),
        pretraining=Pretraining(
            steps=2 * steps, batch=256, learning_rate=3e-4, warmup=2000, ema_decay=0.9995
        ),
        finetuning=Finetuning(learning_rate=1e-3, micro_batch=8),
    )


_FACES = TokenizerConfig()
_PHOTOS = TokenizerConfig(channels=64)
PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="faces-128",
            tokenizer=_FACES,
            model=ModelConfig.for_tokenizer(_FACES),
            superresolution=SuperResolutionConfig(),
            text_encoder=MINILM,
            upsampler=DEFAULT_UPSAMPLER,
            tokenizer_training=TokenizerTraining(),
            superresolution_training=SuperResolutionTraining(),
            pretraining=Pretraining(),
            finetuning=Finetuning(),
        ),
        Preset(
            name="photos-128",
            tokenizer=_PHOTOS,
            model=ModelConfig.for_tokenizer(_PHOTOS),
            superresolution=SuperResolutionConfig(),
            text_encoder=MINILM,
            upsampler="photo",
            tokenizer_training=TokenizerTraining(
                batch=128, learning_rate=1e-3, ema_decay=0.995, foresee_steps=400
            ),
            superresolution_training=SuperResolutionTraining(images=20_000),
            pretraining=Pretraining(batch=128),
            finetuning=Finetuning(),
        ),
        _of_256_pixels(
            "celeba-256",
            text_encoder="openai/clip-vit-large-patch14",
            text_width=768,
            text_tokens=77,
            upsampler="ldm:CompVis/ldm-super-resolution-4x-openimages",
            steps=50_000,
        ),
        _of_256_pixels(
            "coco-256",
            text_encoder="google/flan-t5-base",
            text_width=768,
            text_tokens=40,
            upsampler="sd-x4:stabilityai/stable-diffusion-x4-upscaler",
            steps=100_000,
        ),
    )
}
