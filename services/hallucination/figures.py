"""The figures of the benchmark: what was added to an image, how much was right, and whether it was told.

All images are batches (B, H, W) about mean level zero; figures come one an image, float64.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def norm(images: Tensor) -> Tensor:
    """Length of each image, (B,)."""
    return images.double().flatten(1).norm(dim=1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Normalised correlation of two images at the same place, (B,): 1 the same but for scale, 0 unrelated."""
    tiny = torch.finfo(torch.float64).tiny
    return torch.linalg.vecdot(a.double().flatten(1), b.double().flatten(1)) / (norm(a) * norm(b)).clamp_min(
        tiny
    )


def right_and_invented(added: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    """What was added, in two parts at right angles: along what was missing, and the rest; (B, H, W) each."""
    a, m = added.double().flatten(1), missing.double().flatten(1)
    share = torch.linalg.vecdot(a, m) / m.square().sum(1).clamp_min(torch.finfo(torch.float64).tiny)
    right = share[:, None, None] * missing.double()
    return right, added.double() - right


def error_removed(added: Tensor, missing: Tensor) -> Tensor:
    """Share of the linear estimate's squared error that was taken away, (B,); below 0: some was added."""
    return 1 - (norm(missing.double() - added.double()) / norm(missing)).square()


def told_apart(usual: Tensor, unusual: Tensor) -> float:
    """Chance that a figure is larger for a random frame of the second kind than for one of the first.

    0.5: it tells nothing; 1: it tells them apart without error (area under the ROC curve; ties count half).
    """
    larger = (unusual[:, None] > usual[None]).double() + 0.5 * (unusual[:, None] == usual[None]).double()
    return float(larger.mean())


def ranks_agree(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two figures of the same frames; 0 where one does not vary."""
    first, second = (values.double().argsort().argsort().double() for values in (a, b))
    first, second = first - first.mean(), second - second.mean()
    length = float(first.norm() * second.norm())
    return float(first @ second) / length if length > 0 else 0.0


def featureless(images: Tensor, seed: int = 0) -> Tensor:
    """Images that have nothing in common with these but power spectrum and place, (B, H, W).

    Phases of white noise, under the root mean square of the batch at each pixel: what a projection is like by
    chance is told by these.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    white = torch.fft.rfft2(torch.from_numpy(generator.standard_normal(images.shape)))
    phases = white / white.abs().clamp_min(torch.finfo(torch.float64).tiny)
    drawn = torch.fft.irfft2(torch.fft.rfft2(images.double()).abs() * phases, s=images.shape[1:])
    where = images.double().square().mean(0).sqrt()
    return drawn * where / where.square().mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
