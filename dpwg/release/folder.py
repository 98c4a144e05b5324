"""Releases on disk: weights, configuration and privacy card. Training state is elsewhere.

A release folder holds `config.json`, `privacy_card.json` and safetensors files of at most 9 MB,
either of the whole model or of an adapter (`release/adapters`) to the public release that its
`base` names; the tokenizer is a folder of its own, which several releases can share. Nothing here
reads or writes a pickle, and a release is refused whose card does not follow from its ledger or is
another's.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpwg.config import Config, TextEncoderId, read_json
from dpwg.files import whole
from dpwg.method.families import DEFAULT_FAMILY, FAMILIES
from dpwg.method.generator import Generator
from dpwg.method.tokenizer import SpectralTokenizer
from dpwg.modules import (
    CONFIG,
    FILES,
    FORMAT,
    as_saved,
    check_replaced,
    checkpoint_root,
    load_module,
    load_tensors,
    module_sha256,
    read_config,
    same_tensors,
    save_weights,
    weights_sha256,
    write_json,
)
from dpwg.privacy.card import PrivacyCard
from dpwg.release.adapters import merge_adapter, save_adapter
from dpwg.release.shared import check_same_tokenizer, load_tokenizer, save_tokenizer

_CARD = "privacy_card.json"
_MODEL_FLOAT32 = ("codebook_",)
_LISTED = (
    *("epsilon", "delta", "accountant", "steps", "sampling_rate", "noise_multiplier"),
    *("max_grad_norm", "records", "dataset"),
)
"""What of a card a listing shows, in this order."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """A trained generator with what it needs to be used and to be judged.

    `adapter` is what made the model of its public base, see `release/adapters`; None where every
    parameter was trained, or where it was saved whole. `upsampler` names the one that suits its
    pictures; None is the default one. `weights_sha256` is the digest of the model's files as they
    are when it is saved whole, and `base_sha256` that of its base; None where they are not known.
    """

    model: Generator
    tokenizer: SpectralTokenizer
    card: PrivacyCard
    text_encoder: TextEncoderId
    family: str = DEFAULT_FAMILY
    adapter: dict[str, Tensor] | None = None
    upsampler: str | None = None
    weights_sha256: str | None = None
    base_sha256: str | None = None


def checkpoint_names(root: Path | None = None) -> list[str]:
    """Names of all releases below the root: of each data set public first, then by epsilon."""
    root = root or checkpoint_root()
    cards = [path.parent for path in root.glob(f"**/{_CARD}")]
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


def base_of(name: str) -> str | None:
    """The public checkpoint that another one states as its base; None where it is not here."""
    config = read_config(find_checkpoint(name))
    root = checkpoint_root().resolve()
    if "base" in config:
        base = (find_checkpoint(name) / config["base"]).resolve()
        return base.relative_to(root).as_posix() if base.is_relative_to(root) else None
    stated = config.get("base_sha256")
    others = (other for other in checkpoint_names() if stated and other != name)
    return next((n for n in others if named_weights_sha256(find_checkpoint(n)) == stated), None)


def save_release(
    folder: Path,
    release: Release,
    *,
    tokenizer_folder: Path | None = None,
    base_folder: Path | None = None,
) -> None:
    """Write a release after checking its card; the tokenizer goes inside, or is referred to.

    With a `base_folder`, that of the public release that it was trained from, its adapter is
    written alone, which needs the base where it is loaded; without, the whole model. Raises
    ValueError as `check_release_folder` does, and for another tokenizer or base than the release's.
    """
    folder = folder.resolve()
    check_release_folder(folder)
    if tokenizer_folder is not None:
        check_same_tokenizer(tokenizer_folder, release.tokenizer)
    release.card.verify()
    adapter = None if base_folder is None else _adapter_to(base_folder, release)
    with whole(folder) as partial:
        # The same model has the same digest, however it is kept: what was measured stays its own.
        save_weights(partial, release.model, keep=_MODEL_FLOAT32)
        parts: dict[str, Any] = {"weights_sha256": weights_sha256(partial)}
        if release.base_sha256 is not None:
            parts["base_sha256"] = release.base_sha256
        if base_folder is not None and adapter is not None:
            shutil.rmtree(partial)
            save_adapter(partial, adapter)
            parts |= {
                "base": Path(os.path.relpath(base_folder.resolve(), folder)).as_posix(),
                "base_sha256": weights_sha256(base_folder),
                "adapter_sha256": weights_sha256(partial),
            }
        if release.upsampler is not None:
            parts["upsampler"] = release.upsampler
        if tokenizer_folder is None:
            save_tokenizer(partial / "tokenizer", release.tokenizer)
            inside = "tokenizer"
        else:
            inside = Path(os.path.relpath(tokenizer_folder.resolve(), folder)).as_posix()
        config = {
            "format": FORMAT,
            "family": release.family,
            "dataset": release.card.dataset,
            "model": release.model.config.to_json(),
            "card_sha256": release.card.sha256,
            "tokenizer": inside,
            "tokenizer_sha256": module_sha256(tokenizer_folder or partial / "tokenizer"),
            "text_encoder": release.text_encoder.to_json(),
        }
        write_json(partial / CONFIG, config | parts)
        write_json(partial / _CARD, release.card.to_json())


def check_release_folder(folder: Path) -> None:
    """Raise ValueError unless a release may be written there: nothing but a release is replaced."""
    check_replaced(folder, (*FILES, _CARD, "tokenizer"), (folder / _CARD).exists(), "release")


def load_card(folder: Path) -> PrivacyCard:
    """A release's card, with its epsilon recomputed from its ledger: a false one, or one of another
    release, is refused by ValueError.
    """
    card = PrivacyCard.from_json(read_json(folder / _CARD))
    card.verify()
    if (named := read_config(folder).get("card_sha256")) != card.sha256:
        raise ValueError(
            f"Expected the card {named!s:.12} that the {CONFIG} of {folder.name} names, found "
            f"{card.sha256:.12}; it is not of these weights, get the release again."
        )
    return card


def named_weights_sha256(folder: Path) -> str:
    """SHA-256 of the weights that a release names as its own, of the whole model: results that were
    measured name it. `load_release` refuses a release whose model has another.
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
        based = "base" in config
        _check_digest(folder, config["adapter_sha256" if based else "weights_sha256"], "weights")
        tokenizer_folder = (folder / config["tokenizer"]).resolve()
        _check_digest(tokenizer_folder, config["tokenizer_sha256"], "tokenizer", module_sha256)
        if not isinstance(upsampler := config.get("upsampler"), str | None):
            raise TypeError(f"upsampler={upsampler!r}, which is no name")
        model = _load_model(_find_base(folder, config) if based else folder, config)
        if (adapter := load_tensors(folder) if based else None) is not None:
            merge_adapter(model, adapter)
            _check_digest(folder, config["weights_sha256"], "merged weights", lambda _: _sha(model))
        return Release(
            model=model,
            tokenizer=load_tokenizer(tokenizer_folder),
            card=card,
            text_encoder=TextEncoderId.from_json(config["text_encoder"]),
            family=config.get("family", DEFAULT_FAMILY),
            adapter=adapter,
            upsampler=upsampler,
            weights_sha256=config["weights_sha256"],
            base_sha256=config.get("base_sha256"),
        )


