"""How much an image looks like a particle of a specimen, in any pose: the best match of its projections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from common.contrast_transfer import contrast_transfer
from common.rings import radial_bins, ring_means
from common.session import SpecimenSpec
from detector_sim.specimen.projection import Projector
from detector_sim.specimen.specimen import read_potential

REACH = 4
"""Pixels that a particle may lie from the middle of its frame, in both directions."""


class Projections:
    """Projections of a specimen in random poses, seen through any CTF.

    Parameters
    ----------
    spec : SpecimenSpec
        Structure, frame and microscope.
    count : int
        Poses, uniform over all rotations.
    seed : int
        Of the poses; not those of the specimen's own frames.
    """

    def __init__(self, spec: SpecimenSpec, count: int, seed: int = 0) -> None:
        projector = Projector(read_potential(spec))
        generator = np.random.Generator(np.random.Philox(key=[seed, 1 << 63]))
        rotations = torch.from_numpy(Rotation.random(count, generator).as_matrix())
        images = torch.zeros(count, spec.side_pixels, spec.side_pixels)
        side, inside = spec.side_pixels, projector.side
        first, cut = max(0, side // 2 - inside // 2), max(0, inside // 2 - side // 2)
        kept = min(side, inside)
        patches = projector.project(rotations, torch.zeros(count, 2))[:, cut : cut + kept, cut : cut + kept]
        images[:, first : first + kept, first : first + kept] = patches
        self._spectra = torch.fft.rfft2(images)

    def seen(self, response: Tensor) -> Tensor:
        """Spectra through a response on ``rfft2``'s half-plane, each of length one as an image."""
        spectra = self._spectra * response
        spectra[:, 0, 0] = 0
        # by Parseval: each column but kx = 0 and Nyquist stands for two
        height, columns = spectra.shape[1:]
        weight = torch.full((columns,), 2.0)
        weight[0] = weight[-1] = 1.0
        power = (torch.view_as_real(spectra).square().sum(-1) * weight).sum((1, 2))
        return spectra / (power / (height * 2 * (columns - 1))).sqrt()[:, None, None]


def best_matches(
    kinds: Sequence[Tensor], specimens: Mapping[str, Projections], transfers: Tensor, left_open: Tensor
) -> list[dict[str, Tensor]]:
    """Normalised correlation of images with the projection of each specimen that is likest, shifted at will.

    Parameters
    ----------
    kinds : sequence of Tensor
        (B, H, W), H and W even: several images of each frame.
    specimens : mapping of str to Projections
        As many poses of each.
    transfers : Tensor
        (B, H, W//2+1), the CTF of each frame.
    left_open : Tensor
        (H, W//2+1), what projections are filtered with.

    Returns
    -------
    list of dict
        For each kind: the specimens' (B,) float64.
    """
    found: list[dict[str, list[float]]] = [{name: [] for name in specimens} for _ in kinds]
    shape = kinds[0].shape[1:]
    spectra = [torch.fft.rfft2(images.float()) for images in kinds]
    lengths = [images.double().flatten(1).norm(dim=1).clamp_min(1e-30) for images in kinds]
    for frame, transfer in enumerate(transfers):
        response = transfer * left_open
        for name, projections in specimens.items():
            seen = projections.seen(response)
            for matches, spectrum, length in zip(found, spectra, lengths, strict=True):
                correlations = torch.fft.irfft2(spectrum[frame] * seen.conj(), s=shape)
                # shifts of -REACH to REACH in both directions lie in the four corners
                correlations = correlations.roll((REACH, REACH), (1, 2))[:, : 2 * REACH + 1, : 2 * REACH + 1]
                matches[name].append(float(correlations.max() / length[frame]))
    return [{name: torch.tensor(v, dtype=torch.float64) for name, v in m.items()} for m in found]


def transfers_of(spec: SpecimenSpec, metadata: Mapping[str, Sequence[Any]]) -> Tensor:
    """The CTFs of simulated frames, (B, H, W//2+1) float32, from their RELION columns."""
    defocus_u, defocus_v, angle = (
        torch.tensor(metadata[name]) for name in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
    )
    return contrast_transfer(
        defocus_u, defocus_v, angle,
        shape=(spec.side_pixels, spec.side_pixels), pixel_size_angstrom=spec.pixel_size_angstrom,
        voltage_kv=spec.voltage_kv, spherical_aberration_mm=spec.spherical_aberration_mm,
        amplitude_contrast=spec.amplitude_contrast, envelope_b_factor=spec.envelope_b_factor,
    )  # fmt: skip


def left_open(missing: Tensor, truth: Tensor) -> Tensor:
    """Root of the share of the truth's power that is missing, ring by ring, on the half-plane of ``rfft2``.

    A particle filtered with it looks like what a linear estimate of it would leave to be added.
    """
    shape = (int(truth.shape[1]), int(truth.shape[2]))
    left, whole = (
        ring_means(torch.fft.rfft2(images.double()).abs().square().sum(0), shape)
        for images in (missing, truth)
    )
    return (left / whole.clamp_min(1e-30)).sqrt().float()[radial_bins(shape)]
