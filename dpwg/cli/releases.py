"""`list`, `push` and `space`: releases shown and published."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from dpwg.cli.console import warn

WithoutBound = Annotated[
    bool, tyro.conf.arg(help="publish without privacy too: nothing in the records is sensitive")
]


def list() -> Any:
    """Show every checkpoint with its privacy figures."""
    from dpwg.release.folder import checkpoint_names, describe

    rows = []
    for name in checkpoint_names():
        try:
            rows.append(describe(name))
        except (ValueError, OSError) as error:
            warn(f"{name} is damaged and left out: {error}")
    return rows


def push(
    checkpoint: Positional[str],
    name: Positional[str],
    /,
    *,
    revision: str | None = None,
    private: bool = False,
    license: str | None = None,
    without_bound: WithoutBound = False,
) -> Any:
    """Publish a checkpoint with its model card on the Hugging Face Hub; never training state.

    Args:
        checkpoint: a local checkpoint's name, or a release folder
        name: where to, as user/name
        revision: branch; main by default
        private: hide the repository from others
        license: of the weights; apache-2.0, or other where public inputs are for research only
    """
    from dpwg.release.folder import load_release
    from dpwg.release.hub import push as publish

    address = publish(
        load_release(checkpoint),
        name,
        revision=revision,
        private=private,
        license=license,
        without_bound=without_bound,
    )
    return {"checkpoint": checkpoint, "commit": address}


def space(
    *, out: Path, checkpoints: tuple[str, ...] = (), without_bound: WithoutBound = False
) -> Any:
    """Write the app as a folder for Hugging Face Spaces.

    Args:
        out: a new folder
        checkpoints: all that have a bound, by default
    """
    from dpwg.release.space import write_space

    files = write_space(out, checkpoints, without_bound=without_bound)
    return {"folder": str(out), "files": len(files), "bytes": sum(files.values())}
