"""How many frames are recovered at a time where memory does not hold as many as the settings say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

GROW_AFTER = 64  # batches of the smaller size that go well, before twice the size is tried,
LONGEST_GROW_AFTER = 16_384  # and at most, where that fails again and again
PAUSES_SECONDS = (0.25, 0.5, 1.0, 2.0)  # in which memory that somebody else took may come free

_SAID = (
    "can't allocate memory",  # by PyTorch's allocator of main memory
    "out of memory",  # by the CUDA driver
    "ALLOC_FAILED",  # by cuFFT and cuBLAS
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice, a GPU's or the machine's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


def does_not_fit(shape: tuple[int, int], method: str, device: torch.device) -> str:
    """What to say, and to do, where one frame alone is too much."""
    other = (
        "a machine with more memory, fewer workers on this one"
        if device.type == "cpu"
        else "another device (a GPU with more memory, or cpu)"
    )
    return (
        f"out of memory on {device}: one frame of {shape[0]} x {shape[1]} pixels alone does not fit "
        f"({method}); a smaller batch_pixels does not help, {other} or another method does"
    )


def release(device: torch.device) -> None:
    """Give cached memory of a GPU back, so that what is tried next finds it in one piece."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


class BatchKey(NamedTuple):
    """What the memory that a batch takes depends on."""

    config_id: str
    method: str


@dataclass(eq=False, slots=True)
class _Limit:
    frames: int  # at a time
    told: int  # what was last said of it
    grow_after: int = GROW_AFTER
    went_well: int = 0  # batches of that size, one after another
    is_trial: bool = False


class BatchLimits:
    """How many frames go into a batch, for each configuration and method.

    A size that memory does not hold is halved, down to one frame, and that is remembered, so that not every
    batch fails first. It is not kept for ever: memory may have been short because somebody else used it for
    a while, and a GPU that recovers frames one by one is slow. So after ``GROW_AFTER`` batches that went
    well twice the size is tried once; where that fails, the next trial comes after twice as many. Trials
    that fail thus cost less than a hundredth of the time, and less and less.

    Parameters
    ----------
    changed : callable
        ``changed(key, frames, is_less)``: a size that works was found in place of another; once each.
    """

    def __init__(self, changed: Callable[[BatchKey, int, bool], None]) -> None:
        self._changed = changed
        self._limits: dict[BatchKey, _Limit] = {}
        self.halvings = 0  # since the process started

    def frames(self, key: BatchKey, most: int) -> int:
        """How many frames to recover at a time; ``most`` where memory was never short."""
        limit = self._limits.get(key)
        return most if limit is None else min(most, limit.frames)

    def halve(self, key: BatchKey, frames: int, most: int) -> None:
        """So many frames, more than one, did not fit."""
        self.halvings += 1
        limit = self._limits.setdefault(key, _Limit(frames, told=most))
        if limit.is_trial:
            limit.grow_after = min(LONGEST_GROW_AFTER, 2 * limit.grow_after)
        limit.frames, limit.went_well, limit.is_trial = max(1, frames // 2), 0, False

    def went_well(self, key: BatchKey, frames: int, most: int) -> None:
        """So many frames were recovered at a time."""
        limit = self._limits.get(key)
        if limit is None or frames < min(most, limit.frames):
            return
        limit.went_well += 1
        if limit.is_trial:
            limit.went_well, limit.is_trial = 0, False
        if limit.frames != limit.told:
            is_less, limit.told = limit.frames < limit.told, limit.frames
            self._changed(key, limit.frames, is_less)
        if limit.frames >= most:
            del self._limits[key]
        elif limit.went_well >= limit.grow_after:
            limit.frames, limit.is_trial = min(most, 2 * limit.frames), True
