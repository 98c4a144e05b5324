"""Settings of every trained part: frozen, validated once, JSON in and out."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all settings: plain JSON values, unknown names refused."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"{cls.__name__} has no {unknown}; it knows {sorted(known)}.")
        return cls(**{name: _tuples(value) for name, value in values.items()})


_LEAST = {
    **dict.fromkeys(("steps", "batch", "micro_batch", "images"), 1),
    **dict.fromkeys(("report_every", "save_every", "revive_every"), 1),
    **dict.fromkeys(("lora_rank", "warmup"), 0),
}


def check_run(settings: Config) -> None:
    """Raise ValueError for a count, rate or share in the settings of a run that is out of range."""
    given = settings.to_json()
    for name, least in _LEAST.items():
        if name in given and given[name] < least:
            raise ValueError(f"Expected {name}={given[name]} to be {least} or more.")
    if not 0 < given["learning_rate"] < math.inf:
        raise ValueError(f"Expected learning_rate={given['learning_rate']} in (0, inf).")
    for name, below in (("ema_decay", 1.0), ("caption_dropout", math.nextafter(1.0, 2.0))):
        if name in given and not 0 <= given[name] < below:
            interval = "[0, 1)" if below == 1 else "[0, 1]"
            raise ValueError(f"Expected {name}={given[name]} in {interval}.")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's values by name. Raises ValueError for anything else in it."""
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"Expected JSON in {path.name}: {error}; get the file again.") from error
    if not isinstance(values, dict):
        raise ValueError(f"Expected names with values in {path.name}, found {values!r:.60}.")
    return values


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


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

    coarse_size: int = 32
    levels: int = 2
    grid: int = 4
    split: int = 2
    codebook_sizes: tuple[int, ...] = (1024, 1024, 1024)
    width: int = 256
    heads: int = 4
    encoder_blocks: int = 2
    decoder_blocks: int = 4
    channels: int = 0
    residuals: int = 3

    def __post_init__(self) -> None:
        if len(self.codebook_sizes) != self.levels + 1:
            raise ValueError(
                f"Expected {self.levels + 1} codebook_sizes, found {len(self.codebook_sizes)}; "
                "give one for LL and one for each level of details."
            )
        cells = self.grid * self.split
        if self.coarse_size % (cells << self.levels):
            raise ValueError(
                f"Expected coarse_size={self.coarse_size} to be a multiple of "
                f"grid * split * 2**levels = {cells << self.levels}."
            )

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

    codebook_sizes: tuple[int, ...] = (1024, 1024, 1024)
    code_widths: tuple[int, ...] = (3, 9, 36)
    positions: int = 16
    codes: int = 4
    text_width: int = 384
    text_tokens: int = 40
    width: int = 256
    blocks: int = 6
    heads: int = 4
    code_hidden: int = 256

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"Expected width={self.width} to be a multiple of heads={self.heads}.")
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
TEXT_ENCODER_KINDS = ("bert", "clip", "t5")


@dataclass(frozen=True, kw_only=True)
class TextEncoderId(Config):
    """Which frozen text encoder a model reads captions with.

    `name` is "user/name" as on the hub, a folder's own name, or MINILM; `revision` the commit on
    the hub that it came from, None if it did not. `digest` is the SHA-256 of its weights alone, not
    of config.json and tokenizer, and with `max_tokens` decides: a copy under another name is the
    same encoder.
    """

    kind: str
    name: str
    digest: str
    max_tokens: int = 40
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in TEXT_ENCODER_KINDS:
            raise ValueError(
                f"Expected the text encoder's kind={self.kind!r:.80} in {TEXT_ENCODER_KINDS}."
            )
        if not _matches(r"\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", self.name):
            raise ValueError(
                f"Expected the text encoder's name={self.name!r:.120} to be letters, digits, '-', "
                "'.' and '_', with one slash at most; rename its folder."
            )
        if not _matches(r"[0-9a-f]{64}", self.digest):
            raise ValueError(
                f"Expected the text encoder's digest={self.digest!r:.80} to be a SHA-256 in "
                "hexadecimal; take it from the encoder's `id`."
            )
        if self.revision is not None and not _matches(r"[0-9a-f]{40}", self.revision):
            raise ValueError(
                f"Expected the text encoder's revision={self.revision!r:.80} to be a commit, or "
                "None; a branch can change."
            )
        if type(self.max_tokens) is not int or self.max_tokens < 3:
            raise ValueError(
                f"Expected the text encoder's max_tokens={self.max_tokens!r:.80} >= 3; 40 is usual."
            )

    @classmethod
    def from_json(cls, values: dict[str, Any] | str) -> Self:
        """Reads a bare digest too, as releases held it when MiniLM was the only encoder."""
        if isinstance(values, str):
            values = {"kind": "bert", "name": MINILM, "digest": values}
        return super().from_json(values)


def _matches(pattern: str, value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) is not None


@dataclass(frozen=True, kw_only=True)
class SuperResolutionConfig(Config):
    """The super-resolution model: `levels` doublings of a `coarse_size` image.

    `width`, `heads`, `blocks` are the transformer's over patches of `patch` x `patch` pixels;
    `channels` and `residuals` those of the convolutions.
    """

    coarse_size: int = 32
    levels: int = 2
    patch: int = 4
    width: int = 256
    heads: int = 4
    blocks: int = 4
    channels: int = 48
    residuals: int = 3

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise ValueError(f"Expected levels={self.levels} >= 1; 2 makes 128 pixels of 32.")
        if self.coarse_size % self.patch:
            raise ValueError(
                f"Expected coarse_size={self.coarse_size} to be a multiple of patch={self.patch}."
            )
        if self.width % self.heads:
            raise ValueError(f"Expected width={self.width} to be a multiple of heads={self.heads}.")


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
    text_tokens: int = 40
    image_size: int = 8
    patch: int = 2
    text_width: int = 384
    width: int = 128
    heads: int = 4
    blocks: int = 3
    slots: int = 8
    slot_width: int = 64

    def __post_init__(self) -> None:
        if self.image_size % self.patch:
            raise ValueError(
                f"Expected image_size={self.image_size} to be a multiple of patch={self.patch}."
            )
        if self.width % self.heads:
            raise ValueError(f"Expected width={self.width} to be a multiple of heads={self.heads}.")

    @property
    def positions(self) -> int:
        return (self.image_size // self.patch) ** 2
