"""Functions compiled by numba, kept on disk where that can be done, without a word where it cannot."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

log = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile a function when it is first called; it runs without Python's lock.

    numba keeps what it compiled beside the source, in the user's cache or in ``NUMBA_CACHE_DIR``. Where it
    finds no folder that it may write (a read-only installation), or a disk that is full, compiling anew costs
    seconds at each start and nothing else: frames must not be lost by it.
    """
    try:
        made = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba: cannot cache function, no locator available
        return njit(nogil=True)(function)  # pyright: ignore[reportReturnType]  # called like the function
    _tolerate(made)
    return made  # pyright: ignore[reportReturnType]


def _tolerate(made: Any) -> None:
    """Have a cache that fails be as one that is not there; numba lets its errors out of the first call."""
    cache = made._cache
    load, save = cache.load_overload, cache.save_overload

    def load_if_possible(*arguments: Any) -> Any:
        try:
            return load(*arguments)
        except Exception as error:  # whatever a file holds that was cut short
            log.debug("%s: the cache of compiled functions cannot be read (%s)", made.__name__, error)
            return None

    def save_if_possible(*arguments: Any) -> None:
        try:
            save(*arguments)
        except Exception as error:  # it reads what is there first
            log.debug("%s: the cache of compiled functions cannot be written (%s)", made.__name__, error)

    cache.load_overload, cache.save_overload = load_if_possible, save_if_possible
