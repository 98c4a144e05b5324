"""How the programs of this package start: before any of its packages is imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def launching() -> Iterator[None]:
    """Import and run a program inside: a missing package ends it in one line, with status 2."""
    try:
        yield
    except ModuleNotFoundError as error:  # without a name it is one that a verb tells of
        if not error.name:
            raise
        print(
            f"dpwg: Expected the package {error.name!r} to be installed for {sys.executable}; "
            "activate the environment that has it, or run `pip install -r requirements.txt`.",
            file=sys.stderr,
        )
        sys.exit(2)
