"""A trained module as a folder: `config.json` and safetensors files of at most 9 MB.

Nothing here reads or writes a pickle, and no module is made before its weights are seen to be of
the sizes that its configuration tells.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dpwg.config import Config, read_json
from dpwg.files import whole

M = TypeVar("M", bound=nn.Module)
FORMAT = 1
SHARD_BYTES = 9_000_000
CONFIG = "config.json"
FILES = (CONFIG, "*.safetensors", "*.safetensors.index.json")
"""What such a folder may hold."""
PUBLIC_INPUT = "public_input"
"""The configuration's entry, if any, that says what the module was trained on."""
SHIPPED = Path(__file__).resolve().parents[1] / "checkpoints"
_EPSILONS = ("eps-1", "eps-3", "eps-10", "eps-inf")
SHIPPED_NAMES = (
    *(f"faces/{name}" for name in ("public", *_EPSILONS)),
    *(f"celeba/{name}" for name in ("public", *_EPSILONS, "person-eps-10")),
)
"""The checkpoints of this project: a user's own may lie beside them."""


def checkpoint_root() -> Path:
    """Where named checkpoints live: DPWG_CHECKPOINTS, or `checkpoints/` beside the package."""
    return Path(os.environ.get("DPWG_CHECKPOINTS") or SHIPPED)


def save_module(
    folder: Path,
    module: nn.Module,
    config: Config,
    *,
    keep: tuple[str, ...] = (),
    public_input: dict[str, str] | None = None,
) -> None:
    """Write a module's weights (bfloat16; those whose names begin with `keep` float32) and config.

    The folder replaces an earlier one of the same kind. Raises ValueError as `check_module_folder`
    does.
    """
    check_module_folder(folder, type(config))
    told = {} if public_input is None else {PUBLIC_INPUT: public_input}
    with whole(folder.resolve()) as partial:
        save_weights(partial, module, keep=keep)
        write_json(partial / CONFIG, {"format": FORMAT, **config.to_json(), **told})


def check_module_folder(folder: Path, kind: type[Config]) -> None:
    """Raise ValueError unless a module of that kind may be written there: nothing else is replaced.

    What is new, empty, or holds an earlier one and nothing else, may.
    """
    own = {field.name for field in dataclasses.fields(kind)} | {"format", PUBLIC_INPUT}
    path = folder / CONFIG
    check_replaced(folder, FILES, path.exists() and set(read_json(path)) <= own, kind.__name__)


def check_replaced(folder: Path, known: Collection[str], earlier: bool, what: str) -> None:
    """Raise ValueError unless a folder is new or empty, or an `earlier` one of what is written, and
    holds nothing but files of the `known` patterns.
    """
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    strange = [n for n in names if not earlier or not any(fnmatch(n, own) for own in known)]
    if folder.is_file():
        strange = ["a file of that name"]
    if strange:
        raise ValueError(
            f"Expected out={folder} to be a folder that is new, empty or an earlier {what}, which "
            f"is replaced; found {strange[0]!r}. Choose another folder."
        )


def read_config(folder: Path) -> dict[str, Any]:
    """The values of a folder's `config.json`, without its format, which must be this one."""
    values = read_json(folder / CONFIG)
    if (found := values.pop("format", None)) != FORMAT:
        raise ValueError(
            f"Expected format={FORMAT} in the {CONFIG} of {folder.name}, found {found!r}; it was "
            "written by another version of dpwg, or by something else."
        )
    return values


def load_module(make: Callable[[], M], folder: Path, blocks: int) -> M:
    """A module with a folder's weights, in float32, ready to use; it has at least `blocks` tensors.

    It is made only after the weights are seen to be of its sizes: a configuration from elsewhere
    could ask for more memory than there is. Raises ValueError where they are not.
    """
    tensors = {name: tensor.float() for name, tensor in load_tensors(folder).items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    expected: dict[str, torch.Size] = {}
    if blocks <= len(tensors):
        with torch.device("meta"):
            expected = {name: tensor.shape for name, tensor in make().state_dict().items()}
    if found != expected:
        raise ValueError(
            f"Expected weights in {folder.name} of the sizes that its {CONFIG} tells, found "
            "others; get it again."
        )
    module = make()
    module.load_state_dict(tensors)
    return module.eval().requires_grad_(False)


def save_weights(folder: Path, module: nn.Module, *, keep: tuple[str, ...] = ()) -> None:
    """Safetensors of `as_saved` in a new folder, split into shards."""
    folder.mkdir(parents=True)
    save_torch_state_dict(as_saved(module, keep), folder, max_shard_size=SHARD_BYTES)


def as_saved(module: nn.Module, keep: tuple[str, ...]) -> dict[str, Tensor]:
    """A module's tensors in bfloat16; those whose names begin with one of `keep` stay float32."""
    return {
        name: tensor.float() if name.startswith(keep) else tensor.bfloat16()
        for name, tensor in module.state_dict().items()
    }


def same_tensors(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    """Whether tensors of the same names are equal as float32."""
    return all(torch.equal(tensor.float(), others[n].float()) for n, tensor in tensors.items())


def weights_sha256(folder: Path) -> str:
    """SHA-256 of a folder's weights."""
    digest = hashlib.sha256()
    for file in _shards(folder):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def module_sha256(folder: Path) -> str:
    """SHA-256 of a folder's configuration and weights together."""
    configuration = hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest()
    return hashlib.sha256((configuration + weights_sha256(folder)).encode()).hexdigest()


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Values by name as an indented JSON file."""
    path.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")


def load_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder's safetensors files by name, as they are."""
    tensors: dict[str, Tensor] = {}
    for file in _shards(folder):
        try:
            tensors |= load_file(file)
        except SafetensorError as error:
            raise ValueError(
                f"Expected {file.name} to be safetensors ({error}); anything else is never read."
            ) from error
    return tensors


def _shards(folder: Path) -> Iterator[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"Expected safetensors files in {folder}, found none.")
    yield from files
