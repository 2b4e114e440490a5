"""White noise that belongs to a frame: the same on every device and in whatever batch the frame comes.

Raw words of the counter-based Philox generator, whose stream NumPy promises, made normal by Box and Muller.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

import numpy as np
import torch
from torch import Tensor

# a word of the counter, so that no draw for another end meets these
PURPOSE = int.from_bytes(b"recovery", "little")
WORD = 2**64 - 1


class FrameNoise:
    """One stream of normal numbers for each of some samples of some frames.

    Samples come in pairs: sample 2j + 1 gets what sample 2j gets with the sign turned, so that of a sampler
    that is linear in its noise, the mean of a pair has none of it.

    Parameters
    ----------
    seed : int
        Of the recovery, 0 to 2^64 - 1.
    frames : sequence of int
        (B,) frame numbers.
    samples : sequence of int
        (B,) which of its frame's samples each is, from 0.
    """

    def __init__(self, seed: int, frames: Sequence[int], samples: Sequence[int]) -> None:
        self._streams = [
            np.random.Philox(
                key=np.array([seed, frame & WORD], dtype=np.uint64),
                counter=np.array([0, 0, sample // 2, PURPOSE], dtype=np.uint64),
            )
            for frame, sample in zip(frames, samples, strict=True)
        ]
        self._sign = torch.tensor([1.0 - 2.0 * (sample % 2) for sample in samples])

    def draw(self, like: Tensor) -> Tensor:
        """The next numbers of every stream, in shape, type and place as ``like`` (B, H, W)."""
        count = like[0].numel()
        raw = np.stack([stream.random_raw((count + 1) // 2) for stream in self._streams])
        words = torch.from_numpy(raw.view(np.int64)).to(like.device)
        # the upper half of a word tells how far from zero, the lower in which direction: two numbers
        upper, lower = (
            (half & 0xFFFFFFFF).to(like.dtype).add_(0.5).mul_(2.0**-32) for half in (words >> 32, words)
        )
        radius = upper.log_().mul_(-2).clamp_min_(0).sqrt_().mul_(self._sign.to(like)[:, None])
        angle = lower.mul_(2 * pi)
        normal = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)
        return normal[:, :count].reshape(like.shape)
