"""Settings of every trained part: frozen, validated once by their types, JSON in and out."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
HubName = Annotated[str, Field(pattern=r"^(?-u:\w[\w.-]{0,95}(/\w[\w.-]{0,95})?)$")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all settings: plain values, of the types and in the ranges that their fields tell.

    Raises ValueError for any other; names that are none are refused by `from_json`.
    """

    def __post_init__(self) -> None:
        for name, kind in self._types().items():
            given = getattr(self, name)
            try:
                object.__setattr__(self, name, kind.validate_python(given))
            except ValidationError as error:
                wanted = re.sub(r"^\w+ should ", "to ", error.errors()[0]["msg"])
                raise ValueError(f"Expected {name}={given!r:.80} {wanted}.") from None

    @classmethod
    @functools.cache
    def _types(cls) -> dict[str, TypeAdapter[Any]]:
        hints = get_type_hints(cls, include_extras=True)
        return {field.name: TypeAdapter(hints[field.name]) for field in dataclasses.fields(cls)}

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        if unknown := sorted(set(values) - cls._types().keys()):
            raise ValueError(f"{cls.__name__} has no {unknown}; it knows {sorted(cls._types())}.")
        return cls(**values)

    def _divisible(self, **divisors: int) -> None:
        """Raise ValueError unless the fields of these names are multiples of the numbers."""
        for name, divisor in divisors.items():
            if (value := getattr(self, name)) % divisor:
                raise ValueError(f"Expected {name}={value} to be a multiple of {divisor}.")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's values by name. Raises ValueError for anything else in it."""
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"Expected JSON in {path.name}: {error}; get the file again.") from error
    if not isinstance(values, dict):
        raise ValueError(f"Expected names with values in {path.name}, found {values!r:.60}.")
    return values


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(Config):
    """The spectral tokenizer.

    Scale 0 is the LL band of `coarse_size / 2**levels` pixels a side, scale s the three details
    that lead from there to the next size. Every scale is cut into `grid` x `grid` positions, a
    position into `split` x `split` patches, and each patch is a code from the scale's codebook.

    With `channels`, convolutions of that width and `residuals` pairs foresee each scale's details
    from the coarser image, and the codes hold the rest (`method/predictive`); with 0 the
    transformers of `width`, `heads` and `..._blocks` do the work.
    """

    coarse_size: Count = 32
    levels: Natural = 2
    grid: Count = 4
    split: Count = 2
    codebook_sizes: tuple[Count, ...] = (1024, 1024, 1024)
    width: Count = 256
    heads: Count = 4
    encoder_blocks: Count = 2
    decoder_blocks: Count = 4
    channels: Natural = 0
    residuals: Count = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.codebook_sizes) != self.levels + 1:
            raise ValueError(
                f"Expected {self.levels + 1} codebook_sizes, found {len(self.codebook_sizes)}; "
                "give one for LL and one for each level of details."
            )
        self._divisible(coarse_size=self.grid * self.split << self.levels)

    @property
    def scales(self) -> int:
        return self.levels + 1

    @property
    def positions(self) -> int:
        """Positions of one scale."""
        return self.grid**2

    @property
    def codes(self) -> int:
        """Codes of one position."""
        return self.split**2

    @property
    def tokens(self) -> int:
        """Codes of a whole image."""
        return self.scales * self.positions * self.codes

    @property
    def code_widths(self) -> tuple[int, ...]:
        """The number of wavelet coefficients that a code of each scale stands for."""
        sides = [self.band_size(scale) // (self.grid * self.split) for scale in range(self.scales)]
        return tuple(3 * side**2 * (3 if scale else 1) for scale, side in enumerate(sides))

    def band_size(self, scale: int) -> int:
        """The side of a scale's bands in coefficients."""
        return self.coarse_size >> (self.levels - max(scale - 1, 0))

    def image_size(self, scale: int) -> int:
        """The side of the image that scales 0..scale decode to."""
        return self.coarse_size >> (self.levels - scale)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """WaveletGPT. The code sizes are its tokenizer's, the text sizes its text encoder's."""

    codebook_sizes: tuple[Count, ...] = (1024, 1024, 1024)
    code_widths: tuple[Count, ...] = (3, 9, 36)
    positions: Count = 16
    codes: Count = 4
    text_width: Count = 384
    text_tokens: Count = 40
    width: Count = 256
    blocks: Count = 6
    heads: Count = 4
    code_hidden: Count = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        self._divisible(width=self.heads)
        if len(self.codebook_sizes) != len(self.code_widths):
            raise ValueError(
                f"Expected as many code_widths as codebook_sizes={self.codebook_sizes}, found "
                f"{self.code_widths}."
            )

    @classmethod
    def for_tokenizer(cls, tokenizer: TokenizerConfig, **sizes: int) -> Self:
        """For the codes of a tokenizer; `sizes` are the other fields."""
        return cls(
            codebook_sizes=tokenizer.codebook_sizes,
            code_widths=tokenizer.code_widths,
            positions=tokenizer.positions,
            codes=tokenizer.codes,
            **sizes,
        )

    @property
    def scales(self) -> int:
        return len(self.codebook_sizes)

    @property
    def length(self) -> int:
        """Positions of an image."""
        return self.scales * self.positions

    @property
    def tokens(self) -> int:
        """Codes of an image."""
        return self.length * self.codes


MINILM = "all-MiniLM-L6-v2"
"""The embedded text encoder, which a package brings."""


@dataclass(frozen=True, kw_only=True)
class TextEncoderId(Config):
    """Which frozen text encoder a model reads captions with.

    `name` is "user/name" as on the hub, a folder's own name, or MINILM; `revision` the commit on
    the hub that it came from, None if it did not. `digest` is the SHA-256 of its weights alone, not
    of config.json and tokenizer, and with `max_tokens` decides: a copy under another name is the
    same encoder.
    """

    kind: Annotated[str, Field(pattern="^(bert|clip|t5)$")]
    name: HubName
    digest: Sha256
    max_tokens: Annotated[int, Field(ge=3)] = 40
    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None = None


@dataclass(frozen=True, kw_only=True)
class SuperResolutionConfig(Config):
    """The super-resolution model: `levels` doublings of a `coarse_size` image.

    `width`, `heads`, `blocks` are the transformer's over patches of `patch` x `patch` pixels;
    `channels` and `residuals` those of the convolutions.
    """

    coarse_size: Count = 32
    levels: Count = 2
    patch: Count = 4
    width: Count = 256
    heads: Count = 4
    blocks: Count = 4
    channels: Count = 48
    residuals: Count = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._divisible(coarse_size=self.patch, width=self.heads)


@dataclass(frozen=True, kw_only=True)
class RerankerConfig(Config):
    """The reranker of captions and images of the coarsest band.

    `width`, `heads` and `blocks` are the transformer's over patches of `patch` x `patch` of the
    `image_size` pixels a side; captions and images become `slots` vectors of `slot_width`. Captions
    are read by the text encoder of the digest `text_encoder_sha256`, cut to `text_tokens`; images
    were those of the tokenizer whose coarsest codebook has the digest `codebook_sha256`.
    """

    text_encoder_sha256: str = ""
    codebook_sha256: str = ""
    text_tokens: Count = 40
    image_size: Count = 8
    patch: Count = 2
    text_width: Count = 384
    width: Count = 128
    heads: Count = 4
    blocks: Count = 3
    slots: Count = 8
    slot_width: Count = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self._divisible(image_size=self.patch, width=self.heads)

    @property
    def positions(self) -> int:
        return (self.image_size // self.patch) ** 2


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(Config):
    """DP-LDM's autoencoder: `coarse_size` pixels a side to latents of `size` and back, by
    convolutions of these `widths`, of which all but the last halve the size.
    """

    coarse_size: Count = 128
    latent_channels: Count = 4
    widths: tuple[Count, ...] = (24, 48, 96, 128)
    groups: Count = 8

    @property
    def size(self) -> int:
        """The side of the latents."""
        return self.coarse_size >> (len(self.widths) - 1)


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(Config):
    """DP-LDM's network over `channels` x `size` x `size` latents. The text sizes are its text
    encoder's; `steps` are the noise levels that it is trained on.
    """

    channels: Count = 4
    size: Annotated[int, Field(ge=1, le=256)] = 16
    text_width: Count = 384
    text_tokens: Count = 40
    widths: tuple[Count, ...] = (96, 192)
    layers: Count = 1
    head_width: Count = 32
    groups: Count = 32
    steps: Annotated[int, Field(ge=2, le=10_000)] = 1000

    @property
    def blocks(self) -> int:
        """Fewer than its tensors."""
        return 2 * len(self.widths) * self.layers
