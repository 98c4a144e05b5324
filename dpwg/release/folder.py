"""Releases on disk: weights, configuration and privacy card. Training state is elsewhere.

A release folder holds `config.json`, `privacy_card.json` and safetensors files of at most 9 MB,
either of the whole model or of an adapter (`release/adapters`) to the public release that its
`base` names; the tokenizer is a folder of its own, which several releases can share. Nothing here
reads or writes a pickle, and a release is refused whose card does not follow from its ledger or is
another's.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpwg.config import (
    ModelConfig,
    RerankerConfig,
    TextEncoderId,
    TokenizerConfig,
    read_json,
)
from dpwg.method.predictive import new_tokenizer
from dpwg.method.reranker import Reranker
from dpwg.method.tokenizer import SpectralTokenizer
from dpwg.method.transformer import WaveletGPT
from dpwg.modules import (
    CONFIG,
    FILES,
    FORMAT,
    PUBLIC_INPUT,
    SHIPPED,
    as_saved,
    checkpoint_root,
    load_module,
    load_tensors,
    module_sha256,
    read_config,
    save_module,
    save_weights,
    strange_file,
    weights_sha256,
    write_json,
)
from dpwg.privacy.card import PrivacyCard
from dpwg.release.adapters import merge_adapter, save_adapter

RERANKER = "reranker"
"""The folder of the reranker, likewise."""
_CARD = "privacy_card.json"
_RELEASE = (*FILES, _CARD, "tokenizer")
"""What a release's folder may hold."""
_TOKENIZER_FLOAT32 = ("codebooks.", "spread_S")
_MODEL_FLOAT32 = ("codebook_",)


@dataclass(frozen=True, kw_only=True)
class Release:
    """A trained WaveletGPT with what it needs to be used and to be judged.

    `adapter` is what made the model of its public base, see `release/adapters`; None where every
    parameter was trained, or where it was saved whole. `upsampler` names the one that suits its
    pictures; None is the default one. `weights_sha256` is the digest of the model's files as they
    are when it is saved whole; None where it was not read from disk.
    """

    model: WaveletGPT
    tokenizer: SpectralTokenizer
    card: PrivacyCard
    text_encoder: TextEncoderId
    adapter: dict[str, Tensor] | None = None
    upsampler: str | None = None
    weights_sha256: str | None = None


def checkpoint_names(root: Path | None = None) -> list[str]:
    """Names of all releases below the root: of each data set public first, then by epsilon."""
    root = root or checkpoint_root()
    cards = [path.parent for path in root.glob("**/privacy_card.json")]
    return sorted((folder.relative_to(root).as_posix() for folder in cards), key=_by_name)


def find_checkpoint(name_or_path: str | Path) -> Path:
    """The folder of a named checkpoint, or of a path to one."""
    root = checkpoint_root()
    named = (root / name_or_path).resolve()
    if named.is_relative_to(root.resolve()) and (named / _CARD).exists():
        return named
    path = Path(name_or_path)
    if (path / _CARD).exists():
        return path
    raise FileNotFoundError(
        f"Expected checkpoint={str(name_or_path)!r} to be a release folder or one of "
        f"{checkpoint_names()}."
    )


def save_tokenizer(folder: Path, tokenizer: SpectralTokenizer) -> None:
    """Write a tokenizer as `save_module` does; its codebooks stay float32."""
    save_module(folder, tokenizer, tokenizer.config, keep=_TOKENIZER_FLOAT32)


def load_tokenizer(folder: Path) -> SpectralTokenizer:
    """Read a tokenizer that `save_tokenizer` wrote, in float32, ready to use."""
    config = TokenizerConfig.from_json(read_config(folder))
    blocks = config.encoder_blocks + config.decoder_blocks
    return load_module(lambda: new_tokenizer(config), folder, blocks)


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
    """Write a reranker as `save_module` does, and what it was trained on, as a card's public input:
    it goes with the checkpoints in use, whose own cards cannot know it.
    """
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


def reranker_for(release: Release) -> ReleasedReranker | None:
    """The first reranker that was trained with the release's tokenizer and text encoder, if any."""
    encoder = release.text_encoder
    own = reranker_reads(release.tokenizer, encoder.digest, encoder.max_tokens)
    for folder in find_rerankers():
        with _a_reranker(folder):
            config = read_config(folder)
            knows = {name: config[name] for name in own}
        if knows == own:
            return load_reranker(folder)
    return None


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


