"""How a training process holds its memory."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors for the next ones; False where it cannot.

    glibc gives every large block back to the kernel, which clears its pages anew at the next step's
    same allocation: up to a tenth of a training step on a CPU. For processes that train: what was
    held at the peak stays held. Source: mallopt(3).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another libc
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**26))
    return all(mallopt(name, value) == 1 for name, value in settings)
