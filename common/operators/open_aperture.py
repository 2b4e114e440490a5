"""No mask: every pixel is measured."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from common.operators.base import LinearOperator, check_share, checked_shape


class OpenAperture(LinearOperator):
    """The identity, as an operator like the others: conventional acquisition, C = 1.

    Parameters
    ----------
    shape : tuple[int, int]
        (height, width) of the images in pixels.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shape = checked_shape(shape)
        self.measurement_shape = self.shape
        self.measurement_count = self.shape[0] * self.shape[1]
        self.mask_hash = hashlib.sha256(b"none").hexdigest()[:16]
        self.is_integer = True

    def A(self, x: Tensor) -> Tensor:
        """The images themselves, (B, H, W)."""
        self.check_images(x)
        return self.as_real(x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        """The measurements themselves, (B, H, W)."""
        self.check_measurements(y)
        return self.as_real(y)

    def A_dagger(self, y: Tensor) -> Tensor:
        """The measurements themselves, (B, H, W)."""
        return self.A_adjoint(y)

    def P(self, x: Tensor) -> Tensor:
        """The images themselves, (B, H, W): everything is measured."""
        return self.A(x)

    def whiten(self, y: Tensor) -> Tensor:
        """The measurements themselves, (B, H, W)."""
        return self.A_adjoint(y)

    def hold_out(self, share: float, seed: int = 0) -> tuple[LinearOperator, Tensor]:
        """Nothing can be held out: a pixel that no other measurement sees cannot be predicted from them.

        Returns this operator and an all-False mask (H, W).
        """
        check_share(share)
        return self, torch.zeros(self.shape, dtype=torch.bool)

    def mean_level(self, y: Tensor) -> Tensor:
        """Mean of each image, (B,)."""
        return self.A_adjoint(y).mean((1, 2))

    def measurement_picture(self, y: Tensor) -> Tensor:
        """The images, (B, H, W)."""
        return self.A_adjoint(y)