def save_release(
    folder: Path,
    release: Release,
    *,
    tokenizer_folder: Path | None = None,
    base_folder: Path | None = None,
) -> None:
    """Write a release after checking its card; the tokenizer goes inside, or is referred to.

    With a `base_folder`, that of the public release that it was trained from, its adapter is
    written alone, which needs the base where it is loaded; without, the whole model. The folder
    appears under its name only when complete, and replaces an earlier release at once. Raises
    ValueError as `check_release_folder` does, and for another tokenizer or base than the release's.
    """
    folder = folder.resolve()
    check_release_folder(folder)
    if tokenizer_folder is not None:
        check_same_tokenizer(tokenizer_folder, release.tokenizer)
    release.card.verify()
    adapter = None if base_folder is None else _adapter_to(base_folder, release)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    save_weights(partial, release.model, keep=_MODEL_FLOAT32)
    # The same model has the same digest, however it is kept: what was measured stays its own.
    digest, parts = weights_sha256(partial), {}
    if base_folder is not None and adapter is not None:
        shutil.rmtree(partial)
        save_adapter(partial, adapter)
        parts = {
            "base": Path(os.path.relpath(base_folder.resolve(), folder)).as_posix(),
            "base_sha256": weights_sha256(base_folder),
            "adapter_sha256": weights_sha256(partial),
        }
    if release.upsampler is not None:
        parts["upsampler"] = release.upsampler
    if tokenizer_folder is None:
        save_tokenizer(partial / "tokenizer", release.tokenizer)
    config = {
        "format": FORMAT,
        "model": release.model.config.to_json(),
        "weights_sha256": digest,
        "card_sha256": release.card.sha256,
        "tokenizer": os.path.relpath(tokenizer_folder, folder) if tokenizer_folder else "tokenizer",
        "tokenizer_sha256": module_sha256(tokenizer_folder or partial / "tokenizer"),
        "text_encoder": release.text_encoder.to_json(),
        **parts,
    }
    write_json(partial / CONFIG, config)
    write_json(partial / _CARD, release.card.to_json())
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _adapter_to(base_folder: Path, release: Release) -> dict[str, Tensor]:
    """A release's adapter; ValueError unless it makes the release's model of that public base."""
    if (adapter := release.adapter) is not None:
        made = load_public(base_folder).model
        merge_adapter(made, adapter)
        own, found = (as_saved(model, _MODEL_FLOAT32) for model in (release.model, made))
        if all(torch.equal(tensor, own[name]) for name, tensor in found.items()):
            return adapter
    raise ValueError(
        f"Expected base={base_folder} and an adapter that makes the release's model of it, found "
        f"{'no adapter' if adapter is None else 'another model'}; name the base that it was "
        "trained from, or leave it out to write the whole model."
    )


def check_release_folder(folder: Path) -> None:
    """Raise ValueError unless a release may be written there: nothing but a release is replaced."""
    strange = strange_file(folder, _RELEASE)
    if strange is None and folder.exists() and not (folder / _CARD).exists():
        strange = next((path.name for path in sorted(folder.iterdir())), None)
    if strange is not None:
        raise ValueError(
            f"Expected out={folder} to be new, empty or an earlier release, which is replaced; "
            f"found {strange!r} in it. Choose another folder."
        )


def check_same_tokenizer(folder: Path, tokenizer: SpectralTokenizer) -> None:
    """Raise ValueError unless a folder holds this tokenizer: another one's codes mean others."""
    found, own = load_tokenizer(folder), as_saved(tokenizer, _TOKENIZER_FLOAT32)
    if found.config != tokenizer.config or any(
        not torch.equal(tensor, own[name].float()) for name, tensor in found.state_dict().items()
    ):
        raise ValueError(
            f"Expected tokenizer={folder} to be the one that the model was trained with, found "
            "another; leave the option out, or name that one's folder."
        )


def load_card(folder: Path) -> PrivacyCard:
    """A release's card, with its epsilon recomputed from its ledger: a false one, or one of another
    release, is refused by ValueError.
    """
    card = PrivacyCard.from_json(read_json(folder / _CARD))
    card.verify()
    named = read_config(folder).get("card_sha256")
    if named is None:
        raise ValueError(
            f"Expected the {CONFIG} of {folder.name} to name its card; it was saved before "
            f'releases did. If this card is its own, add "card_sha256": "{card.sha256}" to it, or '
            "get the release again."
        )
    if named != card.sha256:
        raise ValueError(
            f"Expected the card {named!s:.12} that the {CONFIG} of {folder.name} names, found "
            f"{card.sha256:.12}; it is not of these weights, get the release again."
        )
    return card


def named_weights_sha256(folder: Path) -> str:
    """SHA-256 of the weights that a release names as its own, of the whole model: results that were
    measured name it. `load_release` refuses other files than a whole release names, and of an
    adapter those of another base or adapter than make this model.
    """
    return str(read_config(folder)["weights_sha256"])


