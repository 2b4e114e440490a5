"""A learned prior: diffusers' UNet2DModel behind the interface of ``base.Denoiser``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.whole import replacing
from reconstructor.priors.base import Flow, PriorCard, Schedule
from reconstructor.priors.folder import (
    CARD,
    CONFIG,
    SCHEDULER,
    WEIGHTS,
    PriorFolder,
    read_folder,
    scheduler_config,
    usual_schedule,
)

if TYPE_CHECKING:
    from diffusers import UNet2DModel


class NetworkPrior:
    """A network that was trained to take noise from images.

    Runs in float32; on CUDA in bfloat16 where PyTorch's autocast holds it safe, on channels-last images.
    Nothing is clipped: a mean of x0 beyond [-1, 1] is given as it is.

    Parameters
    ----------
    network : UNet2DModel
        One channel in and out. It is taken over: brought to ``device``, set to evaluation, its weights
        frozen; of one that is still trained, hand over a copy.
    card : PriorCard
        What it was trained on.
    schedule : Schedule, optional
        Its noise levels; by default ``VariancePreserving()``, and ``Flow()`` where the card says flow.
    device : torch.device or str
        Where it runs.

    Raises
    ------
    ValueError
        If the card speaks of another prediction than the schedule's or another number of parameters than the
        network's.
    """

    def __init__(
        self,
        network: UNet2DModel,
        card: PriorCard,
        schedule: Schedule | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        schedule = usual_schedule(card.prediction) if schedule is None else schedule
        if isinstance(schedule, Flow) != (card.prediction == "flow"):
            raise ValueError(
                f"card: {card.prediction} does not go with {type(schedule).__name__} noise levels"
            )
        if card.parameters != (parameters := sum(weight.numel() for weight in network.parameters())):
            raise ValueError(f"card: {card.parameters} parameters, but the network has {parameters}")
        self.card = card
        self.device = torch.device(device)
        on_gpu = self.device.type == "cuda"
        self.layout = torch.channels_last if on_gpu else torch.contiguous_format
        self.network = network.requires_grad_(False).eval().to(self.device, memory_format=self.layout)
        self.multiple = 2 ** (len(network.config["block_out_channels"]) - 1)
        self._schedule = schedule
        self._run: Any = self.network

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> NetworkPrior:
        """Read a prior from its folder, see ``folder.read_folder``; weights of any precision become float32.

        Raises
        ------
        ValueError
            One line: which file is missing, broken or of a kind that is not read, and what to do.
        """
        found = read_folder(Path(folder))
        return cls(_network(found), found.card, found.schedule, device)

    def save(self, folder: Path | str, dtype: torch.dtype = torch.float32) -> None:
        """Write config, weights, noise levels and card, from which ``load`` and diffusers read them again.

        Parameters
        ----------
        folder : Path or str
            Made where it is missing; what an earlier save left there is replaced.
        dtype : torch.dtype
            Of the weights; float16 halves the file, and changes a weight by up to 1 in 2000.
        """
        folder = Path(folder)
        (folder / SCHEDULER).parent.mkdir(parents=True, exist_ok=True)
        weights = {
            name: weight.to("cpu", dtype).contiguous() for name, weight in self.network.state_dict().items()
        }
        with replacing(folder / WEIGHTS) as temporary:
            save_file(weights, temporary, metadata={"format": "pt"})
        self.network.save_config(folder)
        levels = scheduler_config(self.schedule, self.card.prediction)
        (folder / SCHEDULER).write_text(json.dumps(levels, indent=2) + "\n")
        (folder / CARD).write_text(self.card.model_dump_json(indent=2) + "\n")

    @property
    def schedule(self) -> Schedule:
        """Its noise levels."""
        return self._schedule

    def compile(self) -> None:
        """Have CUDA kernels made for this network; the first images of every new shape then wait for them.

        Elsewhere nothing happens.
        """
        if self.device.type == "cuda":
            self._run = torch.compile(self.network, dynamic=False)

    def x0(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """Mean of x0 given x_t = a x0 + s e, as far as the network knows it.

        Parameters
        ----------
        x_t : Tensor
            (B, H, W), on the prior's device. Sides that the network cannot halve as often as it has to are
            continued by reflection, and cropped again.
        sigma : Tensor
            () or (1,), the noise level s / a of all, or (B,) that of each; on the CPU (then nothing waits) or
            the prior's device.

        Returns
        -------
        Tensor
            (B, H, W), of the type of ``x_t``.

        Raises
        ------
        ValueError
            If the images are not (B, H, W), or so small that they cannot be continued.
        """
        level = sigma.double().reshape(-1)
        a, s = (scale.to(x_t)[:, None, None] for scale in self.schedule.scales(level))
        output = self._output(x_t, self.schedule.time(level)).to(x_t.dtype)
        match self.card.prediction:
            case "epsilon":
                return (x_t - s * output) / a
            case "v_prediction":  # a e - s x0
                return a * x_t - s * output
            case "flow":  # e - x0
                return x_t - s * output

    @torch.inference_mode()
    def _inferred(self, images: Tensor, time: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            return self._run(images, time, return_dict=False)[0]

    def _output(self, x_t: Tensor, time: Tensor) -> Tensor:
        """What the network gives for images (B, H, W) at times (1,) or (B,), (B, H, W) float32."""
        if x_t.ndim != 3:
            raise ValueError(f"images of shape {tuple(x_t.shape)}: must be (B, H, W)")
        height, width = x_t.shape[1:]
        top, bottom = self._margins(height)
        left, right = self._margins(width)
        images = x_t[:, None].to(torch.float32)
        if top + bottom + left + right:
            images = torch.nn.functional.pad(images, (left, right, top, bottom), mode="reflect")
        images = images.contiguous(memory_format=self.layout)
        times = time.to(x_t.device, torch.float32).expand(len(x_t))
        return self._inferred(images, times)[:, 0, top : top + height, left : left + width].float()

    def _margins(self, side: int) -> tuple[int, int]:
        """Pixels to add before and after a side."""
        missing = -side % self.multiple
        before, after = missing // 2, missing - missing // 2
        if after >= side:
            raise ValueError(
                f"images with a side of {side} pixels: this network needs multiples of {self.multiple}, "
                f"and reflection can continue images to one from {(self.multiple + 4) // 3} pixels on"
            )
        return before, after


def _network(found: PriorFolder) -> UNet2DModel:
    """The network of a folder, made without memory first, so that only what fits its file takes any."""
    from diffusers import UNet2DModel

    config_path, weights_path = found.weights.with_name(CONFIG), found.weights
    try:
        with torch.device("meta"):
            network: UNet2DModel = UNet2DModel.from_config(found.config)  # type: ignore[assignment]
    except Exception as error:  # diffusers checks little: whatever stops it is in the file
        raise ValueError(f"{config_path}: no UNet2DModel can be made of it: {error}") from error
    wanted = {name: tuple(weight.shape) for name, weight in network.state_dict().items()}
    for name in sorted(wanted.keys() | found.shapes.keys()):
        if wanted.get(name) != found.shapes.get(name):
            raise ValueError(
                f"{weights_path}: does not fit {CONFIG}: {name} is {found.shapes.get(name, 'missing')} "
                f"there, and of the network {wanted.get(name, 'no part')}"
            )
    weights = {name: weight.float() for name, weight in load_file(weights_path).items()}
    for name, weight in weights.items():
        if not bool(weight.isfinite().all()):
            raise ValueError(f"{weights_path}: {name} holds values that are not finite: it was saved broken")
    network.load_state_dict(weights, assign=True)
    return network
