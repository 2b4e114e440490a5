"""Wiener is the exact posterior mean of a Gaussian image in white noise."""

import pytest
import torch

from common.operators import CodedAperture, LinearOperator, OpenAperture, PhasePlate
from reconstructor.recovery.wiener import Wiener, WienerParameters


@pytest.mark.parametrize(
    "op",
    [
        CodedAperture((12, 16), 4, 8),
        CodedAperture((13, 11), 2, 3),
        PhasePlate((12, 16)),
        PhasePlate((11, 13), "radial", 2.0, symmetry="paper"),
        OpenAperture((10, 12)),
    ],
    ids=lambda op: f"{type(op).__name__}-{op.shape[0]}x{op.shape[1]}",
)
def test_posterior_mean_is_that_of_the_dense_problem(op: LinearOperator) -> None:
    n = op.shape[0] * op.shape[1]
    method = Wiener(op, WienerParameters(iterations=60), None)
    # signal over noise power from 30 to 0.03
    relative = 30 * torch.exp(-14 * method.estimate.rings.frequency)
    response = relative[method.estimate.rings.index][None]
    basis = torch.eye(n, dtype=torch.float64).view(n, *op.shape)
    P = op.P(basis).flatten(1)
    covariance = torch.fft.irfft2(torch.fft.rfft2(basis) * response, s=op.shape).flatten(1)
    x0 = op.P(torch.randn(2, *op.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    # (P + C^-1) x = x0 with the noise variance as unit
    expected = torch.linalg.solve(P + torch.linalg.inv(covariance), x0.flatten(1).T).T.view_as(x0)
    got = method.solve(x0, method.responses(relative[None]))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-8)


def test_default_iterations_are_as_good_as_exact() -> None:
    op = CodedAperture((64, 64))
    x0 = op.P(torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    default, exact = Wiener(op, WienerParameters(), None), Wiener(op, WienerParameters(iterations=100), None)
    for strength in (1.0, 100.0):
        relative = strength / (1 + (default.estimate.rings.frequency / 0.05) ** 4)
        want = exact.solve(x0, exact.responses(relative[None]))
        got = default.solve(x0, default.responses(relative[None]))
        assert (got - want).norm() < 0.01 * want.norm()
