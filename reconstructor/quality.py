"""How near a recovered image comes to a reference: PSNR, SSIM, LPIPS, Fourier ring correlation.

A reference frame of a session is itself noisy, so these figures reward copying its noise; against a clean
truth they tell how much of the specimen came back. All functions take batches (B, H, W) of any floating
dtype, work in float64 (they see one frame in a hundred) and return one figure, or one curve, an image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.rings import ring_sums
from reconstructor.lpips import Lpips

SSIM_WINDOW = 7
STRIP_PIXELS = 1 << 14


def _pair(x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    if x.ndim != 3 or x.shape != reference.shape:
        raise ValueError(
            "images and references of one shape (B, H, W) expected, "
            f"got {tuple(x.shape)} and {tuple(reference.shape)}"
        )
    return x.to(torch.float64), reference.to(torch.float64)


def _data_range(reference: Tensor, data_range: float | None) -> Tensor:
    """(B,): as given, else each reference's own maximum minus minimum."""
    if data_range is None:
        return reference.amax((1, 2)) - reference.amin((1, 2))
    return torch.full((reference.shape[0],), float(data_range), dtype=torch.float64, device=reference.device)


def psnr(x: Tensor, reference: Tensor, data_range: float | None = None) -> Tensor:
    """Peak signal-to-noise ratio, dB.

    Parameters
    ----------
    x, reference : Tensor
        (B, H, W).
    data_range : float, optional
        The peak; by default each reference's own maximum minus minimum.

    Returns
    -------
    Tensor
        (B,) float64; infinite where the two are equal.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    x, reference = _pair(x, reference)
    peak = _data_range(reference, data_range)
    return 10 * torch.log10(peak.square() / (x - reference).square().mean((1, 2)))


def ssim(x: Tensor, reference: Tensor, data_range: float | None = None) -> Tensor:
    """Structural similarity, mean over the image.

    Uniform 7x7 window, sample covariance, windows wholly inside the image: what scikit-image's
    ``structural_similarity`` computes by default, and what the papers quote.

    Parameters
    ----------
    x, reference : Tensor
        (B, H, W), sides of at least 7 pixels.
    data_range : float, optional
        By default each reference's own maximum minus minimum.

    Returns
    -------
    Tensor
        (B,) float64.

    Raises
    ------
    ValueError
        If the shapes differ or a side is shorter than the window.
    """
    x, reference = _pair(x, reference)
    if min(x.shape[1:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs sides of at least {SSIM_WINDOW} pixels, got {x.shape[1]}x{x.shape[2]}")
    scale = _data_range(reference, data_range)
    c1 = (0.01 * scale).square()[:, None, None]
    c2 = (0.03 * scale).square()[:, None, None]
    # second moments about a common level: variances of frames with a large offset keep their digits
    level = reference.mean((1, 2), keepdim=True)
    unbiased = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    height, width = x.shape[1] - SSIM_WINDOW + 1, x.shape[2] - SSIM_WINDOW + 1
    rows = max(SSIM_WINDOW, STRIP_PIXELS // (len(x) * x.shape[2]))
    for top in range(0, height, rows):  # strips that stay in the cache: twice as fast on micrographs
        strip = slice(top, min(top + rows, height) + SSIM_WINDOW - 1)
        a, b = x[:, strip] - level, reference[:, strip] - level
        mean_a, mean_b, square_a, square_b, product = _window_means(torch.stack((a, b, a * a, b * b, a * b)))
        var_a = unbiased * (square_a - mean_a * mean_a)
        var_b = unbiased * (square_b - mean_b * mean_b)
        covariance = unbiased * (product - mean_a * mean_b)
        mean_a, mean_b = mean_a + level, mean_b + level
        similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
            (mean_a.square() + mean_b.square() + c1) * (var_a + var_b + c2)
        )
        total += similarity.sum((1, 2))
    return total / (height * width)


def _window_means(images: Tensor) -> Tensor:
    """Means over all 7x7 windows wholly inside the last two dimensions."""
    sums = images
    for axis in (-2, -1):
        count = sums.shape[axis] - SSIM_WINDOW + 1
        pairs = sums.narrow(axis, 0, count + 5) + sums.narrow(axis, 1, count + 5)
        fours = pairs.narrow(axis, 0, count) + pairs.narrow(axis, 2, count)
        sums = fours + pairs.narrow(axis, 4, count) + sums.narrow(axis, 6, count)
    return sums / SSIM_WINDOW**2


def lpips(x: Tensor, reference: Tensor, network: Lpips) -> Tensor:
    """Learned perceptual distance: 0 for equal images; what papers quote as LPIPS with AlexNet.

    Each reference's minimum is taken as black and its maximum as white, for both images of a pair.

    Parameters
    ----------
    x, reference : Tensor
        (B, H, W), sides of at least 31 pixels.
    network : Lpips
        From ``reconstructor.lpips.load_lpips``.

    Returns
    -------
    Tensor
        (B,) float64; not finite where a reference has one value everywhere.

    Raises
    ------
    ValueError
        If the shapes differ or a side is too short.
    """
    x, reference = _pair(x, reference)
    black = reference.amin((1, 2), keepdim=True)
    white = reference.amax((1, 2), keepdim=True)
    scaled = (2 * (image - black) / (white - black) - 1 for image in (x, reference))
    return network.on(x.device).distance(*scaled)


def frc(x: Tensor, reference: Tensor) -> Tensor:
    """Fourier ring correlation over integer rings, the field's convention.

    Ring r holds the frequencies that round to r steps of the longer side (see
    ``common.rings.radial_bins``); rings end at Nyquist.

    Parameters
    ----------
    x, reference : Tensor
        (B, H, W).

    Returns
    -------
    Tensor
        (B, max(H, W) // 2 + 1) float64, in [-1, 1]; ring 0 is 1 by definition; 0 where a ring is empty.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    x, reference = _pair(x, reference)
    shape = (int(x.shape[1]), int(x.shape[2]))
    return ring_correlation(torch.fft.rfft2(x), torch.fft.rfft2(reference), shape)


def ring_correlation(f: Tensor, g: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Correlation of two transforms ring by ring, or shell by shell, as ``frc`` gives it.

    Parameters
    ----------
    f, g : Tensor
        (..., H, W//2+1) of ``rfft2``, or (..., D, H, W//2+1) of ``rfftn``.
    shape : tuple of int
        (H, W) of the images, or (D, H, W) of the volumes.
    """
    cross = ring_sums(f.real * g.real + f.imag * g.imag, shape)
    power = ring_sums(f.real.square() + f.imag.square(), shape) * ring_sums(
        g.real.square() + g.imag.square(), shape
    )
    curve = torch.where(power > 0, cross / power.clamp_min(torch.finfo(torch.float64).tiny).sqrt(), 0.0)
    curve = curve[..., : max(shape) // 2 + 1]
    curve[..., 0] = 1.0
    return curve


def frc_resolution(
    curve: Tensor, pixel_size: float, threshold: float = 0.5, *, side: int | None = None
) -> Tensor:
    """The resolution at which a ring correlation first falls below a threshold, angstrom.

    Linear between the last ring above and the first below. A curve that never falls below gives its last
    ring (Nyquist); one whose first ring is already below gives the whole side, the coarsest figure there is.

    Parameters
    ----------
    curve : Tensor
        (B, rings), from ``frc``.
    pixel_size : float
        Angstrom.
    threshold : float
        0.5 against a truth, 0.143 between halves of a data set.
    side : int, optional
        Longer side of the images, pixels; by default the even one that has so many rings.

    Returns
    -------
    Tensor
        (B,) float64, angstrom.
    """
    rings = curve.shape[1]
    if side is None:
        side = 2 * (rings - 1)
    below = curve[:, 1:] < threshold
    first = torch.where(below.any(1), below.int().argmax(1) + 1, rings - 1)
    after = curve.gather(1, first[:, None])[:, 0]
    before = curve.gather(1, first[:, None] - 1)[:, 0]
    crossing = (first - 1) + (before - threshold) / (before - after).clamp_min(torch.finfo(curve.dtype).tiny)
    ring = torch.where(below.any(1), crossing, first.to(curve.dtype)).clamp_min(1.0)
    return side * pixel_size / ring
