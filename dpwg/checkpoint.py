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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dpwg.config import (
    MatcherConfig,
    ModelConfig,
    SuperResolutionConfig,
    TextEncoderId,
    TokenizerConfig,
    read_json,
)
from dpwg.matcher import Matcher
from dpwg.model import WaveletGPT
from dpwg.privacy.card import PrivacyCard
from dpwg.superresolution import SuperResolution
from dpwg.tokenizer import SpectralTokenizer

M = TypeVar("M", bound=nn.Module)
FORMAT = 1
SHARD_BYTES = 9_000_000
UPSAMPLER = "upsampler"
"""The folder of the super-resolution model among the checkpoints, which share it."""
MATCHER = "matcher"
"""The folder of the matcher, likewise."""
_CARD = "privacy_card.json"
_RELEASE = ("config.json", _CARD, "*.safetensors", "*.safetensors.index.json", "tokenizer")
"""What a release's folder may hold."""
_TOKENIZER_FLOAT32 = ("codebooks.", "spread_S")


@dataclass(frozen=True, kw_only=True)
class Release:
    """A trained WaveletGPT with what it needs to be used and to be judged.

    `weights_sha256` is the digest of the files that it was read from; None where it was not.
    """

    model: WaveletGPT
    tokenizer: SpectralTokenizer
    card: PrivacyCard
    text_encoder: TextEncoderId
    weights_sha256: str | None = None


SHIPPED = Path(__file__).resolve().parent.parent / "checkpoints"


def checkpoint_root() -> Path:
    """Where named checkpoints live: DPWG_CHECKPOINTS, or `checkpoints/` beside the package."""
    return Path(os.environ.get("DPWG_CHECKPOINTS") or SHIPPED)


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
    """Write a tokenizer's weights (bfloat16; codebooks float32) and configuration."""
    _save_weights(folder, tokenizer, keep=_TOKENIZER_FLOAT32)
    _write_json(folder / "config.json", {"format": FORMAT, **tokenizer.config.to_json()})


def load_tokenizer(folder: Path) -> SpectralTokenizer:
    """Read a tokenizer that `save_tokenizer` wrote, in float32, ready to use."""
    values = read_json(folder / "config.json")
    values.pop("format", None)
    config = TokenizerConfig.from_json(values)
    blocks = config.encoder_blocks + config.decoder_blocks
    tokenizer = _built(lambda: SpectralTokenizer(config), folder, blocks)
    return tokenizer.eval().requires_grad_(False)


def save_superresolution(folder: Path, model: SuperResolution) -> None:
    """Write a super-resolution model's weights (bfloat16) and configuration."""
    _save_weights(folder, model, keep=())
    _write_json(folder / "config.json", {"format": FORMAT, **model.config.to_json()})


def load_superresolution(folder: Path | None = None) -> SuperResolution:
    """Read a model that `save_superresolution` wrote, in float32, ready to use.

    Without a folder it is that of the checkpoints in use, or else the one that is shipped.
    """
    if folder is None:
        named = checkpoint_root() / UPSAMPLER
        folder = named if named.exists() else SHIPPED / UPSAMPLER
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"Expected a super-resolution model in {folder}; make it with `python -m dpwg "
            "upsampler`, or choose the upsampler 'bicubic'."
        )
    values = read_json(folder / "config.json")
    values.pop("format", None)
    config = SuperResolutionConfig.from_json(values)
    model = _built(lambda: SuperResolution(config), folder, config.blocks + config.residuals)
    return model.eval().requires_grad_(False)


def save_matcher(folder: Path, model: Matcher) -> None:
    """Write a matcher's weights (bfloat16) and configuration."""
    _save_weights(folder, model, keep=())
    _write_json(folder / "config.json", {"format": FORMAT, **model.config.to_json()})


def load_matcher(folder: Path) -> Matcher:
    """Read a matcher that `save_matcher` wrote, in float32, ready to use."""
    values = read_json(folder / "config.json")
    values.pop("format", None)
    config = MatcherConfig.from_json(values)
    model = _built(lambda: Matcher(config), folder, config.blocks)
    return model.eval().requires_grad_(False)


def find_matcher() -> Path | None:
    """The folder of the matcher among the checkpoints in use, or else of the shipped one."""
    folders = (checkpoint_root() / MATCHER, SHIPPED / MATCHER)
    return next((folder for folder in folders if folder.exists()), None)


def matcher_for(release: Release) -> Matcher | None:
    """The matcher that was trained with the release's tokenizer and text encoder, if any."""
    if (folder := find_matcher()) is None:
        return None
    model, encoder = load_matcher(folder), release.text_encoder
    reads = (model.config.codebook, model.config.text_encoder, model.config.text_tokens)
    own = (codebook_digest(release.tokenizer), encoder.digest, encoder.max_tokens)
    return model if reads == own else None


def codebook_digest(tokenizer: SpectralTokenizer) -> str:
    """SHA-256 of the coarsest codebook, as a matcher names the one whose images it knows."""
    vectors_KD = tokenizer.books()[0].vectors_KD.detach().float().cpu().contiguous()
    return hashlib.sha256(vectors_KD.numpy().tobytes()).hexdigest()


