"""cryoSENSE's sampler: ancestral sampling, pulled towards the measurement by a gradient with momentum.

Source: cryoSENSE, supplement F, Algorithm 1, as the authors' code has it: momentum and step grow from the
noisy end to the clean one, images are clamped to [-1, 1], and the gradient, which does not pass back through
the network, is divided by its norm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.operators import LinearOperator
from reconstructor.priors.base import Denoiser
from reconstructor.recovery.base import column
from reconstructor.recovery.noise import FrameNoise

# steps the paper's zeta belongs to
PAPER_STEPS = 1000
# added by the authors to the norm of a gradient
SMALLEST_NORM = 1e-8


class NesterovSampler:
    """Algorithm 1.

    Parameters
    ----------
    op : LinearOperator
        Measures the frames.
    evaluations : int
        Steps, equally far apart among the prior's noise levels. With fewer of them than the paper's 1000,
        zeta grows as the steps do.
    kappa : tuple of float
        Momentum at the noisy and the clean end, also how far ahead the gradient is taken.
    zeta : tuple of float
        Length of a gradient step at the noisy and the clean end.
    batch_norm : bool
        Divide the gradients by the norm over the whole batch, as the authors do; else each by its own.
    """

    def __init__(
        self,
        op: LinearOperator,
        evaluations: int,
        kappa: tuple[float, float],
        zeta: tuple[float, float],
        batch_norm: bool,
    ) -> None:
        self._op = op
        self._evaluations = evaluations
        self._kappa, self._zeta = kappa, zeta
        self._batch_norm = batch_norm

    def __call__(self, prior: Denoiser, minimum_norm: Tensor, noise: FrameNoise) -> Tensor:
        """One sample for each minimum-norm image, in the prior's units, (B, H, W).

        Raises
        ------
        ValueError
            If the prior has fewer noise levels than evaluations are asked for.
        """
        sigma = prior.schedule.sigma
        if self._evaluations > len(sigma):
            raise ValueError(
                f"recovery diffusion: evaluations: the prior has {len(sigma)} noise levels, "
                f"so nesterov can take as many steps at most, got {self._evaluations}"
            )
        chosen = torch.linspace(len(sigma) - 1, 0, self._evaluations, dtype=torch.float64).round().long()
        levels = sigma[chosen.to(sigma.device)].cpu()
        # alpha bar of the steps, of a diffusion model with these noise levels, then that of the image itself
        signal_share = [*(1 / (1 + levels.square())).tolist(), 1.0]
        measured = self._op.A(minimum_norm)
        x = noise.draw(minimum_norm)
        momentum = torch.zeros_like(x)
        for i in range(self._evaluations):
            now, then = signal_share[i], signal_share[i + 1]
            alpha = now / then
            # the prior's own scale of x_t may be another
            a, _ = prior.schedule.scales(levels[i])
            told = prior.x0(x * (float(a) / now**0.5), levels[i]).clamp_(-1, 1)
            x.mul_(alpha**0.5 * (1 - then) / (1 - now))
            x.add_(told, alpha=then**0.5 * (1 - alpha) / (1 - now))
            if then < 1:
                x.add_(noise.draw(x), alpha=((1 - then) / (1 - now) * (1 - alpha)) ** 0.5)
            share = i / max(self._evaluations - 1, 1)
            kappa = self._kappa[0] + share * (self._kappa[1] - self._kappa[0])
            zeta = self._zeta[0] + share * (self._zeta[1] - self._zeta[0])
            ahead = told.sub_(momentum, alpha=kappa).clamp_(-1, 1)
            gradient = self._op.A_adjoint(self._op.A(ahead).sub_(measured)).mul_(2)
            gradient.div_(self._norm(gradient).add_(SMALLEST_NORM))
            momentum.mul_(kappa).add_(gradient, alpha=zeta * PAPER_STEPS / self._evaluations)
            x.sub_(momentum).clamp_(-1, 1)
        return x

    def _norm(self, gradient: Tensor) -> Tensor:
        return gradient.norm() if self._batch_norm else column(gradient.flatten(1).norm(dim=1))
