"""The app as a folder that can be pushed to Hugging Face Spaces as it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from dpwg.config import read_json
from dpwg.modules import checkpoint_root
from dpwg.release.folder import (
    RERANKER,
    base_folder,
    checkpoint_names,
    find_checkpoint,
    load_card,
    load_release,
    reranker_for,
    save_release,
    save_reranker,
    save_tokenizer,
)
from dpwg.upsampling.superresolution import (
    SUPERRESOLUTIONS,
    UPSAMPLER,
    find_superresolution,
    load_superresolution,
    save_superresolution,
)

ROOT = Path(__file__).resolve().parents[2]
FILES = (
    *("README.md", "requirements.txt", "app.py", "LICENSE", "NOTICE"),
    *("examples/captions.txt", "examples/captions-celeba.txt"),
    *("docs/sheet.png", "docs/results/held-out.json", "docs/results/held-out-celeba.json"),
    "docs/results/colours.json",
    "docs/results/audit-engine.json",
    *(f"docs/results/membership/faces-eps-{name}.json" for name in ("1", "3", "10", "inf")),
)
"""What the app runs on and shows beside the package, file by file: what else lies there stays."""
LARGE = "".join(
    f"*.{kind} filter=lfs diff=lfs merge=lfs -text\n" for kind in ("safetensors", "png")
)
"""The hub takes binary files through Git LFS only."""


def write_space(
    folder: Path, names: Sequence[str] = (), *, without_bound: bool = False
) -> dict[str, int]:
    """Write the app with the named checkpoints, all by default; returns bytes by file name.

    An adapter takes its base with it, named or not: several are far smaller so than whole models.

    Checkpoints are loaded, which checks them, and written anew, so that nothing that lies beside
    them travels; those with the same tokenizer share it. One without a bound on epsilon is left
    out, or refused if named, unless `without_bound` says that nothing in its records is sensitive.
    The folder must be new; it appears under its name only when whole. Links are refused.
    """
    if missing := [name for name in FILES if not (ROOT / name).is_file()]:
        raise FileNotFoundError(f"Expected {missing} beside the package; run this in a checkout.")
    package = [path for kind in ("py", "json", "md", "css") for path in (ROOT / "dpwg").rglob(f"*.{kind}")]
    paths = (*map(ROOT.joinpath, FILES), *sorted(package))
    if links := [path.relative_to(ROOT).as_posix() for path in paths if path.resolve() != path]:
        raise ValueError(f"Expected files of this checkout, found links {links}; remove them.")
    if folder.exists():
        raise ValueError(f"Expected out={folder} to be new; remove it, or name another folder.")
    known = checkpoint_names()
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"Expected checkpoints={unknown} in {known}.")
    chosen = list(names) or known
    unbound = [name for name in chosen if load_card(find_checkpoint(name)).epsilon is None]
    if unbound and not without_bound:
        if names:
            raise ValueError(
                f"Expected checkpoints with a bound on epsilon, found {unbound}: their training "
                "records may be reproduced. Declare that nothing in them is sensitive."
            )
        chosen = [name for name in chosen if name not in unbound]
    if not chosen:
        raise ValueError("Expected at least one checkpoint; make one, see `python -m dpwg list`.")
    chosen = list(dict.fromkeys([*filter(None, map(_base, chosen)), *chosen]))
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for path in paths:
            copy = partial / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        (partial / ".gitattributes").write_text(LARGE)
        _write_checkpoints(partial / "checkpoints", chosen)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _write_checkpoints(root: Path, names: Sequence[str]) -> None:
    save_superresolution(root / UPSAMPLER, load_superresolution())
    shared: dict[str, Path] = {}  # where the tokenizer of each digest is
    for name in names:
        release = load_release(name)
        if release.upsampler == "photo" and not (root / SUPERRESOLUTIONS["photo"]).exists():
            save_superresolution(
                root / SUPERRESOLUTIONS["photo"],
                load_superresolution(find_superresolution("photo")),
            )
        if not (root / RERANKER).exists() and (reranker := reranker_for(release)) is not None:
            save_reranker(root / RERANKER, reranker.model, reranker.public_input)
        used = read_json(find_checkpoint(name) / "config.json")["tokenizer_sha256"]
        if used not in shared:
            family = root / name.rpartition("/")[0]
            shared[used] = (family if (root / "tokenizer").exists() else root) / "tokenizer"
            save_tokenizer(shared[used], release.tokenizer)
        base = _base(name)
        save_release(
            root / name,
            release,
            tokenizer_folder=shared[used],
            base_folder=None if base is None else root / base,
        )


def _base(name: str) -> str | None:
    """The checkpoint that another one, an adapter, is merged into; None where it is not among
    them, or the other is whole.
    """
    base, top = base_folder(find_checkpoint(name)), checkpoint_root().resolve()
    if base is None or not base.is_relative_to(top):
        return None
    return base.relative_to(top).as_posix()
