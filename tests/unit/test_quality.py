"""PSNR, SSIM and ring correlation agree with their definitions and with scikit-image."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from reconstructor.quality import frc, frc_resolution, psnr, ssim


def pair(shape=(3, 40, 33), offset=0.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    reference = torch.randn(shape, generator=g, dtype=torch.float64) * 3 + offset
    return reference + torch.randn(shape, generator=g, dtype=torch.float64), reference


@pytest.mark.parametrize("offset", [0.0, 50.0, 1e5])
@pytest.mark.parametrize("data_range", [None, 1.0])
def test_psnr_and_ssim_are_scikit_images(offset: float, data_range: float | None) -> None:
    x, reference = pair(offset=offset)
    got_psnr, got_ssim = psnr(x, reference, data_range), ssim(x, reference, data_range)
    for i in range(len(x)):
        a, b = x[i].numpy(), reference[i].numpy()
        scale = data_range or b.max() - b.min()
        assert got_psnr[i].item() == pytest.approx(peak_signal_noise_ratio(b, a, data_range=scale), rel=1e-9)
        # scikit-image's own second moments lose digits under a large offset
        wanted = structural_similarity(b, a, win_size=7, data_range=scale)
        assert got_ssim[i].item() == pytest.approx(wanted, abs=1e-9 if offset < 1e3 else 1e-5)


def test_ssim_of_an_image_in_many_strips_is_scikit_images() -> None:
    x, reference = pair((2, 701, 90))
    wanted = [
        structural_similarity(b, a, win_size=7, data_range=b.max() - b.min())
        for a, b in zip(x.numpy(), reference.numpy(), strict=True)
    ]
    assert ssim(x, reference).tolist() == pytest.approx(wanted, abs=1e-9)


def test_equal_images_are_perfect() -> None:
    _, reference = pair()
    assert torch.isinf(psnr(reference, reference)).all()
    assert torch.allclose(ssim(reference, reference), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(frc(reference, reference), torch.ones(3, 21, dtype=torch.float64))


def test_float32_batches_are_taken() -> None:
    x, reference = pair()
    assert torch.allclose(ssim(x.float(), reference.float()), ssim(x, reference), atol=1e-5)


@pytest.mark.parametrize("shape", [(32, 32), (31, 31), (32, 48), (45, 30)])
def test_frc_is_the_definition_over_integer_rings(shape: tuple[int, int]) -> None:
    x, reference = pair((2, *shape))
    got = frc(x, reference)
    longest = max(shape)
    assert got.shape == (2, longest // 2 + 1)
    ky, kx = np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1])[None, :]
    ring = np.rint(np.hypot(ky, kx) * longest).astype(int)
    f, g = np.fft.fft2(x.numpy()), np.fft.fft2(reference.numpy())
    for r in range(1, longest // 2 + 1):
        on = ring == r
        cross = (f[:, on] * g[:, on].conj()).sum(1).real
        norm = np.sqrt((abs(f[:, on]) ** 2).sum(1) * (abs(g[:, on]) ** 2).sum(1))
        np.testing.assert_allclose(got[:, r].numpy(), cross / norm, atol=1e-12)


def test_frc_of_unrelated_noise_is_near_zero_and_of_a_low_pass_falls_at_its_cutoff() -> None:
    g = torch.Generator().manual_seed(1)
    a, b = torch.randn(1, 128, 128, generator=g), torch.randn(1, 128, 128, generator=g)
    assert frc(a, b)[0, 20:].abs().mean() < 0.1
    spectrum = torch.fft.rfft2(a)
    k = torch.sqrt(torch.fft.fftfreq(128)[:, None] ** 2 + torch.fft.rfftfreq(128)[None, :] ** 2)
    low = torch.fft.irfft2(spectrum * (k < 0.2), s=(128, 128)) + 1e-3 * b
    assert frc_resolution(frc(low, a), 2.0)[0].item() == pytest.approx(2.0 / 0.2, rel=0.05)


def test_resolution_interpolates_between_rings() -> None:
    curve = torch.tensor([[1.0, 0.9, 0.7, 0.3, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 0.1, 0.0, 0.0, 0.0]])
    got = frc_resolution(curve.double(), pixel_size=1.5, threshold=0.5)
    assert got[0].item() == pytest.approx(8 * 1.5 / 2.5)  # half-way between rings 2 and 3
    assert got[1].item() == pytest.approx(8 * 1.5 / 4)  # never below: Nyquist
    assert got[2].item() == pytest.approx(8 * 1.5)  # below at once: the whole side


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(2, 8, 8\) and \(2, 8, 9\)"):
        psnr(torch.zeros(2, 8, 8), torch.zeros(2, 8, 9))
    with pytest.raises(ValueError, match="at least 7 pixels, got 6x9"):
        ssim(torch.zeros(2, 6, 9), torch.zeros(2, 6, 9))
