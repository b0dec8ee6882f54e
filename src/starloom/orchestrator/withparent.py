"""Processes that do not outlive those that started them."""

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
"""prctl(2)."""


def die_with_parent(parent: int) -> None:
    """Has the kernel end this process with the thread of process `parent` that started it, where it can: on Linux.

    For what would not hear the end of its input, because it hangs, or because others of its kind hold the pipe open. Ends it
    at once if that process has ended.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
