"""PDHG finds the optimum of the TV objective, without an inner loop, for every mask."""

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, minimize
from torch import Tensor

from common.operators import CodedAperture, LinearOperator, OpenAperture, PhasePlate
from reconstructor.recovery.total_variation import TotalVariation, TotalVariationParameters


def differences(x: Tensor) -> Tensor:
    """All differences of neighbouring pixels, (B, number)."""
    return torch.cat([(x[:, 1:] - x[:, :-1]).flatten(1), (x[:, :, 1:] - x[:, :, :-1]).flatten(1)], 1)


def objective(op: LinearOperator, x0: Tensor, threshold: float, x: Tensor) -> Tensor:
    return (op.P(x) - x0).square().sum((1, 2)) / 2 + threshold * differences(x).abs().sum(1)


def converged(op: LinearOperator, x0: Tensor, threshold: float, iterations: int = 4000) -> Tensor:
    method = TotalVariation(op, TotalVariationParameters(iterations=iterations), None)
    return method.solve(x0, torch.full((len(x0),), threshold, dtype=x0.dtype))


def test_two_plateaus_approach_by_lambda_over_their_width() -> None:
    """The known optimum of a step: each side moves by lambda / width, edges stay sharp."""
    op = OpenAperture((8, 12))
    x0 = torch.zeros(1, 8, 12, dtype=torch.float64)
    x0[:, :, 4:] = 3.0
    expected = torch.full_like(x0, 0.5 / 4)
    expected[:, :, 4:] = 3.0 - 0.5 / 8
    torch.testing.assert_close(converged(op, x0, 0.5), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "op",
    [OpenAperture((6, 7)), CodedAperture((6, 8), 2, 2), CodedAperture((7, 6), 3, 4), PhasePlate((6, 6))],
    ids=lambda op: f"{type(op).__name__}-{op.shape[0]}x{op.shape[1]}",
)
def test_optimum_is_that_of_a_general_solver(op: LinearOperator) -> None:
    """The same problem as a quadratic programme: minimise 1/2 |P x - x0|^2 + lambda sum t, -t <= D x <= t."""
    generator = torch.Generator().manual_seed(0)
    x0 = op.P(torch.randn(1, *op.shape, generator=generator, dtype=torch.float64))
    threshold, n = 0.3, op.shape[0] * op.shape[1]
    basis = torch.eye(n, dtype=torch.float64).view(n, *op.shape)
    P, D = op.P(basis).flatten(1).numpy().T, differences(basis).numpy().T
    target, edges = x0.flatten().numpy(), len(D)

    def value(z: np.ndarray) -> tuple[float, np.ndarray]:
        misfit = P @ z[:n] - target
        return misfit @ misfit / 2 + threshold * z[n:].sum(), np.r_[P.T @ misfit, np.full(edges, threshold)]

    start = np.r_[target, abs(D @ target)]
    bounds = Bounds(np.r_[np.full(n, -np.inf), np.zeros(edges)], np.full(n + edges, np.inf))
    above = LinearConstraint(np.block([[-D, np.eye(edges)], [D, np.eye(edges)]]), 0, np.inf)
    best = minimize(value, start, jac=True, bounds=bounds, constraints=above, method="SLSQP",
                    options={"maxiter": 500, "ftol": 1e-12})  # fmt: skip
    assert best.success
    found = objective(op, x0, threshold, converged(op, x0, threshold)).item()
    assert found == pytest.approx(best.fun, rel=1e-4)


@pytest.mark.parametrize(
    "op", [CodedAperture((64, 64)), PhasePlate((64, 64)), PhasePlate((45, 62), "radial")]
)
def test_default_iterations_end_within_a_thirtieth_of_the_optimum(op: LinearOperator) -> None:
    generator = torch.Generator().manual_seed(1)
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in op.shape), indexing="ij")
    images = ((y**2 + x**2) < 0.4) + 0.5 * torch.randn(2, *op.shape, generator=generator)
    x0 = op.P((images - images.mean((1, 2), keepdim=True)).double())
    method = TotalVariation(op, TotalVariationParameters(), None)
    threshold = method.prepare(method.estimate(x0), x0)
    got = method.solve(x0, threshold)
    for i in range(2):
        level = threshold[i].item()
        best = objective(op, x0[i : i + 1], level, converged(op, x0[i : i + 1], level))
        assert objective(op, x0[i : i + 1], level, got[i : i + 1]).item() == pytest.approx(
            best.item(), rel=1 / 30
        )
