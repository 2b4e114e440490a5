"""LPIPS: how alike two images look to a network that was trained on photographs (Zhang et al., CVPR 2018).

AlexNet's five convolutions with the published linear heads, version 0.1, in plain torch. The weights are not
part of the product: two files as torchvision and lpips publish them, in a folder that the user names, and
nothing stands in for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d

from common.settings import Settings

SMALLEST_SIDE = 31  # pixels: of a smaller image nothing is left after the second pooling
BATCH_PIXELS = 1 << 20  # of the images that are compared at a time
STRIP_VALUES = 1 << 22  # of the features that are compared at a time

# what the input is brought to, per colour: the mean and spread of ImageNet's images, of values in [-1, 1]
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
LEAST_LENGTH = 1e-10  # added to that of a feature vector, which may be nothing but zeros


class Convolution(NamedTuple):
    """One of the trunk's, and what its features are weighed with."""

    name: str  # of its tensors in torchvision's file
    head: str  # of the tensor in lpips' file
    channels: int
    side: int  # of the kernel
    stride: int
    padding: int
    is_pooled: bool  # whether what goes in is, 3x3 with a stride of 2


CONVOLUTIONS = (
    Convolution("features.0", "lin0.model.1.weight", 64, 11, 4, 2, False),
    Convolution("features.3", "lin1.model.1.weight", 192, 5, 1, 2, True),
    Convolution("features.6", "lin2.model.1.weight", 384, 3, 1, 1, True),
    Convolution("features.8", "lin3.model.1.weight", 256, 3, 1, 1, False),
    Convolution("features.10", "lin4.model.1.weight", 256, 3, 1, 1, False),
)


class WeightsFile(NamedTuple):
    """A published file of weights."""

    name: str
    sha256: str
    publisher: str


TRUNK = WeightsFile(
    "alexnet-owt-7be5be79.pth",
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    "torchvision's AlexNet",
)
HEADS = WeightsFile(
    "alex.pth",
    "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    "the heads of lpips, version 0.1",
)


