"""What every measurement operator can do, whatever the mask.

The vocabulary is that of inverse problems: ``A`` measures, ``A_adjoint`` is its transpose,
``A_dagger`` its pseudo-inverse, ``P = A_dagger A`` the orthogonal projector onto what was measured.
Everything a recovery needs follows from the minimum-norm image ``A_dagger y`` and from ``P``: with
white noise in the pixels, ``|P x - A_dagger y|^2`` *is* the whitened data misfit
``|(A A^T)^(-1/2) (A x - y)|^2``, whose Lipschitz constant is 1 for every mask.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn


def checked_shape(shape: Sequence[int]) -> tuple[int, int]:
    """(height, width) as plain integers.

    Raises
    ------
    ValueError
        If these are not two sides of at least one pixel.
    """
    sides = tuple(int(side) for side in shape)
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"shape: (height, width) of at least 1 pixel each expected, got {sides}")
    return sides


def check_share(share: float) -> None:
    """Raise ValueError unless ``share`` can be held out: in [0, 0.5]."""
    if not 0 <= share <= 0.5:
        raise ValueError(f"share of held-out measurements: {share} is outside the allowed range 0 to 0.5")


class LinearOperator(nn.Module, ABC):
    """A linear measurement of real images, batched.

    Computes on the device and in the precision (float32 or float64) of what it is given; integers and
    half precision are worked in float32. What it needs there is derived once from float64 and kept.

    Attributes
    ----------
    shape : tuple[int, int]
        (height, width) of the images in pixels; any size.
    measurement_shape : tuple[int, ...]
        Shape of one image's measurement, without the batch dimension.
    measurement_count : int
        m, the real numbers measured per image (for a coded aperture that is every pooled value, also
        of blocks that reach over the edge).
    mask_hash : str
        Hash of the mask as drawn; both ends of the wire compare it.
    is_integer : bool
        True where integer images give integer measurements (coded aperture, open aperture).
    """

    shape: tuple[int, int]
    measurement_shape: tuple[int, ...]
    measurement_count: int
    mask_hash: str
    is_integer: bool

    def __init__(self) -> None:
        super().__init__()
        self._residents: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    @property
    def compression_factor(self) -> float:
        """The honest compression factor n/m: pixels over real numbers measured."""
        return self.shape[0] * self.shape[1] / self.measurement_count

    @property
    def printed_compression_factor(self) -> float:
        """The factor the papers print for this mask; differs from the honest one only where theirs does."""
        return self.compression_factor

    @abstractmethod
    def A(self, x: Tensor) -> Tensor:
        """Measure images: (B, H, W) -> (B, *measurement_shape), floating point."""

    @abstractmethod
    def A_adjoint(self, y: Tensor) -> Tensor:
        """Transpose of ``A``: (B, *measurement_shape) -> (B, H, W)."""

    @abstractmethod
    def A_dagger(self, y: Tensor) -> Tensor:
        """Pseudo-inverse: the minimum-norm images, (B, *measurement_shape) -> (B, H, W)."""

    @abstractmethod
    def P(self, x: Tensor) -> Tensor:
        """Orthogonal projection ``A_dagger A x`` onto what is measured, (B, H, W) -> (B, H, W)."""

    @abstractmethod
    def whiten(self, y: Tensor) -> Tensor:
        """(A A^T)^(-1/2) y, so that W = whiten(A ...) has W W^T = I (on the range where rows depend)."""

    @abstractmethod
    def hold_out(self, share: float, seed: int = 0) -> tuple[LinearOperator, Tensor]:
        """Keep a random share of the measurements out of the recovery (for the free residual).

        Returns the operator of the remaining measurements, which takes ``y`` in the *same layout* and
        ignores the held-out entries (its ``A`` gives zeros there), and a boolean mask of
        ``measurement_shape`` that is True where a measurement is held out. The choice depends only on
        the mask and ``seed``; the mean (DC) is never held out.

        Raises
        ------
        ValueError
            If ``share`` is not in [0, 0.5].
        """

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """The point of {A x = y} nearest to x, (B, H, W)."""
        return x + self.A_dagger(y - self.A(x))

    def forward(self, x: Tensor) -> Tensor:
        """Same as ``A``."""
        return self.A(x)

    @abstractmethod
    def mean_level(self, y: Tensor) -> Tensor:
        """The mean pixel value of each image as the measurement alone tells it: (B, *ms) -> (B,)."""

    @abstractmethod
    def measurement_picture(self, y: Tensor) -> Tensor:
        """A measurement laid out for the eye: (B, *measurement_shape) -> (B, h, w).

        Coded aperture: the b pooled pictures side by side. Phase plate: log modulus of the measured
        coefficients on the centred Fourier plane.
        """

    def check_images(self, x: Tensor) -> None:
        """Raise ValueError unless x is (B, H, W) of this operator's shape."""
        if x.ndim != 3 or tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"images of shape (B, {self.shape[0]}, {self.shape[1]}) expected, got {tuple(x.shape)}"
            )

    def check_measurements(self, y: Tensor) -> None:
        """Raise ValueError unless y is (B, *measurement_shape)."""
        if tuple(y.shape[1:]) != self.measurement_shape:
            expected = ", ".join(str(s) for s in self.measurement_shape)
            raise ValueError(f"measurements of shape (B, {expected}) expected, got {tuple(y.shape)}")

    def on(self, device: torch.device | str) -> Self:
        """This operator, moved to ``device`` as any module would be."""
        return self.to(device)

    @staticmethod
    def as_real(t: Tensor) -> Tensor:
        """``t`` as it is if float32 or float64, else in float32."""
        return t if t.dtype in (torch.float32, torch.float64) else t.to(torch.float32)

    def resident(self, name: str, like: Tensor, make: Callable[[], Tensor]) -> Tensor:
        """The constant ``name`` on the device and in the precision of ``like``; made once, then kept."""
        key = (name, like.device, like.dtype)
        if key not in self._residents:
            made = make()
            dtype = like.dtype if made.is_floating_point() else made.dtype
            self._residents[key] = made.to(device=like.device, dtype=dtype).contiguous()
        return self._residents[key]
