"""Which network is trained and how: the sizes and rates that a training begins from, by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import UNet2DModel


@dataclass(frozen=True)
class Preset:
    """A network and the recipe that it is trained by.

    Attributes
    ----------
    side_pixels : int
        Of the training images; the network takes any multiple of 2^(levels - 1).
    channels : tuple[int, ...]
        A value per level, from the full resolution down by a factor 2 each.
    attention_down, attention_up : int or None
        Which down block and which up block, from 0 on in the order of their evaluation, attends.
    layers_per_block : int
        Residual blocks in each of them.
    norm_groups : int
        Of the group normalisations.
    batch : int
        Images a device takes at a time.
    accumulation : int
        So many times before the optimiser steps.
    learning_rate : float
        The largest, after warming up.
    epochs : int
        How often every image is seen, unless a number of steps is given.
    turned : bool
        Whether images are also shown turned by quarters and mirrored. The in-plane angle of a particle is
        anything, and projections along a direction and its opposite are mirror images of each other, so all
        eight are as likely.
    near_signal : float
        Share of the noise levels that are drawn near the signal's own strength, where an image is told from
        noise; the others are the paper's, uniform over all steps, three in four of which bury any signal.
    """

    side_pixels: int
    channels: tuple[int, ...]
    attention_down: int | None
    attention_up: int | None
    layers_per_block: int
    norm_groups: int
    batch: int
    accumulation: int
    learning_rate: float
    epochs: int
    turned: bool
    near_signal: float

    def network(self) -> UNet2DModel:
        """The network, its weights drawn from torch's generator as it stands."""
        from diffusers import UNet2DModel

        levels = len(self.channels)
        down = [
            "AttnDownBlock2D" if level == self.attention_down else "DownBlock2D" for level in range(levels)
        ]
        up = ["AttnUpBlock2D" if level == self.attention_up else "UpBlock2D" for level in range(levels)]
        sizes: dict[str, Any] = {
            "sample_size": self.side_pixels,
            "in_channels": 1,
            "out_channels": 1,
            "block_out_channels": self.channels,
            "down_block_types": tuple(down),
            "up_block_types": tuple(up),
            "layers_per_block": self.layers_per_block,
            "norm_num_groups": self.norm_groups,
        }
        if self.attention_down is None and self.attention_up is None:
            sizes["add_attention"] = False  # in the middle, too
        return UNet2DModel(**sizes)


# cryoSENSE, supplement F.2 and table S-4
_PAPER = Preset(
    side_pixels=128,
    channels=(128, 128, 256, 256, 512, 512),
    attention_down=4,
    attention_up=1,
    layers_per_block=2,
    norm_groups=32,
    batch=128,
    accumulation=2,
    learning_rate=2e-4,
    epochs=100,
    turned=False,
    near_signal=0.0,
)

PRESETS: dict[str, Preset] = {
    # thin at full resolution, where nearly all the time goes, and wide below: 85 images a second on two cores
    "small": Preset(
        side_pixels=64,
        channels=(16, 32, 64, 96),
        attention_down=None,
        attention_up=None,
        layers_per_block=2,
        norm_groups=8,
        batch=32,
        accumulation=1,
        learning_rate=4e-4,
        epochs=16,
        turned=True,
        near_signal=0.75,
    ),
    "paper-128": _PAPER,
    "paper-256": replace(_PAPER, side_pixels=256, batch=16, learning_rate=2e-5),
}
"""By name: *small* for two processor cores; *paper-128* and *paper-256* as cryoSENSE's."""