@dataclass(frozen=True, eq=False)
class Lpips:
    """The network: weights and biases of the trunk's convolutions, and one head for each.

    Parameters
    ----------
    kernels : sequence of Tensor
        Five, each (channels, channels of the one before or 3, side, side), as ``CONVOLUTIONS`` has it.
    biases : sequence of Tensor
        Five, (channels,).
    heads : sequence of Tensor
        Five, (channels,): how much each feature counts.

    Source: R. Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric
    (CVPR 2018).
    """

    kernels: Sequence[Tensor]
    biases: Sequence[Tensor]
    heads: Sequence[Tensor]

    def on(self, device: torch.device) -> Self:
        """The same on a device; in float64 on CUDA, where convolutions of float32 are rounded to TF32."""
        dtype = torch.float64 if device.type == "cuda" else torch.float32
        return type(self)(
            *(
                tuple(tensor.to(device, dtype) for tensor in tensors)
                for tensors in (self.kernels, self.biases, self.heads)
            )
        )

    @torch.inference_mode()
    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """The perceptual distance of grey images, which is symmetric and 0 where they are equal.

        Parameters
        ----------
        a, b : Tensor
            (B, H, W) of the network's device and any floating dtype, black at -1 and white at 1; what lies
            beyond is taken as it is.

        Returns
        -------
        Tensor
            (B,) float64.

        Raises
        ------
        ValueError
            If the shapes differ or a side is shorter than ``SMALLEST_SIDE``.
        """
        if a.ndim != 3 or a.shape != b.shape:
            raise ValueError(
                f"images of one shape (B, H, W) expected, got {tuple(a.shape)} and {tuple(b.shape)}"
            )
        height, width = a.shape[1:]
        if min(height, width) < SMALLEST_SIDE:
            raise ValueError(f"LPIPS needs sides of at least {SMALLEST_SIDE} pixels, got {height}x{width}")
        size = max(1, BATCH_PIXELS // (height * width))
        parts = zip(a.split(size), b.split(size), strict=True)
        return torch.cat([self._distance(*pair) for pair in parts])

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        like = self.kernels[0]
        shift, scale = (like.new_tensor(values)[:, None, None] for values in (SHIFT, SCALE))
        features = (torch.cat((a, b)).to(like.dtype)[:, None] - shift) / scale
        total = torch.zeros(len(a), dtype=torch.float64, device=like.device)
        for layer, kernel, bias, head in zip(
            CONVOLUTIONS, self.kernels, self.biases, self.heads, strict=True
        ):
            if layer.is_pooled:
                features = max_pool2d(features, 3, 2)
            features = conv2d(features, kernel, bias, layer.stride, layer.padding).relu_()
            total += _weighted_difference(features[: len(a)], features[len(a) :], head)
        return total


def _weighted_difference(a: Tensor, b: Tensor, head: Tensor) -> Tensor:
    """(B,): squared difference of feature vectors (B, C, H, W) of length one, mean over their places."""
    count, channels, height, width = a.shape
    total = torch.zeros(count, dtype=torch.float64, device=a.device)
    rows = max(1, STRIP_VALUES // (count * channels * width))
    for top in range(0, height, rows):  # strips: the features of a micrograph fill memory as it is
        strip = slice(top, top + rows)
        difference = _of_length_one(a[:, :, strip]) - _of_length_one(b[:, :, strip])
        weighted = difference.square_() * head[:, None, None]
        total += weighted.sum((1, 2, 3), dtype=torch.float64)
    return total / (height * width)


def _of_length_one(features: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / (length + LEAST_LENGTH)


# ---- weights


class WrongWeights(ValueError):
    """The weights are not where they should be, or are not those that were published; in one line."""


def lpips_of(settings: Settings, device: torch.device) -> Lpips | None:
    """The network with the weights that the settings name, if they do.

    Raises
    ------
    WrongWeights
        In one line that names the file.
    """
    return load_lpips(settings.lpips, device) if settings.lpips else None


def load_lpips(folder: str | Path, device: torch.device | None = None) -> Lpips:
    """The network from the published files, both of which are checked to be these, byte by byte.

    Parameters
    ----------
    folder : str or Path
        Holds torchvision's ``alexnet-owt-7be5be79.pth`` and lpips' ``alex.pth`` (its ``weights/v0.1``).
    device : torch.device, optional
        By default the CPU.

    Raises
    ------
    WrongWeights
        In one line that names the file, if one is not there, cannot be read or is another.
    """
    trunk = Path(folder) / TRUNK.name
    kernels, biases, channels = [], [], 3
    state = _state(trunk, TRUNK)
    for layer in CONVOLUTIONS:
        shape = (layer.channels, channels, layer.side, layer.side)
        kernels.append(_tensor(trunk, state, f"{layer.name}.weight", shape))
        biases.append(_tensor(trunk, state, f"{layer.name}.bias", (layer.channels,)))
        channels = layer.channels
    path = Path(folder) / HEADS.name
    state = _state(path, HEADS)
    heads = [_tensor(path, state, layer.head, (1, layer.channels, 1, 1)).flatten() for layer in CONVOLUTIONS]
    return Lpips(kernels, biases, heads).on(device or torch.device("cpu"))


def _state(path: Path, published: WeightsFile) -> Mapping[str, Any]:
    """The tensors of a file, by name."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != published.sha256:
                raise WrongWeights(
                    f"LPIPS weights: {path}: is not {published.publisher} as published: its SHA-256 "
                    f"begins with {found[:16]}, that of the published file with {published.sha256[:16]}"
                )
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WrongWeights(
            f"LPIPS weights: {path}: cannot be read ({error.strerror}); {published.publisher} must be there, "
            "under the name it is published by"
        ) from error


def _tensor(path: Path, state: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> Tensor:
    tensor = state.get(name)
    if not isinstance(tensor, Tensor) or tensor.shape != shape:
        raise WrongWeights(f"LPIPS weights: {path}: holds no tensor {name} of shape {shape}")
    return tensor
