"""Particles of specimens a prior never saw beside those it knows: what it adds, and whether it warns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.calibration import Calibration
from common.operators import LinearOperator, MaskSpec
from common.session import RecoverySpec, SpecimenSpec
from detector_sim.specimen import Specimen
from reconstructor.priors import load_prior
from reconstructor.priors.base import PriorCard
from reconstructor.quality import frc
from reconstructor.recovery import Recovery
from services import specification as wanted
from services.display import counting
from services.failure import CannotRun, WrongOption
from services.hallucination import figures
from services.hallucination.likeness import Projections, best_matches, left_open, transfers_of
from services.hallucination.report import draw, show
from services.options import HallucinationOptions, MaskOptions

UNKNOWN = ("bundle",)  # of the built-in shapes, the one that the prior in the box was not trained on
KNOWN = ("cage", "barrel", "ring")
REFERENCES = 4  # frames that the calibration is taken from, as in a session
PROJECTIONS = 512  # poses of each specimen to look for what was added
AT_A_TIME = 16  # frames
DRAWN = 2  # frames of each specimen in the picture
RESULT, PICTURE = "hallucination.json", "hallucination.png"


class Recovered(NamedTuple):
    """Frames of a specimen and what was made of them; images (B, H, W) about mean level zero, on the CPU.

    ``learned`` is the image that a session shows; ``mean`` and ``spread`` are of several draws.
    """

    spec: SpecimenSpec
    truth: Tensor
    minimum_norm: Tensor
    wiener: Tensor
    learned: Tensor
    mean: Tensor
    spread: Tensor
    prior_shift: Tensor  # (B,)
    transfers: Tensor  # (B, H, W//2+1), of the microscope


def bench_hallucination(options: HallucinationOptions, masks: MaskOptions, device: torch.device) -> int:
    """Recover, judge, and write table, JSON and picture.

    Raises
    ------
    CannotRun
        In one line.
    """
    mask = wanted.mask(
        masks.mask or "coded-aperture",
        masks.compression,
        kernel_size=masks.kernel,
        mask_count=masks.masks,
        pattern=masks.pattern,
        symmetry=masks.symmetry,
        seed=masks.seed,
    )
    try:
        card = load_prior(options.prior, device).card
    except ValueError as error:
        raise WrongOption(f"--prior: {error}") from error
    if card.content != "clean":
        raise WrongOption(
            f"--prior: {options.prior} has noise for a part of its images, so that what it adds cannot be "
            "held against a particle; give one of images without noise"
        )
    known, unknown = options.known or KNOWN, options.structure or UNKNOWN
    # all of them first: a wrong one should be told at once
    specimens = {name: _specimen(name, card, options) for name in dict.fromkeys([*known, *unknown])}
    try:
        op = mask.build((card.side_pixels, card.side_pixels))
    except ValueError as error:
        raise WrongOption(f"--kernel: {error}") from error
    options.output.mkdir(parents=True, exist_ok=True)
    made: dict[str, Recovered] = {}
    with counting("frames", options.frames * len(specimens)) as progress:
        for number, (name, specimen) in enumerate(specimens.items()):
            parts = []
            for part in _recovered(specimen, op, options, device):
                parts.append(part)
                progress(number * options.frames + sum(len(part.truth) for part in parts))
            made[name] = _joined(parts)
    result = judged(made, set(known), options, mask, op, card)
    try:
        (options.output / RESULT).write_text(json.dumps(result, indent=1) + "\n")
        draw(made, options.output / PICTURE, DRAWN)
    except OSError as error:
        raise CannotRun(f"{error.filename or options.output}: {error.strerror or error}") from error
    show(result)
    print(f"figures in {options.output / RESULT}, frames in {options.output / PICTURE}")
    return 0


def _specimen(structure: str, card: PriorCard, options: HallucinationOptions) -> Specimen:
    pixel_size = options.pixel_size
    if pixel_size is None:
        if card.pixel_size_angstrom is None:
            raise WrongOption(f"--pixel-size: the card of {card.name} does not tell it; give it")
        pixel_size = card.pixel_size_angstrom[1]  # the largest: whole particles
    fields = {
        "structure": structure, "side_pixels": card.side_pixels, "pixel_size_angstrom": pixel_size,
        "snr": options.snr, "seed": options.specimen_seed,
    }  # fmt: skip
    spec: SpecimenSpec = wanted.validated(SpecimenSpec, fields, "source.specimen")
    try:
        return Specimen(spec)
    except ValueError as error:
        raise WrongOption(f"--structure: {error}") from error


def _recovered(
    specimen: Specimen, op: LinearOperator, options: HallucinationOptions, device: torch.device
) -> Iterator[Recovered]:
    """A session of one specimen, in parts: its first frames are the references, the next are recovered."""
    calibration = Calibration.from_frames(torch.from_numpy(specimen.batch(0, REFERENCES).frames).float())
    learned = {"prior": options.prior, "evaluations": options.evaluations}
    minimum_norm, wiener, usual, several = (
        Recovery(op, RecoverySpec(method=method, parameters=parameters, free_share=0), calibration)
        for method, parameters in (
            ("minimum_norm", {}),
            ("wiener", {"data_weight": 0.0}),
            ("diffusion", learned),
            ("diffusion", {**learned, "samples": options.samples}),
        )
    )
    for first in range(REFERENCES, REFERENCES + options.frames, AT_A_TIME):
        count = min(AT_A_TIME, REFERENCES + options.frames - first)
        batch, numbers = specimen.batch(first, count), range(first, first + count)
        y = op.A(torch.from_numpy(batch.frames).float().to(device))
        shown, mean = usual(y, numbers), several(y, numbers)
        assert mean.spread is not None  # several samples are asked for
        yield Recovered(
            specimen.spec,
            _about_level(torch.from_numpy(batch.clean)),
            _about_level(minimum_norm(y, numbers).images),
            _about_level(wiener(y, numbers).images),
            _about_level(shown.images),
            _about_level(mean.images),
            mean.spread.cpu().double(),
            shown.prior_shift.cpu().double(),
            transfers_of(specimen.spec, batch.metadata),
        )


def _about_level(images: Tensor) -> Tensor:
    images = images.cpu().double()
    return images - images.mean((1, 2), keepdim=True)


def _joined(parts: list[Recovered]) -> Recovered:
    return Recovered(parts[0].spec, *(torch.cat(some) for some in list(zip(*parts, strict=True))[1:]))


# ---- figures ------------------------------------------------------------------------------------------


def judged(
    made: dict[str, Recovered],
    known: set[str],
    options: HallucinationOptions,
    mask: MaskSpec,
    op: LinearOperator,
    card: PriorCard,
) -> dict[str, Any]:
    """Everything that is told, as it is written to the JSON file."""
    library = {name: Projections(some.spec, PROJECTIONS) for name, some in made.items()}
    specimens = {name: _judged(some, name, known, library) for name, some in made.items()}
    usual = [made[name] for name in made if name in known]
    apart = {
        name: {
            figure: figures.told_apart(
                torch.cat([_warning(some, figure) for some in usual]), _warning(made[name], figure)
            )
            for figure in ("prior_shift", "spread")
        }
        for name in made
        if usual and name not in known
    }
    return {
        "prior": card.model_dump(),
        "mask": mask.model_dump(),
        "compression_factor": op.compression_factor,
        "snr": options.snr,
        "frames": options.frames,
        "evaluations": options.evaluations,
        "samples": options.samples,
        "specimens": specimens,
        "told_apart_from_known": apart,
    }


def _warning(some: Recovered, figure: str) -> Tensor:
    """A figure of each frame that is there without the truth."""
    if figure == "prior_shift":
        return some.prior_shift
    return figures.norm(some.spread) / figures.norm(some.mean)


def _judged(some: Recovered, name: str, known: set[str], library: dict[str, Projections]) -> dict[str, Any]:
    added, missing = some.learned - some.wiener, some.truth - some.wiener
    _, invented = figures.right_and_invented(added, missing)
    kinds = {
        "added": added,
        "missing": missing,
        "invented": invented,
        "featureless": figures.featureless(invented),
    }
    matches = best_matches(list(kinds.values()), library, some.transfers, left_open(missing, some.truth))
    trained = [other for other in library if other in known]
    size = figures.norm(some.truth)
    error, told = figures.norm(some.mean - some.truth), figures.norm(some.spread)
    wrong = (some.mean - some.truth).abs()
    return {
        "known": name in known,
        "recoveries": {
            recovery: _against_truth(images, some)
            for recovery, images in (
                ("minimum_norm", some.minimum_norm),
                ("wiener", some.wiener),
                ("diffusion", some.learned),
                ("diffusion, mean of samples", some.mean),
            )
        },
        "prior_shift": [_rounded(value) for value in some.prior_shift.tolist()],
        "added": {
            "size": _mean(figures.norm(added) / size),
            "missing": _mean(figures.norm(missing) / size),
            "right": _mean(figures.cosine(added, missing)),
            "error_removed": _mean(figures.error_removed(added, missing)),
            "trained_likeness": {
                kind: _mean(torch.stack([found[other] for other in trained]).amax(0)) if trained else None
                for kind, found in zip(kinds, matches, strict=True)
            },
            "likest": {
                kind: _likest(found)
                for kind, found in zip(kinds, matches, strict=True)
                if kind != "featureless"
            },
        },
        "spread": {
            "size": _mean(told / size),
            "error_over_spread": _rounded(float(error.square().mean().sqrt() / told.square().mean().sqrt())),
            "pixels_within_two": _mean((wrong <= 2 * some.spread).double()),
            "rank_correlation_of_frames": _rounded(figures.ranks_agree(error / size, told / size)),
            "correlation_of_pixels": _mean(figures.cosine(_about_level(wrong), _about_level(some.spread))),
        },
    }


def _against_truth(images: Tensor, some: Recovered) -> dict[str, Any]:
    curve = frc(images, some.truth).mean(0)
    return {
        "error": _mean(figures.norm(images - some.truth) / figures.norm(some.truth)),
        "frc_area": _rounded(float(curve[1:].mean())),
        "frc": [_rounded(value) for value in curve.tolist()],
    }


def _likest(matches: dict[str, Tensor]) -> dict[str, float]:
    """Share of the frames that look most like each specimen."""
    best = torch.stack(list(matches.values())).argmax(0)
    shares = torch.bincount(best, minlength=len(matches)).double() / len(best)
    return {name: _rounded(float(share)) for name, share in zip(matches, shares, strict=True)}


def _mean(values: Tensor) -> float:
    return _rounded(float(values.double().mean()))


def _rounded(value: float) -> float:
    return float(np.format_float_positional(value, precision=5, unique=False, fractional=False))
