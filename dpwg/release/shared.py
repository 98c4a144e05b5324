"""What releases share: tokenizers and rerankers, in folders of their own beside them.

A reranker goes with all releases whose pictures and captions it knows. Their cards cannot know it,
so its own configuration says what it was trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpwg.config import AutoencoderConfig, RerankerConfig, TextEncoderId, TokenizerConfig
from dpwg.method.families import new_tokenizer
from dpwg.method.reranker import Reranker
from dpwg.method.tokenizer import SpectralTokenizer
from dpwg.modules import (
    PUBLIC_INPUT,
    SHIPPED,
    as_saved,
    checkpoint_root,
    load_module,
    module_sha256,
    read_config,
    same_tensors,
    save_module,
)

RERANKER = "reranker"
"""The folder of the reranker among the checkpoints, which share it."""
_TOKENIZER_FLOAT32 = ("codebooks.", "spread_S")


def save_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Write a tokenizer as `save_module` does; its codebooks stay float32."""
    save_module(folder, tokenizer, tokenizer.config, keep=_TOKENIZER_FLOAT32)


def load_tokenizer(folder: Path) -> Any:
    """Read a tokenizer that `save_tokenizer` wrote, or DP-LDM's autoencoder, in float32."""
    values = read_config(folder)
    if "latent_channels" in values:
        latents = AutoencoderConfig.from_json(values)
        return load_module(lambda: new_tokenizer(latents), folder, len(latents.widths))
    config = TokenizerConfig.from_json(values)
    blocks = config.encoder_blocks + config.decoder_blocks
    return load_module(lambda: new_tokenizer(config), folder, blocks)


def check_same_tokenizer(folder: Path, tokenizer: SpectralTokenizer) -> None:
    """Raise ValueError unless a folder holds this tokenizer: another one's codes mean others."""
    found, own = load_tokenizer(folder), as_saved(tokenizer, _TOKENIZER_FLOAT32)
    if found.config != tokenizer.config or not same_tensors(found.state_dict(), own):
        raise ValueError(
            f"Expected tokenizer={folder} to be the one that the model was trained with, found "
            "another; leave the option out, or name that one's folder."
        )


@dataclass(frozen=True, kw_only=True)
class ReleasedReranker:
    """A reranker with what it was trained on, a `name`, `source` and `licence` as cards have them,
    and the digest of the files that it was read from.
    """

    model: Reranker
    public_input: dict[str, str]
    sha256: str

    def to_json(self) -> dict[str, str]:
        """What a result file says of it."""
        return {**self.public_input, "sha256": self.sha256}


def save_reranker(folder: Path, model: Reranker, public_input: dict[str, str]) -> None:
    """Write a reranker as `save_module` does, and what it was trained on, as a card's input."""
    save_module(folder, model, model.config, public_input=public_input)


def load_reranker(folder: Path) -> ReleasedReranker:
    """Read a reranker that `save_reranker` wrote, in float32, ready to use.

    Raises ValueError where the folder holds anything else.
    """
    with _a_reranker(folder):
        values = read_config(folder)
        public_input = values.pop(PUBLIC_INPUT)
        config = RerankerConfig.from_json(values)
        return ReleasedReranker(
            model=load_module(lambda: Reranker(config), folder, config.blocks),
            public_input={name: str(public_input[name]) for name in ("name", "source", "licence")},
            sha256=module_sha256(folder),
        )


def find_rerankers() -> list[Path]:
    """Folders of rerankers: among the checkpoints in use, then the shipped one."""
    folders = dict.fromkeys((checkpoint_root() / RERANKER, SHIPPED / RERANKER))
    return [folder for folder in folders if folder.exists()]


def reranker_for(tokenizer: SpectralTokenizer, encoder: TextEncoderId) -> ReleasedReranker | None:
    """The first reranker that was trained with this tokenizer and text encoder, if any."""
    if not tokenizer.books():
        return None
    own = reranker_reads(tokenizer, encoder.digest, encoder.max_tokens)
    for folder in find_rerankers():
        with _a_reranker(folder):
            config = read_config(folder)
            knows = {name: config[name] for name in own}
        if knows == own:
            return load_reranker(folder)
    return None


def reranker_reads(
    tokenizer: SpectralTokenizer, encoder_sha256: str, tokens: int
) -> dict[str, Any]:
    """The entries of a reranker's configuration that say whose images and captions it knows."""
    vectors_KD = tokenizer.books()[0].vectors_KD.detach().float().cpu().contiguous()
    return {
        "codebook_sha256": hashlib.sha256(vectors_KD.numpy().tobytes()).hexdigest(),
        "text_encoder_sha256": encoder_sha256,
        "text_tokens": tokens,
    }


@contextmanager
def _a_reranker(folder: Path) -> Iterator[None]:
    """Another folder than that of a reranker is a ValueError with the way out."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"Expected {folder} to hold a reranker, found {type(error).__name__}: {error}; make it "
            "again with `python -m dpwg reranker`, or remove or rename that folder."
        ) from error
