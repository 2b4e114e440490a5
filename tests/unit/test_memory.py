"""Batches that memory does not hold: halved, remembered, grown again, told once."""

from __future__ import annotations

import pytest
import torch

from reconstructor.memory import (
    GROW_AFTER,
    LONGEST_GROW_AFTER,
    BatchKey,
    BatchLimits,
    does_not_fit,
    is_out_of_memory,
)

KEY, OTHER = BatchKey("c1", "dct"), BatchKey("c2", "dct")


class Machine:
    """Memory for ``room`` frames at a time."""

    def __init__(self, room: int, most: int = 64) -> None:
        self.room, self.most = room, most
        self.told: list[tuple[int, bool]] = []
        self.limits = BatchLimits(lambda key, frames, is_less: self.told.append((frames, is_less)))
        self.failed = 0

    def batch(self, key: BatchKey = KEY) -> int:
        """Recover a batch; how many tries that took."""
        tries = 1
        while (frames := self.limits.frames(key, self.most)) > self.room:
            self.limits.halve(key, frames, self.most)
            self.failed += 1
            tries += 1
        self.limits.went_well(key, frames, self.most)
        return tries


def test_it_is_halved_down_to_what_fits_once_and_told_once() -> None:
    machine = Machine(room=9)
    assert machine.batch() == 4  # 64, 32, 16, 8
    assert [machine.batch() for _ in range(GROW_AFTER - 1)] == [1] * (GROW_AFTER - 1)
    assert machine.told == [(8, True)]
    assert machine.limits.halvings == 3
    assert machine.limits.frames(OTHER, 64) == 64


def test_it_grows_again_when_memory_comes_free_and_then_forgets() -> None:
    machine = Machine(room=9)
    machine.batch()
    machine.room = 1000
    for _ in range(4 * GROW_AFTER):
        machine.batch()
    assert machine.told == [(8, True), (16, False), (32, False), (64, False)]
    assert machine.limits.frames(KEY, 64) == 64
    machine.room = 40
    machine.batch()
    assert machine.told[-1] == (32, True)


def test_trials_that_fail_become_rare_and_are_not_told() -> None:
    machine = Machine(room=8)
    batches = 100_000
    for _ in range(batches):
        machine.batch()
    assert machine.told == [(8, True)]
    assert machine.failed - 3 < 15  # 64, 128, ... 16384, 16384 ... apart
    assert batches / LONGEST_GROW_AFTER < machine.failed


def test_a_batch_that_was_not_full_says_nothing() -> None:
    machine = Machine(room=8)
    machine.batch()
    for _ in range(10 * GROW_AFTER):
        machine.limits.went_well(KEY, 3, 64)
    assert machine.limits.frames(KEY, 64) == 8


def test_one_frame_is_the_least() -> None:
    machine = Machine(room=1, most=2)
    machine.batch()
    assert machine.limits.frames(KEY, 2) == 1
    assert machine.told == [(1, True)]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_say_that_memory_is_short(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_a_real_shortage_is_understood() -> None:
    with pytest.raises(RuntimeError) as failure:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(failure.value)


@pytest.mark.parametrize(("device", "said"), [("cpu", "fewer workers"), ("cuda:0", "another device")])
def test_what_to_do_about_a_frame_that_is_too_large(device: str, said: str) -> None:
    line = does_not_fit((4096, 4096), "tv", torch.device(device))
    assert said in line
    assert "4096 x 4096" in line
    assert "\n" not in line
