"""How the programs of this package end: in one plain sentence, never in a traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

REMOTE = ("httpx", "httpx2", "requests", "huggingface_hub")
"""Packages whose errors come from the network."""


def run(program: Callable[[], int | None]) -> int:
    """Run a program, imports and all. Returns its status: 0; 2 after an error; 130 after Ctrl-C.

    A fault of the package itself still ends in a traceback.
    """
    try:
        return program() or 0
    except KeyboardInterrupt as stop:
        print(f"\ndpwg: {str(stop) or 'Stopped.'}", file=sys.stderr)
        return 130
    except SystemExit as end:  # of the parser, which told why, or helped
        return end.code if isinstance(end.code, int) else 2
    except Exception as error:
        if (told := sentence(error)) is None:
            raise
        print(f"dpwg: {told}", file=sys.stderr)
        return 2


def sentence(error: Exception) -> str | None:
    """What went wrong, for a person; None for what is nobody's fault but the package's."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return (
            f"Expected the package {error.name!r} to be installed for {sys.executable}; activate "
            "the environment that has it, or run `pip install -r requirements.txt`."
        )
    place = getattr(error, "filename", None) or "a file"
    match getattr(error, "errno", None):
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return f"The disk is full at {place}; free some space, then run the command again."
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return f"You may not read or write {place}; name another place or change its rights."
        case errno.ENOENT:
            return f"There is no {place}; check the name."
    if "No space left on device" in str(error):  # as safetensors and torch report it
        return "The disk is full; free some space, then run the command again."
    if any(kind.__module__.partition(".")[0] in REMOTE for kind in type(error).__mro__):
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        return f"The Hugging Face Hub did not answer as expected ({first}); check the network."
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "The memory is full; take smaller batches (--micro-batch, --batch)."
    if isinstance(error, ValueError | OSError | ModuleNotFoundError):
        return str(error)
    return None
