"""Writes what was measured into docs/learned-prior.md; what was not is said to be missing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.document import put
from benchmarks.learned.quality import (
    AGAINST,
    FRAMES,
    HARD,
    MASKS,
    RECOVERIES,
    SPARSE,
    Cell,
    Claim,
    at_least_as_good,
    cells,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "learned-prior.md"
NOT_YET = "*Not measured yet.*"
HEADINGS = {"psnr": "PSNR, dB", "ssim": "SSIM", "frc": "FRC, mean up to Nyquist"}
NOUNS = {"truth": "the clean truth", "frame": "the noisy frame"}
FORMS = {"psnr": ".2f", "ssim": ".3f", "frc": ".3f"}
DEFAULT, SLOW = "posterior, 20", "nesterov, 1000"
LINEAR = ("minimum norm", "wiener", "wiener, data weight 0")


def write(results: Path) -> None:
    """All parts of the page."""
    known = cells(results)
    put(DOCUMENT, "claims", list(claims(known)))
    put(DOCUMENT, "quality", list(quality(known)))
    put(DOCUMENT, "speed", list(speed(results)))
    put(DOCUMENT, "hallucination", list(hallucination(results)))
    for name, told in (
        ("learned-prior", "One particle of each specimen under each recovery"),
        ("hallucination", "Particles of known specimens and of one never seen, with what the prior added"),
    ):
        there = (DOCUMENT.parent / "pictures" / f"{name}.png").exists()
        put(
            DOCUMENT,
            f"picture {name}",
            [f"![{told}](pictures/{name}.png)" if there else "*Not made yet.*"],
        )


# ---- quality --------------------------------------------------------------------------------------------


def quality(known: Mapping[tuple[str, str], Cell]) -> Iterator[str]:
    """A table for each figure against each reference, and one of times."""
    if not known:
        yield NOT_YET
        return
    fewest, most = (choose(cell.frames for cell in known.values()) for choose in (min, max))
    if fewest < FRAMES:
        yield f"Not finished: of {FRAMES} frames, {fewest} to {most} are in; a dash is a cell that is not."
    for against in AGAINST:
        for figure, heading in HEADINGS.items():
            yield f"\n**{heading}, against {NOUNS[against]}**\n"
            values = {key: float(cell.values(f"{against} {figure}").mean()) for key, cell in known.items()}
            yield from _table(values, FORMS[figure])
    yield "\n**Seconds a frame**\n"
    yield from _table({key: cell.seconds for key, cell in known.items()}, ".2g", bold=False)


def _table(values: Mapping[tuple[str, str], float], form: str, bold: bool = True) -> Iterator[str]:
    yield "| recovery | " + " | ".join(MASKS) + " |"
    yield "|---" * (len(MASKS) + 1) + "|"
    best = {mask: max((v for (m, _), v in values.items() if m == mask), default=0.0) for mask in MASKS}
    for recovery in RECOVERIES:
        row = []
        for mask in MASKS:
            value = values.get((mask, recovery))
            text = "–" if value is None else f"{value:{form}}"
            is_best = bold and value is not None and text == f"{best[mask]:{form}}"
            row.append(f"**{text}**" if is_best else text)
        yield f"| {recovery} | {' | '.join(row)} |"


def claims(known: Mapping[tuple[str, str], Cell]) -> Iterator[str]:
    """A line for each thing that was to be shown, and what does not bear it out."""
    slow = f"`{DEFAULT}` at least as good as `{SLOW}`"
    yield from _verdict(slow, at_least_as_good(known, DEFAULT, (SLOW,), tuple(MASKS), AGAINST))
    sparse = f"`{DEFAULT}` better than every sparse prior, K ≥ 16 and C ≥ 2.5, against the truth"
    yield from _verdict(sparse, at_least_as_good(known, DEFAULT, SPARSE, HARD, ("truth",)))
    linear = f"`{DEFAULT}` better than the linear estimates, against the truth"
    yield from _verdict(linear, at_least_as_good(known, DEFAULT, LINEAR, tuple(MASKS), ("truth",)))


def _verdict(told: str, claim: Claim) -> Iterator[str]:
    if claim.missing == claim.asked:
        yield f"- {told}: not measured yet."
        return
    verdict = "**holds**" if claim.held == claim.asked else f"in {claim.held} of {claim.asked} comparisons"
    left = f" ({claim.missing} not measured yet)" if claim.missing else ""
    yield f"- {told}: {verdict}{left}." + (" Not:" if claim.failed else "")
    yield from (f"    - {line}" for line in claim.failed)


# ---- speed and hallucination ------------------------------------------------------------------------------


def speed(results: Path) -> Iterator[str]:
    """The lines of each machine that was measured."""
    files = sorted(results.glob("speed-*.txt"))
    if not files:
        yield NOT_YET
    for file in files:
        yield from ("```", file.read_text().rstrip(), "```")
    if not any("cuda" in file.name for file in files):
        yield "\nOn a CUDA GPU: not measured yet."


def hallucination(results: Path) -> Iterator[str]:
    """Tables of every result of ``cryoflux bench hallucination`` in ``results/hallucination*/``."""
    files = sorted(results.glob("hallucination*/hallucination.json"))
    if not files:
        yield NOT_YET
    for file in files:
        result = json.loads(file.read_text())
        mask = result["mask"]
        kind = f"K={mask['kernel_size']} b={mask['mask_count']}" if "kernel_size" in mask else mask["pattern"]
        yield (
            f"\n**{mask['kind'].replace('-', ' ')}, {kind}, C = {result['compression_factor']:.3g}**, SNR "
            f"{result['snr']:g}, {result['frames']} frames each\n"
        )
        specimens: Mapping[str, Any] = result["specimens"]
        yield from _hallucination_rows(specimens)
        for name, chances in result["told_apart_from_known"].items():
            told = ", ".join(
                f"by {figure.replace('_', ' ')} {value:.2f}" for figure, value in chances.items()
            )
            yield f"\n{name} told from the specimens it knows: {told} (0.5: not at all; 1: always)."


def _hallucination_rows(specimens: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "| specimen | seen | FRC: minimum norm | Wiener | learned | mean of samples | shift, median | right "
        "| error removed | like trained: added | missing | invented | chance | error over spread |"
    )
    yield "|---" * 14 + "|"
    for name, found in specimens.items():
        against, added = found["recoveries"], found["added"]
        alike = added["trained_likeness"]
        numbers = [
            *(f"{against[r]['frc_area']:.3f}" for r in against),
            f"{_median(found['prior_shift']):.2f}",
            f"{added['right']:.2f}",
            f"{100 * added['error_removed']:.0f} %",
            *(f"{alike[kind]:.3f}" for kind in ("added", "missing", "invented", "featureless")),
            f"{found['spread']['error_over_spread']:.2f}",
        ]
        yield f"| {name} | {'yes' if found['known'] else 'no'} | {' | '.join(numbers)} |"


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
