"""What the benchmark shows: tables in the terminal, and frames as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from reconstructor.priors.pictures import grey

if TYPE_CHECKING:
    from services.hallucination.measure import Recovered

WIDTH = 110  # where there is no terminal to say how wide
ZOOM, GAP, LABEL = 2, 6, 16  # of the picture; pixels
WHITEST = 0.995  # share of the truth's pixels that are not lost in white or black


def show(result: Mapping[str, Any]) -> None:
    """The tables."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    console.print(
        f"prior {result['prior']['name']}, trained on {result['prior']['trained_on']}\n"
        f"{result['frames']} frames of each specimen at SNR {result['snr']:g}, {_mask(result)}; "
        f"{result['evaluations']} evaluations, {result['samples']} samples"
    )
    specimens: Mapping[str, Any] = result["specimens"]
    console.print(_truth_table(specimens))
    console.print(_added_table(specimens))
    console.print(_likest_table(specimens))
    console.print(_warning_table(specimens))
    for name, chances in result["told_apart_from_known"].items():
        told = ", ".join(f"by {figure.replace('_', ' ')} {value:.2f}" for figure, value in chances.items())
        console.print(f"{name} told from the specimens it knows: {told} (0.5: not at all; 1: always)")


def _mask(result: Mapping[str, Any]) -> str:
    return f"{result['mask']['kind'].replace('-', ' ')}, C = {result['compression_factor']:.3g}"


def _truth_table(specimens: Mapping[str, Any]) -> Table:
    table = _table("Against the truth", "specimen", "seen", "recovery", "error", "FRC, mean")
    for name, found in specimens.items():
        for number, (recovery, against) in enumerate(found["recoveries"].items()):
            table.add_row(
                *((name, "yes" if found["known"] else "no") if number == 0 else ("", "")),
                recovery.replace("_", " "),
                f"{against['error']:.3f}",
                f"{against['frc_area']:.3f}",
            )
    return table


def _added_table(specimens: Mapping[str, Any]) -> Table:
    table = _table(
        "What the prior added to the linear estimate; how like the specimens it was trained on that is",
        "specimen", "shift (5, 50, 95 %)", "right", "error removed", "added", "missing", "invented", "chance",
    )  # fmt: skip
    for name, found in specimens.items():
        added, alike = found["added"], found["added"]["trained_likeness"]
        shift = torch.tensor(found["prior_shift"], dtype=torch.float64)
        table.add_row(
            name,
            ", ".join(f"{value:.2f}" for value in shift.quantile(_quantiles()).tolist()),
            f"{added['right']:.2f}",
            f"{100 * added['error_removed']:.0f} %",
            *(_number(alike[kind]) for kind in ("added", "missing", "invented", "featureless")),
        )
    return table


def _likest_table(specimens: Mapping[str, Any]) -> Table:
    kinds = ("added", "missing", "invented")
    table = _table("Which specimen it looks most like, share of the frames", "specimen", *kinds)
    for name, found in specimens.items():
        table.add_row(name, *(_shares(found["added"]["likest"][kind]) for kind in kinds))
    return table


def _warning_table(specimens: Mapping[str, Any]) -> Table:
    table = _table(
        "Whether the spread of the samples warns", "specimen", "spread", "error over it",
        "pixels within 2 of it", "rank correlation, frames", "correlation, pixels",
    )  # fmt: skip
    for name, found in specimens.items():
        spread = found["spread"]
        table.add_row(
            name,
            f"{spread['size']:.3f}",
            f"{spread['error_over_spread']:.2f}",
            f"{100 * spread['pixels_within_two']:.0f} %",
            f"{spread['rank_correlation_of_frames']:.2f}",
            f"{spread['correlation_of_pixels']:.2f}",
        )
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False, title=title, title_justify="left")
    words = ("specimen", "seen", "recovery")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in words else "right")
    return table


def _quantiles() -> Tensor:
    return torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{Path(name).stem} {100 * share:.0f} %" for name, share in shares.items() if share > 0)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def draw(made: Mapping[str, Recovered], path: Path, count: int) -> None:
    """Frames of each specimen in grey: those whose shift by the prior is nearest to the median."""
    rows: list[list[tuple[str, Image.Image]]] = []
    for name, some in made.items():
        order = (some.prior_shift - some.prior_shift.median()).abs().argsort()
        for index in order[:count].tolist():
            truth = some.truth[index]
            top = float(truth.abs().quantile(WHITEST)) or 1.0
            error = (some.mean[index] - truth).abs()
            rows.append(
                [
                    (f"{Path(name).stem}, truth", grey(truth / top, ZOOM)),
                    ("minimum norm", grey(some.minimum_norm[index] / top, ZOOM)),
                    ("Wiener", grey(some.wiener[index] / top, ZOOM)),
                    ("learned prior", grey(some.learned[index] / top, ZOOM)),
                    ("mean of samples", grey(some.mean[index] / top, ZOOM)),
                    ("missing", grey((truth - some.wiener[index]) / top, ZOOM)),
                    ("added", grey((some.learned[index] - some.wiener[index]) / top, ZOOM)),
                    ("error of the mean", grey(error * 2 / top - 1, ZOOM)),
                    ("spread", grey(some.spread[index] * 2 / top - 1, ZOOM)),
                ]
            )
    width, height = rows[0][0][1].size
    sheet = Image.new("L", (len(rows[0]) * (width + GAP), len(rows) * (height + LABEL + GAP)), 255)
    pen = ImageDraw.Draw(sheet)
    for down, row in enumerate(rows):
        for across, (title, image) in enumerate(row):
            place = across * (width + GAP), down * (height + LABEL + GAP)
            pen.text((place[0] + 2, place[1] + 2), title, fill=0)
            sheet.paste(image, (place[0], place[1] + LABEL))
    sheet.save(path, optimize=True)
