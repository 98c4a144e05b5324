"""The app as a folder that can be pushed to Hugging Face Spaces as it is."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from dpwg.config import read_json
from dpwg.files import whole
from dpwg.modules import CONFIG, SHIPPED_NAMES, checkpoint_root
from dpwg.release.folder import (
    base_of,
    checkpoint_names,
    find_checkpoint,
    load_card,
    load_release,
    save_release,
)
from dpwg.release.shared import RERANKER, reranker_for, save_reranker, save_tokenizer
from dpwg.upsampling.superresolution import (
    SUPERRESOLUTIONS,
    find_superresolution,
    load_superresolution,
    save_superresolution,
)

ROOT = Path(__file__).resolve().parents[2]
FILES = (
    *("README.md", "requirements.txt", "app.py", "LICENSE", "NOTICE"),
    *("examples/captions.txt", "examples/captions-celeba.txt"),
    *("docs/app.png", "docs/results/held-out.json", "docs/results/held-out-celeba.json"),
    "docs/results/colours.json",
    "docs/results/audit-engine.json",
    *(f"docs/results/membership/faces-eps-{name}.json" for name in ("1", "3", "10", "inf")),
)
"""What the app runs on and shows beside the package, file by file: what else lies there stays."""
KINDS = ("py", "typed", "json", "md", "css", "jinja")
"""Files of the package."""
LARGE = "".join(
    f"*.{kind} filter=lfs diff=lfs merge=lfs -text\n" for kind in ("safetensors", "png")
)
"""The hub takes binary files through Git LFS only."""


def write_space(
    folder: Path, names: Sequence[str] = (), *, without_bound: bool = False
) -> dict[str, int]:
    """Write the app with the named checkpoints, the shipped ones by default; returns bytes by file.

    An adapter takes its base with it, named or not: several are far smaller so than whole models.

    Checkpoints are loaded, which checks them, and written anew, so that nothing that lies beside
    them travels. One without a bound on epsilon is left out, or refused if named, unless
    `without_bound` says that nothing in its records is sensitive. The folder must be new; it
    appears under its name only when whole. Links are refused.
    """
    package = [path for kind in KINDS for path in (ROOT / "dpwg").rglob(f"*.{kind}")]
    paths = [*map(ROOT.joinpath, FILES), *sorted(package)]
    wrong = [p for p in paths if not p.is_file() or p.resolve() != p]
    if wrong:
        listed = [path.relative_to(ROOT).as_posix() for path in wrong]
        raise ValueError(f"Expected the files of a checkout, found links or nothing at {listed}.")
    if folder.exists():
        raise ValueError(f"Expected out={folder} to be new; remove it, or name another folder.")
    known = checkpoint_names()
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"Expected checkpoints={unknown} in {known}.")
    chosen = list(names) or [name for name in SHIPPED_NAMES if name in known]
    unbound = [name for name in chosen if load_card(find_checkpoint(name)).epsilon is None]
    if unbound and names and not without_bound:
        raise ValueError(
            f"Expected checkpoints with a bound on epsilon, found {unbound}: their training "
            "records may be reproduced. Declare that nothing in them is sensitive."
        )
    chosen = [name for name in chosen if without_bound or name not in unbound]
    if not chosen:
        raise ValueError(f"Expected checkpoints to take with it; name some of {known}.")
    with whole(folder) as partial:
        for path in paths:
            copy = partial / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        (partial / ".gitattributes").write_text(LARGE)
        for name in dict.fromkeys([*filter(None, map(base_of, chosen)), *chosen]):
            _write_checkpoint(partial / "checkpoints", name)
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _write_checkpoint(root: Path, name: str) -> None:
    """Write a checkpoint, and what it shares with others if that is not there yet."""
    release, folder, top = load_release(name), find_checkpoint(name), checkpoint_root().resolve()
    for upsampler in SUPERRESOLUTIONS.keys() & {"wavelet", release.upsampler or ""}:
        if not (place := root / SUPERRESOLUTIONS[upsampler]).exists():
            save_superresolution(place, load_superresolution(find_superresolution(upsampler)))
    if not (root / RERANKER).exists():
        reranker = reranker_for(release.tokenizer, release.text_encoder)
        if reranker is not None:
            save_reranker(root / RERANKER, reranker.model, reranker.public_input)
    tokenizer = (folder / read_json(folder / CONFIG)["tokenizer"]).resolve()
    shared = None
    if tokenizer.is_relative_to(top) and not tokenizer.is_relative_to(folder.resolve()):
        shared = root / tokenizer.relative_to(top)
        if not shared.exists():
            save_tokenizer(shared, release.tokenizer)
    base = base_of(name) if release.adapter is not None else None
    save_release(
        root / name,
        release,
        tokenizer_folder=shared,
        base_folder=None if base is None else root / base,
    )