def save_release(folder: Path, release: Release, *, tokenizer_folder: Path | None = None) -> None:
    """Write a release after checking its card; the tokenizer goes inside, or is referred to.

    The folder appears under its name only when whole, and replaces an earlier release at once.
    Raises ValueError as `check_release_folder` does, and for another tokenizer than the release's.
    """
    folder = folder.resolve()
    check_release_folder(folder)
    if tokenizer_folder is not None:
        check_same_tokenizer(tokenizer_folder, release.tokenizer)
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
        "tokenizer_sha256": tokenizer_digest(tokenizer_folder or partial / "tokenizer"),
        "text_encoder": release.text_encoder.to_json(),
    }
    _write_json(partial / "config.json", config)
    _write_json(partial / _CARD, release.card.to_json())
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def check_release_folder(folder: Path) -> None:
    """Raise ValueError unless a release may be written there: nothing but a release is replaced."""
    if folder.is_file():
        raise ValueError(f"Expected out={folder} to be a folder, found a file; choose another.")
    files = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    strange = [name for name in files if not any(fnmatch(name, own) for own in _RELEASE)]
    if strange or (files and _CARD not in files):
        raise ValueError(
            f"Expected out={folder} to be new, empty or an earlier release, which is replaced; "
            f"found {[*strange, *files][0]!r} in it. Choose another folder."
        )


def check_same_tokenizer(folder: Path, tokenizer: SpectralTokenizer) -> None:
    """Raise ValueError unless a folder holds this tokenizer: another one's codes mean others."""
    found, own = load_tokenizer(folder), _as_saved(tokenizer, _TOKENIZER_FLOAT32)
    if found.config != tokenizer.config or any(
        not torch.equal(tensor, own[name].float()) for name, tensor in found.state_dict().items()
    ):
        raise ValueError(
            f"Expected tokenizer={folder} to be the one that the model was trained with, found "
            "another; leave the option out, or name that one's folder."
        )


def load_card(folder: Path) -> PrivacyCard:
    """A release's card, with its epsilon recomputed from its ledger: a false one is refused."""
    card = PrivacyCard.from_json(read_json(folder / _CARD))
    card.verify()
    return card


def weights_digest(folder: Path) -> str:
    """SHA-256 of the weights that a release names as its own; `load_release` refuses others."""
    return str(read_json(folder / "config.json")["weights_sha256"])


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 of a tokenizer's configuration and weights, as releases name theirs."""
    configuration = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    return hashlib.sha256((configuration + _digest(folder)).encode()).hexdigest()


def load_release(name_or_path: str | Path) -> Release:
    """Read a release in float32. A false card or another tokenizer than it names is refused."""
    folder = find_checkpoint(name_or_path)
    card, config = load_card(folder), read_json(folder / "config.json")
    if (found := _digest(folder)) != config["weights_sha256"]:
        raise ValueError(
            f"Expected the weights {config['weights_sha256'][:12]}... in {folder.name}, found "
            f"{found[:12]}...; the card is not theirs, get the release again."
        )
    tokenizer_folder = (folder / config["tokenizer"]).resolve()
    if (found := tokenizer_digest(tokenizer_folder)) != config["tokenizer_sha256"]:
        raise ValueError(
            f"Expected the tokenizer {config['tokenizer_sha256'][:12]}... for {folder.name}, found "
            f"{found[:12]}... in {tokenizer_folder.name}; restore the one it was trained with."
        )
    sizes = ModelConfig.from_json(config["model"])
    model = _built(lambda: WaveletGPT(sizes), folder, sizes.blocks)
    return Release(
        model=model.eval().requires_grad_(False),
        tokenizer=load_tokenizer(tokenizer_folder),
        card=card,
        text_encoder=TextEncoderId.from_json(config["text_encoder"]),
        weights_sha256=config["weights_sha256"],
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
    card, config = load_card(folder), read_json(folder / "config.json")
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
    """Safetensors of `_as_saved`, split into shards."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.safetensors"):
        old.unlink()
    save_torch_state_dict(_as_saved(module, keep), folder, max_shard_size=SHARD_BYTES)


def _as_saved(module: nn.Module, keep: tuple[str, ...]) -> dict[str, Tensor]:
    """A module's tensors in bfloat16; those whose names begin with one of `keep` stay float32."""
    return {
        name: tensor.float() if name.startswith(keep) else tensor.bfloat16()
        for name, tensor in module.state_dict().items()
    }


def _built(make: Callable[[], M], folder: Path, blocks: int) -> M:
    """A module with a folder's weights, made only after the weights are seen to be of its sizes.

    A configuration from elsewhere could ask for more memory than there is.
    """
    tensors = _load_weights(folder)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    expected: dict[str, torch.Size] = {}
    if blocks <= len(tensors):
        with torch.device("meta"):
            expected = {name: tensor.shape for name, tensor in make().state_dict().items()}
    if found != expected:
        raise ValueError(
            f"Expected weights in {folder.name} of the sizes that its config.json tells, found "
            "others; get the release again."
        )
    module = make()
    module.load_state_dict(tensors)
    return module


def _load_weights(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in _shards(folder):
        try:
            tensors |= load_file(file)
        except SafetensorError as error:
            raise ValueError(
                f"Expected {file.name} to be safetensors ({error}); anything else is never read."
            ) from error
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