def load_release(name_or_path: str | Path, *, called: str | None = None) -> Release:
    """Read a release in float32. A false card or another tokenizer than it names is refused.

    `called` is what an error calls it, by default by its name. Raises FileNotFoundError or
    ValueError.
    """
    folder = find_checkpoint(name_or_path)
    with _refused(called or f"checkpoint={str(name_or_path)!r}"):
        card, config = load_card(folder), read_config(folder)
        named, based = config["weights_sha256"], "base" in config
        held = config["adapter_sha256"] if based else named
        if (found := weights_sha256(folder)) != held:
            raise ValueError(
                f"Expected the weights {held[:12]}... in {folder.name}, found {found[:12]}...; "
                "the card is not theirs, get the release again."
            )
        tokenizer_folder = (folder / config["tokenizer"]).resolve()
        if (found := module_sha256(tokenizer_folder)) != config["tokenizer_sha256"]:
            raise ValueError(
                f"Expected the tokenizer {config['tokenizer_sha256'][:12]}... for {folder.name}, "
                f"found {found[:12]}... in {tokenizer_folder.name}; restore the one it was trained "
                "with."
            )
        if not isinstance(upsampler := config.get("upsampler"), str | None):
            raise TypeError(f"upsampler={upsampler!r}, which is no name")
        sizes = ModelConfig.from_json(config["model"])
        held_in = _find_base(folder, config) if based else folder
        model = load_module(lambda: WaveletGPT(sizes), held_in, sizes.blocks)
        adapter = load_tensors(folder) if based else None
        if adapter is not None:
            merge_adapter(model, adapter)
        return Release(
            model=model,
            tokenizer=load_tokenizer(tokenizer_folder),
            card=card,
            text_encoder=TextEncoderId.from_json(config["text_encoder"]),
            adapter=adapter,
            upsampler=upsampler,
            weights_sha256=named,
        )


def base_folder(folder: Path) -> Path | None:
    """The folder of the release that an adapter is merged into; None of a whole release."""
    base = read_config(folder).get("base")
    return None if base is None else (folder / base).resolve()


def _find_base(folder: Path, config: dict[str, Any]) -> Path:
    """The folder of an adapter's base, which must be the one that it names, public and whole."""
    base = (folder / config["base"]).resolve()
    if not (base / _CARD).exists():
        raise FileNotFoundError(
            f"Expected the base of {folder.name}, which is an adapter, in {base}, found none; put "
            "it there, or get the whole model."
        )
    expected, found = config["base_sha256"], weights_sha256(base)
    if not expected == found == named_weights_sha256(base):
        raise ValueError(
            f"Expected the base {expected[:12]}... of {folder.name} in {base}, found weights "
            f"{found[:12]}...; restore the one it was trained from, or get the whole model."
        )
    if (epsilon := load_card(base).epsilon) != 0:
        raise ValueError(
            f"Expected the base of {folder.name} to be public, found epsilon={epsilon}, which its "
            "card would be missing; it is refused."
        )
    return base


@contextmanager
def _refused(called: str) -> Iterator[None]:
    """What a release must not be, by a ValueError that says so."""
    try:
        yield
    except (ArithmeticError, AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"Expected {called} to be a release of dpwg, found {type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}; it is refused."
        ) from error


def load_public(name_or_path: str | Path) -> Release:
    """Read a release to train from. One that saw sensitive records is refused.

    A card counts the steps since the public model only; what a private base had spent, or had never
    bounded, would be missing from it.
    """
    release = load_release(name_or_path)
    if release.card.epsilon != 0:
        raise ValueError(
            f"Expected base={str(name_or_path)!r} to be public, found epsilon="
            f"{release.card.epsilon}; start from a checkpoint that saw no sensitive record."
        )
    return release


def describe(name: str) -> dict[str, Any]:
    """What `list` shows of a checkpoint; epsilon is None where there is no bound."""
    folder = find_checkpoint(name)
    with _refused(f"checkpoint={name!r}"), torch.device("meta"):
        card, config = load_card(folder), read_config(folder)
        model = WaveletGPT(ModelConfig.from_json(config["model"]))
    return {
        "name": name,
        "epsilon": card.epsilon,
        "delta": card.delta,
        "accountant": card.accountant,
        "steps": card.steps,
        "sampling_rate": card.sampling_rate,
        "noise_multiplier": card.noise_multiplier,
        "max_grad_norm": card.max_grad_norm,
        "records": card.records,
        "dataset": card.dataset,
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
    }


def _by_name(name: str) -> tuple[str, bool, float, str]:
    """Order within a data set: public first, then by epsilon; other units than images last."""
    family, _, last = name.rpartition("/")
    unit, found, epsilon = last.rpartition("eps-")
    try:
        return family, bool(unit), float(epsilon) if found else 0.0, last
    except ValueError:
        return family, bool(unit), 0.0, last
