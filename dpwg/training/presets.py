"""Presets: the sizes and the settings of a whole family of models, by name; and families, which
say which releases are trained together, on which data.

`faces-128` is what ships of drawn faces, `photos-128` of photographs. `photo-256` is an example,
sized after the paper's family: 256 codes a scale and about 350 M parameters, captions read by CLIP,
and the last doublings by a public super-resolution model that diffusers runs. It was never trained
at full size here, and nothing in it was tuned. What protects the records (noise, clip norm, batch,
steps, delta) is in no preset: that is each run's own plan.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from dpwg.config import (
    MINILM,
    AutoencoderConfig,
    DiffusionConfig,
    ModelConfig,
    SuperResolutionConfig,
    TokenizerConfig,
)
from dpwg.method.captions import TextEncoder
from dpwg.method.generator import Generator
from dpwg.method.rivals.latents import LatentDiffusion
from dpwg.method.transformer import WaveletGPT
from dpwg.privacy.accounting import PrivacyPlan
from dpwg.training.autoencoder import AutoencoderTraining
from dpwg.training.private import Finetuning
from dpwg.training.public_model import Pretraining
from dpwg.training.tokenizer import TokenizerTraining
from dpwg.training.upsampler import SuperResolutionTraining
from dpwg.upsampling.upsamplers import DEFAULT_UPSAMPLER

MAX_BATCH = 8192
MAX_GRAD_NORM = 0.1
_DOUBLED_TWICE = SuperResolutionConfig()


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What each part is, and how it is trained.

    `family` is the generator's, `text_encoder` and `upsampler` are public parts by their names, the
    upsampler for images of the tokenizer's size; `superresolution` is this project's own model for
    the same step.
    """

    name: str
    tokenizer: Any  # a TokenizerConfig, or DP-LDM's AutoencoderConfig
    model: Any  # a ModelConfig, or DP-LDM's DiffusionConfig
    family: str = "dp-wavelet"
    superresolution: SuperResolutionConfig = _DOUBLED_TWICE
    text_encoder: str = MINILM
    upsampler: str = DEFAULT_UPSAMPLER
    tokenizer_training: Any = TokenizerTraining()
    superresolution_training: SuperResolutionTraining = SuperResolutionTraining()
    pretraining: Pretraining = Pretraining()
    finetuning: Finetuning = Finetuning()

    @property
    def image_size(self) -> int:
        """The side of the full images."""
        doublings = 0 if self.upsampler == "none" else self.superresolution.levels
        return self.tokenizer.coarse_size << doublings

    def new_model(self, tokenizer: Any, encoder: TextEncoder) -> Generator:
        """An untrained generator of this size, for this tokenizer's codes and this encoder.

        Raises ValueError for a tokenizer of other images or other positions.
        """
        if isinstance(self.model, DiffusionConfig):
            if tokenizer.config != self.tokenizer:
                raise ValueError(f"Expected the autoencoder of {self.name!r}, found another.")
            sizes = dataclasses.replace(
                self.model, text_width=encoder.width, text_tokens=encoder.max_tokens
            )
            return LatentDiffusion(sizes)
        codes = ModelConfig.for_tokenizer(tokenizer.config)
        shape = (tokenizer.config.coarse_size, codes.positions, codes.codes, codes.scales)
        own = self.model
        if shape != (self.tokenizer.coarse_size, own.positions, own.codes, own.scales):
            raise ValueError(
                f"Expected a tokenizer of the preset {self.name!r}, found one of {shape[0]} pixels "
                f"with {shape[3]} scales of {shape[1]} x {shape[2]} codes; make it with `python -m "
                f"dpwg tokenizer --preset {self.name} --out FOLDER`, and pass --tokenizer FOLDER."
            )
        return WaveletGPT.for_tokenizer(
            tokenizer,
            text_width=encoder.width,
            text_tokens=encoder.max_tokens,
            width=own.width,
            blocks=own.blocks,
            heads=own.heads,
            code_hidden=own.code_hidden,
        )


def get_preset(name: str) -> Preset:
    """A preset by its name. Raises ValueError for an unknown one."""
    if name not in PRESETS:
        raise ValueError(f"Expected preset={name!r:.80} in {list(PRESETS)}.")
    return PRESETS[name]


