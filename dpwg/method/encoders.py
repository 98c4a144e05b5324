"""The text encoder that a checkpoint names, or that a person asks for: found here, or on the hub.

Weights are read from safetensors only, and their digest must be the one that a checkpoint names.
It is of the weights alone: a hub's revision fixes config.json and the tokenizer too, a folder is
taken at its user's word.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

from dpwg.config import MINILM, TextEncoderId
from dpwg.download import download
from dpwg.method.captions import MAX_TOKENS, WEIGHTS, TextEncoder

FOLDER = "DPWG_TEXT_ENCODERS"
"""The environment variable that names a folder of text encoders."""
PULLED = ("*.json", "merges.txt", "vocab.txt", "spiece.model", *WEIGHTS)
"""Patterns of what is downloaded."""


@functools.cache
def default_encoder() -> TextEncoder:
    """The embedded text encoder, loaded once a process."""
    return TextEncoder.minilm()


@functools.cache
def open_encoder(wanted: TextEncoderId) -> TextEncoder:
    """The encoder that a checkpoint names, loaded once a process.

    MiniLM comes from its package, another from the folder of its name in DPWG_TEXT_ENCODERS, or
    else from the hub. Raises FileNotFoundError where it is in neither, and ValueError where its
    weights are not those that are named.
    """
    if wanted.name == MINILM:
        plain = wanted.max_tokens == MAX_TOKENS
        encoder = default_encoder() if plain else TextEncoder.minilm(max_tokens=wanted.max_tokens)
    else:
        folder, revision = _find(wanted.name, wanted.revision)
        encoder = TextEncoder.from_folder(
            folder,
            name=wanted.name,
            revision=revision,
            max_tokens=wanted.max_tokens,
            digest=wanted.digest,
        )
    check_encoder(encoder, wanted)
    return encoder


def find_encoder(name_or_folder: str, *, max_tokens: int | None = None) -> TextEncoder:
    """The encoder that a person asks for: MINILM, a folder, or "user/name" as on the hub.

    "user/name@revision" is a branch, tag or commit. Raises as `open_encoder` and
    `TextEncoder.from_folder` do.
    """
    if name_or_folder == MINILM:
        return TextEncoder.minilm(max_tokens=max_tokens) if max_tokens else default_encoder()
    if os.path.isdir(name_or_folder):  # Path("") would be the current folder
        encoder = TextEncoder.from_folder(name_or_folder, max_tokens=max_tokens)
        if encoder.name == MINILM:
            raise ValueError(
                f"Expected a folder that is not called {MINILM}, which is the package's."
            )
        return encoder
    name, _, asked = name_or_folder.partition("@")
    folder, revision = _find(name, asked or None)
    return TextEncoder.from_folder(folder, name=name, revision=revision, max_tokens=max_tokens)


def check_encoder(encoder: TextEncoder, wanted: TextEncoderId) -> None:
    """Raise ValueError unless these are the weights, read in the way, that a checkpoint names."""
    found = encoder.id
    if (found.digest, found.kind, found.max_tokens) != (
        *(wanted.digest, wanted.kind, wanted.max_tokens),
    ):
        raise ValueError(
            f"Expected the text encoder {wanted.name} {wanted.digest[:12]}..., {wanted.kind} of "
            f"{wanted.max_tokens} tokens, found {found.name} {found.digest[:12]}..., {found.kind} "
            f"of {found.max_tokens}; use the encoder that the checkpoint was trained with."
        )


def _find(name: str, revision: str | None) -> tuple[Path, str | None]:
    """A named encoder's folder, and the commit that it is of where it came from the hub."""
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise FileNotFoundError(
            f"Expected text encoder={name!r:.120} to be {MINILM}, a folder, or a user/name of the "
            "hub, found none of them."
        )
    root = os.environ.get(FOLDER)
    if root and (Path(root) / name).is_dir():
        return Path(root) / name, None
    remedy = f"put it into {name}/ of a folder, and name that folder by {FOLDER}"
    if "/" not in name:
        raise FileNotFoundError(f"Expected text encoder={name!r} to be here, found none; {remedy}.")
    folder = download(name, PULLED, what="text encoder", otherwise=remedy, revision=revision)
    return folder, folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None
