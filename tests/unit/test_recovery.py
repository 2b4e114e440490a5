"""What every recovery promises, whatever the method and the mask."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from common.calibration import Calibration
from common.operators import CodedAperture, LinearOperator, OpenAperture, PhasePlate
from common.session import RecoverySpec
from reconstructor.quality import psnr
from reconstructor.recovery import METHODS, Recovery, check_recovery, diffusion, recover
from tests.unit.known_prior import KnownPrior

OPERATORS: list[LinearOperator] = [
    CodedAperture((64, 64), 4, 8),
    CodedAperture((50, 61), 8, 20),
    PhasePlate((64, 64)),
    PhasePlate((51, 62), "radial", 2.0),
    PhasePlate((64, 64), symmetry="paper"),
    OpenAperture((48, 64)),
]
PRIORS = ["wiener", "dct", "wavelet", "tv"]


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prior in closed form stands for the network: nothing promised here has to do with training."""
    monkeypatch.setattr(diffusion, "load_prior", lambda name, device: KnownPrior())


def name(op: LinearOperator) -> str:
    return f"{type(op).__name__}-{op.shape[0]}x{op.shape[1]}"


def images(op: LinearOperator, count: int = 5, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Noisy frames of rings and blobs on a level, and the same without noise."""
    generator = torch.Generator().manual_seed(0)
    height, width = op.shape
    y, x = torch.meshgrid(
        torch.arange(height) / height - 0.5, torch.arange(width) / width - 0.5, indexing="ij"
    )
    centre = 0.2 * torch.rand(count, 2, 1, 1, generator=generator) - 0.1
    radius = torch.hypot(y - centre[:, 0], x - centre[:, 1])
    clean = 40 + 2 * torch.exp(-(((radius - 0.25) / 0.08) ** 2)) - torch.exp(-((radius / 0.1) ** 2))
    return clean + noise * torch.randn(clean.shape, generator=generator), clean


@pytest.mark.parametrize("op", OPERATORS, ids=name)
@pytest.mark.parametrize("method", METHODS)
def test_a_frame_does_not_depend_on_its_batch(method: str, op: LinearOperator) -> None:
    y = op.A(images(op, 70)[0])
    together = recover(y, op, method)
    for i in (0, 33, 69):
        alone = recover(y[i : i + 1], op, method)[0]
        limit = 1e-4 if method == "diffusion" else 1e-5  # its steps make more of rounding
        assert (together[i] - alone).abs().max() < limit * together[i].abs().max()


@pytest.mark.parametrize("op", OPERATORS, ids=name)
@pytest.mark.parametrize("method", METHODS)
def test_recovery_goes_with_scale_and_offset(method: str, op: LinearOperator) -> None:
    x, _ = images(op)
    once, other = recover(op.A(x), op, method), recover(op.A(100 * x + 500), op, method)
    assert (other - (100 * once + 500)).abs().max() < 2e-3 * 100 * x.std()


@pytest.mark.parametrize("op", OPERATORS, ids=name)
@pytest.mark.parametrize("method", PRIORS)
def test_full_data_weight_reproduces_the_measurement(method: str, op: LinearOperator) -> None:
    y = op.A(images(op)[0])
    again = op.A(recover(y, op, method, data_weight=1.0, null_weight=1.0))
    assert (again - y).norm() < 1e-5 * y.norm()


@pytest.mark.parametrize("op", OPERATORS, ids=name)
def test_minimum_norm_is_the_nearest_to_flat_of_all_that_fit(op: LinearOperator) -> None:
    x, _ = images(op)
    y = op.A(x)
    got = recover(y, op, "minimum_norm")
    flat = op.mean_level(y)[:, None, None].expand_as(x)
    assert (got - op.project(flat, y)).abs().max() < 1e-5 * y.abs().max()
    assert (op.A(got) - y).norm() < 1e-5 * y.norm()


@pytest.mark.parametrize("op", OPERATORS[:5], ids=name)
@pytest.mark.parametrize("method", PRIORS)
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_prior_removes_noise(method: str, op: LinearOperator, calibrated: bool) -> None:
    noisy, clean = images(op, 8, noise=3.0)
    calibration = Calibration.from_frames(noisy) if calibrated else None
    y = op.A(noisy)
    gain = psnr(recover(y, op, method, calibration=calibration), clean) - psnr(
        recover(y, op, "minimum_norm"), clean
    )
    assert gain.mean() > 1.0


@pytest.mark.parametrize("op", OPERATORS[:5], ids=name)
def test_free_residual_is_what_the_others_tell_of_those_left_out(op: LinearOperator) -> None:
    spec = RecoverySpec(method="wiener", free_share=0.05)
    _, clean = images(op)
    nothing_but_noise = torch.randn(5, *op.shape, generator=torch.Generator().manual_seed(2))
    of_signal = Recovery(op, spec)(op.A(clean)).free_residual
    of_noise = Recovery(op, spec)(op.A(nothing_but_noise)).free_residual
    if isinstance(op, CodedAperture):
        # some of it can be foretold: masks overlap, so the other sums of a block tell something of this
        assert (of_noise > 0.6).all()
        assert (of_signal < 0.2).all()
    else:
        # to a stationary prior, coefficients tell nothing of each other
        torch.testing.assert_close(of_noise, torch.ones(5), rtol=0, atol=1e-3)
        torch.testing.assert_close(of_signal, torch.ones(5), rtol=0, atol=1e-3)


@pytest.mark.parametrize("op", OPERATORS[:5], ids=name)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_held_out_has_no_say(method: str, op: LinearOperator) -> None:
    recovery = Recovery(op, RecoverySpec(method=method, free_share=0.1))
    _, held_out = op.hold_out(0.1)
    y = op.A(images(op)[0])
    changed = torch.where(held_out, y + 1000, y)
    before, after = recovery(y), recovery(changed)
    # sums of equal numbers may be taken in another order where memory is aligned otherwise
    torch.testing.assert_close(before.images, after.images, rtol=0, atol=1e-4)
    if isinstance(op, CodedAperture):
        assert (after.free_residual > before.free_residual).all()


def test_free_residual_is_nan_where_nothing_is_held_out() -> None:
    for op, share in ((OPERATORS[0], 0.0), (OPERATORS[-1], 0.05)):
        recovered = Recovery(op, RecoverySpec(free_share=share))(op.A(images(op)[0]))
        assert recovered.free_residual.shape == (5,)
        assert recovered.free_residual.isnan().all()


def test_integers_and_double_precision_are_taken() -> None:
    op = OPERATORS[0]
    y = op.A(images(op)[0].round())
    from_float = recover(y, op)
    assert from_float.dtype == torch.float32
    torch.testing.assert_close(recover(y.to(torch.int32), op), from_float)
    assert recover(y.double(), op).dtype == torch.float64
    torch.testing.assert_close(recover(y.double(), op).float(), from_float, rtol=0, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_the_measurement_is_left_alone(method: str) -> None:
    for op in OPERATORS:
        y = op.A(images(op)[0])
        before = y.clone()
        recover(y, op, method)
        assert torch.equal(y, before)


@pytest.mark.parametrize("method", METHODS)
def test_a_blank_frame_is_no_trouble(method: str) -> None:
    for op in OPERATORS:
        blank = recover(op.A(torch.full((2, *op.shape), 7.0)), op, method)
        assert (blank - 7).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        (
            "dct",
            {"strenght": 1},
            "recovery dct: unknown parameter 'strenght'; its parameters are: .*strength",
        ),
        ("minimum_norm", {"strength": 1}, "recovery minimum_norm: unknown parameter 'strength'.*are: none"),
        ("dct", {"strength": -1}, r"recovery dct: strength: .*greater than or equal to 0, got -1"),
        ("tv", {"iterations": 0}, r"recovery tv: iterations: .*greater than or equal to 1, got 0"),
        ("wavelet", {"wavelet": "bior2.2"}, "recovery wavelet: wavelet: .*'bior2.2' is not one of"),
        ("wavelet", {"wavelet": "haarr"}, "recovery wavelet: wavelet: .*'haarr' is not one of"),
        ("wiener", {"data_weight": 2}, r"recovery wiener: data_weight: .*less than or equal to 1, got 2"),
        ("dct", {"weighting": "radial"}, r"recovery dct: weighting: .*'spectrum' or 'flat', got 'radial'"),
    ],
)
def test_wrong_parameters_are_named_in_one_line(
    method: Any, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check_recovery(RecoverySpec(method=method, parameters=parameters))
    assert "\n" not in str(error.value)


def test_unknown_methods_and_wrong_shapes_are_named() -> None:
    op = OPERATORS[0]
    with pytest.raises(ValueError, match="unknown method 'magic'; choose one of minimum_norm, wiener"):
        recover(op.A(images(op)[0]), op, "magic")
    with pytest.raises(ValueError, match=r"measurements of shape \(B, 8, 16, 16\) expected"):
        recover(torch.zeros(2, 8, 16, 15), op)
    with pytest.raises(ValueError, match="free_share"):
        recover(op.A(images(op)[0]), op, free_share=0.9)


def test_every_method_can_be_asked_for_by_name() -> None:
    for method in METHODS:
        check_recovery(RecoverySpec(method=method))  # pyright: ignore[reportArgumentType]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("op", OPERATORS, ids=name)
@pytest.mark.parametrize("method", METHODS)
def test_cuda_gives_what_the_processor_gives(method: str, op: LinearOperator) -> None:
    y = op.A(images(op)[0])
    spec = RecoverySpec(method=method, free_share=0.05)  # pyright: ignore[reportArgumentType]
    here, there = Recovery(op, spec)(y), Recovery(op, spec)(y.cuda())
    assert there.images.is_cuda
    assert (there.images.cpu() - here.images).abs().max() < 1e-3
    torch.testing.assert_close(
        there.free_residual.cpu(), here.free_residual, rtol=1e-3, atol=1e-3, equal_nan=True
    )
    assert math.isclose(there.images.mean().item(), here.images.mean().item(), rel_tol=1e-5)