_FACES = TokenizerConfig()
_PHOTOS = TokenizerConfig(channels=64)
_RASTER = TokenizerConfig(coarse_size=128, levels=0, grid=16, split=1, codebook_sizes=(1024,))
_LARGE = TokenizerConfig(
    coarse_size=64,
    grid=8,
    codebook_sizes=(4096, 4096, 4096),
    width=512,
    heads=8,
    encoder_blocks=4,
    decoder_blocks=8,
)
PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="faces-128",
            tokenizer=_FACES,
            model=ModelConfig.for_tokenizer(_FACES),
        ),
        Preset(
            name="photos-128",
            tokenizer=_PHOTOS,
            model=ModelConfig.for_tokenizer(_PHOTOS),
            upsampler="photo",
            tokenizer_training=TokenizerTraining(
                batch=128, learning_rate=1e-3, ema_decay=0.995, foresee_steps=400
            ),
            superresolution_training=SuperResolutionTraining(images=20_000),
            pretraining=Pretraining(batch=128),
        ),
        Preset(
            name="llamagen-128",
            family="dp-llamagen",
            tokenizer=_RASTER,
            model=ModelConfig.for_tokenizer(_RASTER),
            upsampler="none",
            tokenizer_training=TokenizerTraining(batch=64, learning_rate=1e-3, ema_decay=0.995),
            pretraining=Pretraining(batch=128),
        ),
        Preset(
            name="ldm-128",
            family="dp-ldm",
            tokenizer=AutoencoderConfig(),
            model=DiffusionConfig(),
            upsampler="none",
            tokenizer_training=AutoencoderTraining(learning_rate=4e-4),
            pretraining=Pretraining(batch=128, learning_rate=4e-4),
            finetuning=Finetuning(lora_rank=0, learning_rate=1e-3),
        ),
        Preset(
            name="photo-256",
            tokenizer=_LARGE,
            model=ModelConfig.for_tokenizer(
                _LARGE,
                text_width=768,
                text_tokens=77,
                width=1024,
                blocks=24,
                heads=16,
                code_hidden=512,
            ),
            superresolution=SuperResolutionConfig(
                coarse_size=64, width=512, heads=8, blocks=8, channels=96, residuals=6
            ),
            text_encoder="openai/clip-vit-large-patch14",
            upsampler="ldm:CompVis/ldm-super-resolution-4x-openimages",
            tokenizer_training=TokenizerTraining(
                steps=50_000, batch=256, learning_rate=4e-4, warmup=1000, revive_every=1000
            ),
            superresolution_training=SuperResolutionTraining(
                images=200_000, steps=50_000, batch=64, learning_rate=4e-4, warmup=1000
            ),
            pretraining=Pretraining(
                steps=100_000, batch=256, learning_rate=3e-4, warmup=2000, ema_decay=0.9995
            ),
            finetuning=Finetuning(learning_rate=1e-3, micro_batch=8),
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class PrivateRun:
    """One private release. `pace` is steps over expected batch: how a number of examples is spent,
    settled on public data (docs/LOG.md). `unit` is "image", or the column that tells records apart.
    """

    name: str
    epsilon: float
    share: float
    pace: float
    unit: str = "image"

    def sizes(self, examples: float, records: int) -> tuple[int, int]:
        """Steps and expected batch for about so many examples, of so many records."""
        most = max(1, min(MAX_BATCH, records // 4))
        steps = max(2, round(math.sqrt(examples * self.pace)))
        batch = min(most, max(1, round(examples / steps)))
        return max(steps, round(examples / batch)), batch

    def plan(self, examples: float, records: int, delta: float) -> PrivacyPlan:
        """The plan that spends about so many examples, with the least noise for its epsilon."""
        steps, batch = self.sizes(examples, records)
        return PrivacyPlan.calibrated(
            records=records,
            batch_size=batch,
            steps=steps,
            delta=delta,
            max_grad_norm=MAX_GRAD_NORM,
            target_epsilon=self.epsilon,
        )


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is trained together. The shares are of the time; those of the runs come on top."""

    name: str
    private_set: str
    public_set: str
    preset: str
    runs: tuple[PrivateRun, ...]
    delta: float = 1e-6  # public: how many images groups of records have may be private
    shares: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"tokenizer": 0.15, "upsampler": 0.15, "public": 0.3}
    )

    @property
    def stages(self) -> dict[str, float]:
        """Every stage in order, with its share."""
        return self.shares | {run.name: run.share for run in self.runs}


_CELEBA = Family(
    name="celeba",
    private_set="celeba-train",
    public_set="public-photos",
    preset="photos-128",
    runs=(
        PrivateRun(name="eps-10", epsilon=10.0, share=0.1, pace=160 / 4096),
        PrivateRun(name="eps-1", epsilon=1.0, share=0.08, pace=48 / 4096),
        PrivateRun(name="eps-3", epsilon=3.0, share=0.08, pace=80 / 4096),
        PrivateRun(name="eps-inf", epsilon=math.inf, share=0.08, pace=160 / 4096),
        PrivateRun(name="person-eps-10", epsilon=10.0, share=0.06, pace=160 / 4096, unit="person"),
    ),
)
FAMILIES = {
    family.name: family
    for family in (
        _CELEBA,
        dataclasses.replace(
            _CELEBA,
            name="celeba/dp-llamagen",
            preset="llamagen-128",
            runs=tuple(r for r in _CELEBA.runs if r.name in ("eps-10", "eps-1", "eps-inf")),
            shares={"tokenizer": 0.2, "public": 0.4},
        ),
        dataclasses.replace(
            _CELEBA,
            name="celeba/dp-ldm",
            preset="ldm-128",
            runs=tuple(r for r in _CELEBA.runs if r.name in ("eps-10", "eps-1", "eps-inf")),
            shares={"tokenizer": 0.2, "public": 0.4},
        ),
    )
}
