"""A soak in words and figures, for the terminal and for the documentation."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.soak import plots
from benchmarks.soak.verdict import findings, growths

Document = Mapping[str, Any]

PAGE = "reliability.md"
BEGIN = "<!-- of the soak; written by make soak, not by hand -->"
END = "<!-- end of the soak -->"


def text(document: Document) -> str:
    """The figures, as Markdown."""
    return "\n".join(_lines(document))


def _lines(document: Document) -> Iterator[str]:
    day = time.strftime("%d %B %Y", time.gmtime(document["began_at"])).lstrip("0")
    deeds = Counter(deed["verb"] for deed in document["deeds"] if deed["outcome"] == "done")
    done = ", ".join(f"{count} × {verb}" for verb, count in sorted(deeds.items()))
    length = f"{document['minutes']:g} minutes, seed {document['seed']}"
    yield f"{day}, {document['machine']}; {length}. Done: {done}."
    yield ""
    yield "| promise | | found |"
    yield "|---|---|---|"
    for finding in findings(document):
        yield f"| {finding.promise} | {'kept' if finding.is_kept else '**broken**'} | {finding.found} |"
    yield ""
    yield (
        "| phase | sessions | frames | delivered twice | detector restarts | frames/s | on the wire, Mbit/s "
        "| latency p50 | p99 |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for phase in document["phases"]:
        yield _phase(phase)
    yield ""
    memory, descriptors = growths(document, "rss"), growths(document, "descriptors")
    anonymous = growths(document, "anonymous")
    if memory:
        yield (
            "| process | resident | growth, % an hour (95 %) | | of it anonymous | descriptors "
            "| their growth |"
        )
        yield "|---|---|---|---|---|---|---|"
    for name, found in sorted(memory.items()):
        own, count = anonymous[name], descriptors[name]
        yield (
            f"| {name} | {found.level / 1e6:.1f} MB "
            f"| {found.percent_per_hour:+.2f} ({found.low:+.2f} to {found.high:+.2f}) | {found.verdict} "
            f"| {own.level / 1e6:.1f} MB, {own.percent_per_hour:+.2f} ({own.low:+.2f} to {own.high:+.2f}) "
            f"| {count.level:.0f} | {count.percent_per_hour:+.2f} |"
        )
    if memory:
        minutes = next(iter(memory.values())).seconds / 60
        yield ""
        yield f"Growth is that of the last {minutes:.1f} minutes of the steady phase."
        yield ""
    peaks = ", ".join(f"{name} {peak / 1e6:.0f} MB" for name, peak in sorted(_peaks(document).items()))
    yield f"Most memory at any time: {peaks}."


def _phase(phase: Mapping[str, Any]) -> str:
    sessions = phase["sessions"]
    frames = sum(session["recovered"] for session in sessions)
    seconds = sum(session["elapsed_seconds"] for session in sessions)
    wire = sum(session["wire_mbit_per_s"] * session["elapsed_seconds"] for session in sessions)
    latencies = [[session["latency"][f"p{p}_seconds"] for session in sessions] for p in (50, 99)]
    middle, last = (_seconds(sorted(values)[len(values) // 2]) for values in latencies)
    worst = _seconds(max(latencies[1]))
    tail = last if len(sessions) == 1 else f"{last}, at worst {worst}"
    return (
        f"| {phase['name']} | {len(sessions)} | {frames} "
        f"| {sum(session['delivered_twice'] for session in sessions)} "
        f"| {sum(session['detector_restarts'] for session in sessions)} "
        f"| {frames / seconds:.3g} | {wire / seconds:.3g} | {middle} | {tail} |"
    )


def _seconds(value: float) -> str:
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"


def _peaks(document: Document) -> dict[str, int]:
    peaks: dict[str, int] = {}
    for process in document["processes"].values():
        peaks[process["name"]] = max(peaks.get(process["name"], 0), *process["rss"])
    return peaks


def publish(document: Document, docs: Path) -> None:
    """Put the figures between their marks in the page, and the plots beside the other pictures.

    Raises
    ------
    ValueError
        If the page has no such marks.
    """
    path = docs / PAGE
    page = path.read_text()
    if BEGIN not in page or END not in page:
        raise ValueError(f"{path}: the lines {BEGIN!r} and {END!r} are missing")
    drawn = plots.draw(document, docs / "pictures")
    pictures = "\n\n".join(f"![Soak: {one.stem.removeprefix('soak-')}](pictures/{one.name})" for one in drawn)
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n\n{text(document)}\n\n{pictures}\n\n{END}{after}")
