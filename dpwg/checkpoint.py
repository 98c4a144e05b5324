"""Releases on disk: weights, configuration and privacy card. Training state is elsewhere.

A release folder holds `config.json`, `privacy_card.json` and safetensors files of at most 9 MB; the
tokenizer is a folder of its own, which several releases can share. Nothing here reads or writes a
pickle, and a release whose card does not follow from its ledger is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import load_state_dict_from_file, save_torch_state_dict
from torch import Tensor, nn

from dpwg.config import ModelConfig, TokenizerConfig
from dpwg.model import WaveletGPT
from dpwg.privacy.card import PrivacyCard
from dpwg.tokenizer import SpectralTokenizer

FORMAT = 1
SHARD_BYTES = 9_000_000


@dataclass(frozen=True, kw_only=True)
class Release:
    """A trained WaveletGPT with what it needs to be used and to be judged."""

    model: WaveletGPT
    tokenizer: SpectralTokenizer
    card: PrivacyCard
    text_encoder: str


def checkpoint_root() -> Path:
    """Where named checkpoints live: DPWG_CHECKPOINTS, or `checkpoints/` beside the package."""
    beside = Path(__file__).resolve().parent.parent / "checkpoints"
    return Path(os.environ.get("DPWG_CHECKPOINTS") or beside)


def checkpoint_names(root: Path | None = None) -> list[str]:
    """Names of all releases below the root: of each data set public first, then by epsilon."""
    root = root or checkpoint_root()
    cards = [path.parent for path in root.glob("**/privacy_card.json")]
    return sorted((folder.relative_to(root).as_posix() for folder in cards), key=_by_name)


def find_checkpoint(name_or_path: str | Path) -> Path:
    """The folder of a named checkpoint, or of a path to one."""
    root = checkpoint_root()
    named = (root / name_or_path).resolve()
    if named.is_relative_to(root.resolve()) and (named / "privacy_card.json").exists():
        return named
    path = Path(name_or_path)
    if (path / "privacy_card.json").exists():
        return path
    raise FileNotFoundError(
        f"Expected checkpoint={str(name_or_path)!r} to be a release folder or one of "
        f"{checkpoint_names()}."
    )


def save_tokenizer(folder: Path, tokenizer: SpectralTokenizer) -> None:
    """Write a tokenizer's weights (bfloat16; codebooks float32) and configuration."""
    _save_weights(folder, tokenizer, keep=("codebooks.", "spread_S"))
    _write_json(folder / "config.json", {"format": FORMAT, **tokenizer.config.to_json()})


def load_tokenizer(folder: Path) -> SpectralTokenizer:
    """Read a tokenizer that `save_tokenizer` wrote, in float32, ready to use."""
    values = _read_json(folder / "config.json")
    values.pop("format", None)
    tokenizer = SpectralTokenizer(TokenizerConfig.from_json(values))
    tokenizer.load_state_dict(_load_weights(folder))
    return tokenizer.eval().requires_grad_(False)


def save_release(folder: Path, release: Release, *, tokenizer_folder: Path | None = None) -> None:
    """Write a release after checking its card; the tokenizer goes inside, or is referred to.

    The folder appears under its name only when whole, and replaces an earlier release at once.
    """
    release.card.verify()
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    _save_weights(partial, release.model, keep=("codebook_",))
    if tokenizer_folder is None:
        save_tokenizer(partial / "tokenizer", release.tokenizer)
    config = {
        "format": FORMAT,
        "model": release.model.config.to_json(),
        "weights_sha256": _digest(partial),
        "tokenizer": os.path.relpath(tokenizer_folder, folder) if tokenizer_folder else "tokenizer",
        "tokenizer_sha256": _tokenizer_digest(tokenizer_folder or partial / "tokenizer"),
        "text_encoder": release.text_encoder,
    }
    _write_json(partial / "config.json", config)
    _write_json(partial / "privacy_card.json", release.card.to_json())
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def load_card(folder: Path) -> PrivacyCard:
    """A release's card, with its epsilon recomputed from its ledger: a false one is refused."""
    card = PrivacyCard.from_json(_read_json(folder / "privacy_card.json"))
    card.verify()
    return card


def weights_digest(folder: Path) -> str:
    """SHA-256 of the weights that a release names as its own; `load_release` refuses others."""
    return str(_read_json(folder / "config.json")["weights_sha256"])


def load_release(name_or_path: str | Path) -> Release:
    """Read a release in float32. A false card or another tokenizer than it names is refused."""
    folder = find_checkpoint(name_or_path)
    card, config = load_card(folder), _read_json(folder / "config.json")
    if (found := _digest(folder)) != config["weights_sha256"]:
        raise ValueError(
            f"Expected the weights {config['weights_sha256'][:12]}... in {folder.name}, found "
            f"{found[:12]}...; the card is not theirs, get the release again."
        )
    tokenizer_folder = (folder / config["tokenizer"]).resolve()
    if (found := _tokenizer_digest(tokenizer_folder)) != config["tokenizer_sha256"]:
        raise ValueError(
            f"Expected the tokenizer {config['tokenizer_sha256'][:12]}... for {folder.name}, found "
            f"{found[:12]}... in {tokenizer_folder.name}; restore the one it was trained with."
        )
    model = WaveletGPT(ModelConfig.from_json(config["model"]))
    model.load_state_dict(_load_weights(folder))
    return Release(
        model=model.eval().requires_grad_(False),
        tokenizer=load_tokenizer(tokenizer_folder),
        card=card,
        text_encoder=config["text_encoder"],
    )


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
    card, config = load_card(folder), _read_json(folder / "config.json")
    with torch.device("meta"):
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


def _save_weights(folder: Path, module: nn.Module, *, keep: tuple[str, ...]) -> None:
    """bfloat16 safetensors, split into shards; names that begin with one of `keep` stay float32."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.safetensors"):
        old.unlink()
    tensors = {
        name: tensor.float() if name.startswith(keep) else tensor.bfloat16()
        for name, tensor in module.state_dict().items()
    }
    save_torch_state_dict(tensors, folder, max_shard_size=SHARD_BYTES)


def _load_weights(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in _shards(folder):
        tensors |= load_state_dict_from_file(file)
    return {name: tensor.float() for name, tensor in tensors.items()}


def _shards(folder: Path) -> Iterator[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"Expected safetensors files in {folder}, found none.")
    yield from files


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in _shards(folder):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _tokenizer_digest(folder: Path) -> str:
    configuration = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    return hashlib.sha256((configuration + _digest(folder)).encode()).hexdigest()


def _by_name(name: str) -> tuple[str, float, str]:
    """Order within a data set: public first, then by epsilon."""
    family, _, last = name.rpartition("/")
    epsilon = last.removeprefix("eps-")
    try:
        return family, float(epsilon), last
    except ValueError:
        return family, 0.0, last


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text())
    return values
