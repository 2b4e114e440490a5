"""A learned prior that has learned nothing: random weights, as diffusers saves them, with a card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reconstructor.priors.base import PriorCard


def card(**changes: Any) -> PriorCard:
    """The card of a prior of 32 x 32 pixels at 1.5 Å."""
    known: dict[str, Any] = {
        "name": "tiny", "content": "clean", "prediction": "epsilon", "side_pixels": 32,
        "pixel_size_angstrom": (1.0, 2.0), "signal_std": 0.25, "trained_on": "nothing: random weights",
        "images": 0, "steps": 0, "batch": 0, "parameters": 0,
    }  # fmt: skip
    return PriorCard(**{**known, **changes})


def tiny_prior(folder: Path, **changes: Any) -> Path:
    """Make one in ``folder``; ``changes`` are of its card."""
    import torch
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=32, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8),
        norm_num_groups=4, down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    network.save_pretrained(folder)
    parameters = sum(weight.numel() for weight in network.parameters())
    (folder / "card.json").write_text(card(parameters=parameters, **changes).model_dump_json())
    return folder
