"""The transforms are SciPy's DCT and PyWavelets' periodised wavelets, orthonormal, at any size."""

import warnings

import numpy as np
import pytest
import pywt
import scipy.fft
import torch

from common.calibration import Calibration
from reconstructor.recovery.spectrum import Rings
from reconstructor.recovery.transforms import CosineTransform, Transform, WaveletTransform

# short and long sides (dense and FFT or banded forms), even and odd, oblong
SHAPES = [(16, 16), (15, 20), (33, 8), (128, 128), (97, 200), (201, 330)]


def padded(transform: Transform, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(2, *transform.padded_shape, dtype=dtype)
    height, width = transform.shape
    x[:, :height, :width] = torch.randn(2, height, width, generator=generator, dtype=dtype)
    return x


@pytest.mark.parametrize("shape", SHAPES)
def test_cosine_transform_is_scipys(shape: tuple[int, int]) -> None:
    transform = CosineTransform(shape)
    x = padded(transform)
    c = transform.forward(x)
    np.testing.assert_allclose(
        c.numpy(), scipy.fft.dctn(x.numpy(), axes=(1, 2), norm="ortho"), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(transform.inverse(c), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("wavelet", "levels"), [("db1", 3), ("sym8", 4), ("db4", 2), ("coif5", 1)])
def test_wavelet_transform_is_pywavelets(shape: tuple[int, int], wavelet: str, levels: int) -> None:
    transform = WaveletTransform(shape, wavelet, levels)
    x = padded(transform)
    c = transform.forward(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on short sides PyWavelets warns of boundary effects
        for image, coefficients in zip(x, c, strict=True):
            reference = pywt.wavedec2(image.numpy(), wavelet, mode="periodization", level=transform.levels)
            np.testing.assert_allclose(
                coefficients.numpy(), pywt.coeffs_to_array(reference)[0], rtol=0, atol=1e-10
            )
    # PyWavelets' own filters are orthonormal to about 1e-11
    torch.testing.assert_close(transform.inverse(c), x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(64, 64), (100, 130), (256, 300)])
@pytest.mark.parametrize("kind", [CosineTransform, WaveletTransform])
def test_inverse_is_the_transpose_in_float32(shape: tuple[int, int], kind: type[Transform]) -> None:
    transform = kind(shape)
    x = padded(transform, torch.float32)
    c = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    forward, backward = (transform.forward(x) * c).sum(), (x * transform.inverse(c)).sum()
    assert abs(forward - backward) < 1e-4 * c.norm() * x.norm() / c.numel() ** 0.5
    assert transform.forward(x).norm() == pytest.approx(x.norm().item(), rel=1e-5)


def test_inverse_leaves_its_argument_alone() -> None:
    for transform in (CosineTransform((32, 32)), WaveletTransform((32, 32), "db2", 3)):
        c = padded(transform)
        before = c.clone()
        transform.inverse(c)
        assert torch.equal(c, before)


@pytest.mark.parametrize("kind", [CosineTransform, WaveletTransform])
def test_band_power_is_the_mean_power_of_stationary_images(kind: type[Transform]) -> None:
    shape = (128, 96)
    rings = Rings(shape)
    power = 1 / (1 + (rings.frequency / 0.05) ** 2)
    noise = torch.randn(200, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    images = torch.fft.irfft2(torch.fft.rfft2(noise) * power.sqrt()[rings.index], s=shape)
    transform = kind(shape)
    measured = transform.forward(images).square().mean(0)
    predicted = transform.lay_out(transform.band_power(power[None]))[0]
    # averaged over patches of the coefficient plane, away from the corner where the law is steep
    for rows, columns in [((40, 80), (30, 60)), ((90, 128), (60, 96)), ((64, 128), (0, 24))]:
        patch = (slice(*rows), slice(*columns))
        assert measured[patch].mean() == pytest.approx(predicted[patch].mean().item(), rel=0.12)


@pytest.mark.parametrize("levels", [1, 5, 8])
def test_every_band_has_its_power_also_on_large_frames(levels: int) -> None:
    transform = WaveletTransform((600, 1030), "sym8", levels)
    ones = torch.ones(1, Rings(transform.shape).number, dtype=torch.float64)
    power = transform.band_power(ones)
    assert power.shape == (1, 3 * transform.levels + 1)
    # white noise has the same power in every coefficient of an orthonormal basis
    torch.testing.assert_close(power, torch.ones_like(power), rtol=0, atol=1e-9)
    assert (transform.lay_out(power) > 0).all()


def test_rings_are_those_of_the_calibration() -> None:
    frames = torch.randn(3, 24, 30, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    about_mean = frames - frames.mean((1, 2), keepdim=True)
    power = Rings((24, 30)).mean(torch.fft.rfft2(about_mean, norm="ortho")).mean(0)
    np.testing.assert_allclose(power, Calibration.from_frames(frames).radial_power, rtol=1e-9, atol=1e-12)
