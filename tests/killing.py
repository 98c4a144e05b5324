"""Stops work before any line of a module, as a signal that cannot be caught would."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any


class Killed(BaseException):
    """Nothing catches it, as nothing catches a signal that cannot be caught."""


def killed_before_line(line: int, module: ModuleType, call: Callable[[], None]) -> bool:
    """Whether `call` came to that many lines of the module, and was stopped there."""
    left = line

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != module.__file__:
            return None
        left -= event == "line"
        if left < 0:
            raise Killed
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except Killed:
        return True
    finally:
        sys.settrace(before)
    return False
