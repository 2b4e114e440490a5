"""``python -m benchmarks.learned PART``: the figures of docs/learned-prior.md.

- ``quality``: recoveries against truth and noisy frame; goes on where it was. On one core half an hour,
  and for ``nesterov, 1000``, which comes last, eight more.
- ``speed``: samplers against the bare evaluations of their network; some minutes.
- ``pictures``: the same particles under each recovery; some minutes.
- ``page``: the page from what was measured.

Figures are kept in the folder ``--results``. Those of other weights of the prior are measured anew; those
that a change of the code makes void are not: remove them then.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch


def _parser() -> argparse.ArgumentParser:
    from benchmarks.learned.quality import FRAMES, MASKS, RECOVERIES

    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m benchmarks.learned", description=__doc__, formatter_class=form
    )
    parser.add_argument("part", choices=("quality", "speed", "pictures", "page"))
    parser.add_argument("--results", type=Path, default=Path("output/learned"), metavar="FOLDER")
    parser.add_argument("--prior", default="small", help="a prior in the box or a folder (default: small)")
    parser.add_argument("--frames", type=int, default=FRAMES, metavar="N", help="32: a quick look")
    parser.add_argument("--recovery", action="append", choices=tuple(RECOVERIES), help="repeatable")
    parser.add_argument("--mask", action="append", choices=tuple(MASKS), help="repeatable")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda"
    )
    return parser


def main() -> None:
    """Measure or write."""
    options = _parser().parse_args()
    results: Path = options.results
    match options.part:
        case "quality":
            from benchmarks.learned import quality

            recoveries = options.recovery or tuple(quality.RECOVERIES)
            masks = options.mask or tuple(quality.MASKS)
            try:
                quality.measure(results, options.prior, options.frames, recoveries, masks, options.device)
            except ValueError as error:
                raise SystemExit(str(error)) from error
        case "speed":
            from benchmarks.__main__ import machine
            from benchmarks.learned import speed

            torch.set_num_threads(min(2, torch.get_num_threads()))
            lines = [machine(), "", *map(str, speed.on(options.device))]
            results.mkdir(parents=True, exist_ok=True)
            (results / f"speed-{options.device}.txt").write_text("\n".join(lines) + "\n")
            print("\n".join(lines))
        case "pictures":
            from benchmarks.learned import pictures

            pictures.main(options.prior)
        case _:
            from benchmarks.learned import page

            page.write(results)


if __name__ == "__main__":
    main()
