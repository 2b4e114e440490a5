"""``python -m benchmarks.soak``: load, changes and kills; samples, plots and a verdict.

The exit status is 0 if every promise was kept. All samples are written to ``soak.json`` in the output
folder, and the plots beside it; ``--docs`` puts plots and figures into the documentation as well, and
``--from`` makes both anew from a file of samples.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.__main__ import machine
from benchmarks.soak import page, plots
from benchmarks.soak.deeds import Deeds
from benchmarks.soak.installation import Installation, Unfit
from benchmarks.soak.plan import (
    LARGE_FRAMES,
    LARGE_SHAPE,
    LIMITED,
    LINK_MBIT_PER_S,
    RATE,
    SHAPE,
    SHARES,
    SMALL_FRAMES,
    SMALL_SHAPE,
    WINDOW_BYTES,
    Phase,
    plan,
)
from benchmarks.soak.results import check
from benchmarks.soak.verdict import ended_by_themselves, errors, findings
from benchmarks.soak.watch import Watch
from common.session import CameraSpec, PatternSource, RecoverySpec, SessionSpec

FORMAT = 1
FREE_BYTES_PER_MINUTE = 300e6


def main(arguments: list[str]) -> int:
    """Run the soak, or only tell again what one found."""
    options = _parser().parse_args(arguments)
    output = options.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    if options.told is not None:
        document = json.loads(options.told.read_text())
    else:
        try:
            document = soak(options.minutes, options.seed, options.phases, output, keep=options.keep)
        except Unfit as error:
            print(f"soak: {error}", file=sys.stderr)
            return 2
        (output / "soak.json").write_text(json.dumps(document, separators=(",", ":")))
    if document["accounts"]:
        plots.draw(document, output)
    found = list(findings(document))
    print(page.text(document))
    for finding in found:
        print(finding)
    print(f"samples and plots: {output}")
    if options.docs is not None:
        page.publish(document, options.docs)
    return int(not all(finding.is_kept for finding in found))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0, help="of what is done and when")
    parser.add_argument("--phases", nargs="+", choices=list(SHARES), default=list(SHARES))
    parser.add_argument("--output", type=Path, default=Path("output/soak"))
    parser.add_argument("--keep", action="store_true", help="the sessions' results, some GB")
    parser.add_argument("--docs", type=Path, help="folder of the documentation, to be brought up to date")
    parser.add_argument("--from", dest="told", type=Path, metavar="SOAK.JSON", help="measure nothing")
    return parser


def soak(minutes: float, seed: int, phases: list[str], output: Path, *, keep: bool) -> dict[str, Any]:
    """Run all phases in one installation; everything that was seen."""
    needed = FREE_BYTES_PER_MINUTE * minutes
    if shutil.disk_usage(output).free < needed + 5e9:
        raise Unfit(f"{output}: {needed / 1e9 + 5:.0f} GB of free disk are needed")
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=output))
    planned = plan(minutes, seed, tuple(phases))
    document: dict[str, Any] = {
        "format": FORMAT,
        "began_at": time.time(),
        "machine": machine(),
        "minutes": minutes,
        "seed": seed,
        "phases": [],
        "deeds": [],
        "ended_by_themselves": [],
        "errors": [],
    }
    watch = Watch()
    watch.start()
    try:
        limited = [phase for phase in planned if phase.name in LIMITED]
        for name, part in (("limited", limited), ("usual", [p for p in planned if p not in limited])):
            if part:
                settings = {"window_bytes": str(WINDOW_BYTES)} if name == "limited" else {}
                with Installation(folder / name, **settings) as installation:
                    watch.look_at(installation)
                    try:
                        for phase in part:
                            _add(document, phase, installation, watch, keep=keep)
                    except Unfit as error:  # what was seen up to here is told all the same
                        document["errors"].append(str(error))
                    watch.look_at(None)
                    ended = _end(installation)
                for key, lines in ended.items():
                    document[key] += lines
                if not keep:
                    shutil.rmtree(installation.results, ignore_errors=True)
                    shutil.rmtree(installation.folder / "spool", ignore_errors=True)
    finally:
        watch.close()
    document.update(processes=watch.processes, accounts=watch.accounts, unanswered=watch.unanswered)
    return document


def _add(
    document: dict[str, Any], phase: Phase, installation: Installation, watch: Watch, *, keep: bool
) -> None:
    print(f"{phase.name}: {phase.seconds:.0f} s, {len(phase.deeds)} changes and faults", flush=True)
    began = watch.now()
    sessions, done, ended = _run(phase, installation, watch, keep=keep)
    document["phases"].append({"name": phase.name, "began": began, "ended": ended, "sessions": sessions})
    document["deeds"] += done


def _end(installation: Installation) -> dict[str, list[str]]:
    """End it; what went wrong in it."""
    code = installation.end()
    ended = ended_by_themselves(installation.shown.read_text())
    if code:
        ended.append(f"serve ended with code {code}: {installation.last_words()}")
    return {"ended_by_themselves": ended, "errors": errors(installation.folder / "logs")}


def _run(
    phase: Phase, installation: Installation, watch: Watch, *, keep: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], float]:
    """The sessions of a phase, what was done to them, and when the phase ended."""
    if phase.name in LIMITED:
        recovery = RecoverySpec(free_share=0.0)  # so that pixels come back exactly where there is no mask
        spec = _spec(SHAPE, "uint8", CameraSpec(rate=RATE), recovery, link_mbit_per_s=LINK_MBIT_PER_S)
        session = installation.start(spec.model_dump(mode="json"))
        deeds = Deeds(installation, watch, session)
        deeds.do(phase)
        ended = watch.now()
        installation.stop(session)
        return [_checked(installation, session, spec, keep=keep)], deeds.done, ended
    if phase.name == "small":
        camera = CameraSpec(frames=SMALL_FRAMES, reference_every=1000)
        spec = _spec(SMALL_SHAPE, "uint8", camera, RecoverySpec(method="minimum_norm"))
    else:
        camera = CameraSpec(frames=LARGE_FRAMES, reference_every=0, reference_first=1)
        spec = _spec(LARGE_SHAPE, "uint16", camera, RecoverySpec(method="dct"))
    began = time.monotonic()
    sessions: list[dict[str, Any]] = []
    while not sessions or time.monotonic() < began + phase.seconds:
        session = installation.start(spec.model_dump(mode="json"))
        sessions.append(_checked(installation, session, spec, keep=keep))
    return sessions, [], watch.now()


def _spec(
    shape: tuple[int, int], dtype: str, camera: CameraSpec, recovery: RecoverySpec, **more: Any
) -> SessionSpec:
    source = PatternSource(shape=shape, dtype=dtype)  # pyright: ignore[reportArgumentType]
    return SessionSpec(source=source, camera=camera, recovery=recovery, **more)


def _checked(installation: Installation, session: str, spec: SessionSpec, *, keep: bool) -> dict[str, Any]:
    """Wait for the end of a session and look at what it left."""
    found = installation.finished(session)
    output = Path(found["output"])
    assert isinstance(spec.source, PatternSource)
    checked = check(output, spec.source)
    print(
        f"  {checked['recovered']} frames, {checked['frames_per_s']:.1f} a second, "
        f"{checked['detector_restarts']} detector restarts; {'; '.join(checked['wrong']) or 'all there'}",
        flush=True,
    )
    if not keep and not checked["wrong"]:
        shutil.rmtree(output)
    return checked


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