def load_public(name_or_path: str | Path) -> Release:
    """Read a release to train from. One that saw sensitive records is refused.

    A card counts the steps since the public model only; what a private base had spent, or had never
    bounded, would be missing from it.
    """
    release = load_release(name_or_path)
    if release.card.kind != "public":
        raise ValueError(
            f"Expected base={str(name_or_path)!r} to be public, found epsilon="
            f"{release.card.epsilon}; start from a checkpoint that saw no sensitive record."
        )
    return release


def describe(name: str) -> dict[str, Any]:
    """What `list` shows of a checkpoint; epsilon is None where there is no bound."""
    folder = find_checkpoint(name)
    with _refused(f"checkpoint={name!r}"), torch.device("meta"):
        card, (sizes, make) = load_card(folder), _generator(read_config(folder))
        parameters = sum(p.numel() for p in make(sizes).parameters())
    return {
        "name": name,
        **{figure: getattr(card, figure) for figure in _LISTED},
        "parameters": parameters,
        "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
    }


def _generator(config: dict[str, Any]) -> tuple[Config, Callable[[Any], Generator]]:
    """The configuration of a release's model, and what makes the model of it."""
    family = FAMILIES[config.get("family", DEFAULT_FAMILY)]
    return family.config.from_json(config["model"]), family.model


def _load_model(folder: Path, config: dict[str, Any]) -> Generator:
    sizes, make = _generator(config)
    return load_module(lambda: make(sizes), folder, sizes.blocks)  # type: ignore[attr-defined]


def _find_base(folder: Path, config: dict[str, Any]) -> Path:
    """The folder of an adapter's base, which must be the one that it names, public and whole."""
    base = (folder / config["base"]).resolve()
    if not (base / _CARD).exists():
        raise FileNotFoundError(
            f"Expected the base of {folder.name}, which is an adapter, in {base}, found none; put "
            "it there, or get the whole model."
        )
    _check_digest(base, config["base_sha256"], "base weights")
    _check_digest(base, config["base_sha256"], "base weights", named_weights_sha256)
    if load_card(base).kind != "public":
        raise ValueError(
            f"Expected the base of {folder.name} to be public: its card would miss what that one "
            "has spent; it is refused."
        )
    return base


def _adapter_to(base_folder: Path, release: Release) -> dict[str, Tensor]:
    """A release's adapter; ValueError unless it makes the release's model of that public base."""
    if (adapter := release.adapter) is not None:
        made = load_public(base_folder).model
        merge_adapter(made, adapter)
        if same_tensors(as_saved(made, _MODEL_FLOAT32), as_saved(release.model, _MODEL_FLOAT32)):
            return adapter
    raise ValueError(
        f"Expected base={base_folder} and an adapter that makes the release's model of it, found "
        f"{'no adapter' if adapter is None else 'another model'}; name the base that it was "
        "trained from, or leave it out to write the whole model."
    )


def _check_digest(
    folder: Path, named: str, what: str, of: Callable[[Path], str] = weights_sha256
) -> None:
    if (found := of(folder)) != named:
        raise ValueError(
            f"Expected the {what} {named:.12}... in {folder.name}, found {found:.12}...; they are "
            "not those that the release names, get it again."
        )


def _sha(model: Generator) -> str:
    """The digest of a model's files, if it were saved whole."""
    with tempfile.TemporaryDirectory() as scratch:
        save_weights(Path(scratch) / "whole", model, keep=_MODEL_FLOAT32)
        return weights_sha256(Path(scratch) / "whole")


@contextmanager
def _refused(called: str) -> Iterator[None]:
    """What a release must not be, by a ValueError that says so."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"Expected {called} to be a release of dpwg, found {type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}; it is refused."
        ) from error


def _by_name(name: str) -> tuple[str, bool, float, str]:
    """Order within a data set: public first, then by epsilon; other units than images last."""
    family, _, last = name.rpartition("/")
    found = re.fullmatch(r"(.*)eps-(inf|[\d.]+)", last)
    return family, bool(found and found[1]), float(found[2]) if found else 0.0, last
