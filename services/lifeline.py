"""A process that ends when the one that started it does, whatever becomes of that."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Have this process told to end (SIGTERM) when its parent dies, even by SIGKILL.

    Parameters
    ----------
    parent : int
        Process id of the parent, so that one that died before this call is noticed. On systems other than
        Linux nothing is arranged: there the supervisor's own clean end has to do.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit("the supervisor is gone")
