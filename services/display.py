"""What is shown of a session: a header, a progress bar (or a line now and then), events, a summary."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

LINE_EVERY_SECONDS = 5.0
TABLE_WIDTH = 120
WORTH_A_WARNING = {"bad_file", "worker_silent", "worker_refused", "not_let_in", "silent", "failed", "error",
                   "archive_failed", "recovery_slow", "prior_doubtful"}  # fmt: skip
WORTH_A_NOTE = {"worker_back", "returned", "pause", "resume", "acquisition", "recovery", "archive", "prior"}


class Display:
    """Lines on the terminal; where it is none (a log, a pipe) a line of figures now and then."""

    def __init__(self) -> None:
        self._console = _console()
        self._progress: Progress | None = None
        self._line_at = 0.0

    def header(
        self, session: Mapping[str, Any], address: str, console: str, workers: int, token: bool = False
    ) -> None:
        """What runs, and how to steer it: ``address`` of REST, ``console`` for a browser.

        ``token``: whether REST asks for one.
        """
        height, width = session["shape"]
        frames, setting = session["frames_expected"], session["acquisition"][-1]
        rows = {
            "session": session["id"],
            "input": f"{_source(session['specification']['source'])}, {height}x{width} {session['dtype']}, "
            f"{session['pixel_size_angstrom']:.4g} Å/pixel, "
            f"{f'{frames} frames' if frames else 'until it ends or Ctrl-C'}",
            "mask": f"{_mask(setting['mask'])}, C = {_factor(setting)}",
            "recovery": f"{session['recovery'][-1]['method']}, {_workers(workers)}",
            "results": session["output"],
            "console": console,
            "REST": f"{address}/api/v1/sessions/current  (document: {address}/api/v1/docs)",
        }
        if session["specification"]["source"]["kind"] != "archive":  # masks are then as they were recorded
            rows["change C"] = curl(address, 4, token)
        for name, value in rows.items():
            self._console.print(f"[bold]{name:>9}[/]  {escape(value)}")
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description:>9}"),
                BarColumn(bar_width=16),
                TextColumn("{task.fields[counts]}"),
                TextColumn("{task.fields[figures]}"),
                console=self._console,
            )
            self._progress.add_task("running", total=frames, counts="", figures="")
            self._progress.start()

    def update(self, figures: Mapping[str, Any]) -> None:
        """The figures of now."""
        if self._progress is not None:
            self._progress.update(
                self._progress.task_ids[0],
                description=figures["state"],
                completed=figures["frames"]["acknowledged"],
                counts=_counts(figures),
                figures=_short_figures(figures),
            )
        elif time.monotonic() >= self._line_at or figures["state"] in ("completed", "failed"):
            self._line_at = time.monotonic() + LINE_EVERY_SECONDS
            self._console.print(f"{figures['state']:>9}  {_counts(figures)} recovered  {_figures(figures)}")

    def event(self, event: Mapping[str, Any]) -> None:
        """A line of the session's history, if it is worth one here."""
        if event["kind"] in WORTH_A_WARNING:
            self.warn(event["message"])
        elif event["kind"] in WORTH_A_NOTE:
            self.note(event["message"])

    def note(self, line: str) -> None:
        """Something that happened as it should."""
        self._console.print(f"[cyan]{'·':>9}[/]  {escape(line)}")

    def warn(self, line: str) -> None:
        """Something that should not have happened."""
        self._console.print(f"[yellow]{'warning':>9}[/]  {escape(line)}")

    def close(self) -> None:
        """Take the progress bar down; it may be called again."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def serving(console: str, address: str, workers: int, results: Path) -> None:
    """What runs without a session, and how to start one."""
    rows = {
        "console": console,
        "REST": f"{address}/api/v1  (document: {address}/api/v1/docs)",
        "recovery": _workers(workers),
        "results": str(results.absolute()),
        "start": f"cryoflux start --url {address} --frames 600 --rate 20",
    }
    _table(rows)


def standing(ready: Mapping[str, Any], figures: Mapping[str, Any] | None) -> None:
    """What is there, and how the session goes, if there is one."""
    there = "detector" if ready["detector"] else "no detector"
    rows = {"service": f"{ready['status']}: {there}, {_workers(ready['workers'])}"}
    if ready["detail"]:
        rows["note"] = ready["detail"]
    if figures is None:
        rows["session"] = "none yet"
    else:
        rows["session"] = f"{figures['session']}, {figures['state']}"
        rows["frames"] = f"{_counts(figures)} recovered, {figures['frames']['in_flight']} in flight"
        rows["figures"] = _figures(figures)
        if known := [known for known in figures["configurations"] if known["first_frame"] is not None]:
            rows["mask"] = f"{_mask(known[-1]['mask'])}, C = {_factor(known[-1])}"
    _table(rows)


def setting(answer: Mapping[str, Any]) -> str:
    """A change of the acquisition, in one line."""
    return f"{_mask(answer['mask'])}, C = {_factor(answer)} from frame {answer['effective_from_frame']} on"


def summary(account: Mapping[str, Any], output: Path) -> None:
    """What the session gained and what it cost."""
    console = _console()
    frames, sizes, quality = account["frames"], account["bytes"], account["quality"]
    lost = f", {frames['lost']} lost" if frames["lost"] else ", none lost"
    rows = {
        "frames": f"{frames['acquired']} acquired, {frames['recovered']} recovered{lost}",
        "bytes": f"{_size(sizes['raw'])} raw, {_size(sizes['wire'])} on the wire "
        f"(raw losslessly coded: {_size(sizes['raw_lossless'])})",
        "gain": f"{_times(account['throughput_gain'])} against raw, "
        f"{_times(account['gain_over_lossless'])} against lossless coding",
        "speed": f"{account['frames_per_s'] or 0:.1f} frames/s, "
        f"{account['wire_mbit_per_s'] or 0:.1f} Mbit/s, "
        f"camera idle {account['idle_seconds']:.1f} s of {account['elapsed_seconds']:.1f} s",
        "quality": _quality(quality) or "no reference frames",
    }
    console.print()
    for name, value in rows.items():
        console.print(f"[bold]{name:>9}[/]  {escape(value)}")
    _configurations_table(console, account, output)


def recovered_summary(account: Mapping[str, Any], output: Path, *, found: int, seconds: float) -> None:
    """What a recovery of recorded measurements gave, and how fast."""
    console = _console()
    frames = account["frames"]
    lost = f", {frames['lost']} lost" if frames["lost"] else ", none lost"
    fresh = frames["recovered"] - found
    before = f", {found} of them before" if found else ""
    console.print()
    for name, value in {
        "frames": f"{frames['acquired']} acquired, {frames['recovered']} recovered{before}{lost}",
        "speed": f"{fresh} frames in {seconds:.1f} s: {fresh / max(seconds, 1e-9):.1f} frames/s",
        "quality": _quality(account["quality"]) or "no reference frames",
    }.items():
        console.print(f"[bold]{name:>9}[/]  {escape(value)}")
    _configurations_table(console, account, output)


def _configurations_table(console: Console, account: Mapping[str, Any], output: Path) -> None:
    table = Table(box=box.SIMPLE, pad_edge=False)
    is_learned = any(known["quality"].get("prior_shift") is not None for known in account["configurations"])
    headings = ("from", "frames", "C", "mask", "PSNR dB", "SSIM", "FRC Å", "free")
    for heading in (*headings, *(["shift"] if is_learned else [])):
        table.add_column(heading, no_wrap=True, justify="left" if heading == "mask" else "right")
    for known in account["configurations"]:
        quality = known["quality"]
        table.add_row(
            "–" if known["first_frame"] is None else str(known["first_frame"]),
            str(known["frames"]),
            _factor(known),
            _mask(known["mask"]),
            _number(quality["psnr"], ".2f"),
            _number(quality["ssim"], ".3f"),
            _number(quality["frc_resolution_angstrom"], ".2f"),
            _number(quality["free_residual"], ".3f"),
            *([_number(quality.get("prior_shift"), ".3f")] if is_learned else []),
        )
    console.print(table)
    console.print(f"[bold]{'results':>9}[/]  {escape(str(output))}")


@contextmanager
def counting(what: str, total: int) -> Generator[Callable[[int], None], None, None]:
    """A progress bar that is told how many are done; nothing where there is no terminal."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def recovering(total: int, done: int) -> Generator[Callable[[int], None], None, None]:
    """A progress bar with rate and time left; where there is no terminal, a line now and then."""
    console = Console(stderr=True, highlight=False)
    before, line_at = done, time.monotonic() + LINE_EVERY_SECONDS
    began: float | None = None  # the first frames, for the processes take their time to start

    def figures(done: int) -> str:
        rate = 0.0 if began is None else (done - before) / max(time.monotonic() - began, 1e-9)
        left = (total - done) / rate if rate > 0 else None
        return f"{done}/{total}  {rate:.1f} frames/s" + (
            f"  {timedelta(seconds=round(left))} left" if left is not None else ""
        )

    bar = Progress(
        TextColumn("recovering"), BarColumn(), TextColumn("{task.fields[figures]}"),
        console=console, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=total, completed=done, figures=figures(done))

        def report(done: int) -> None:
            nonlocal began, before, line_at
            if began is None:
                began, before = time.monotonic(), done
            bar.update(task, completed=done, figures=figures(done))
            if not console.is_terminal and time.monotonic() >= line_at:
                line_at = time.monotonic() + LINE_EVERY_SECONDS
                console.print(f"recovering {figures(done)}")

        yield report


def curl(address: str, factor: float, token: bool = False) -> str:
    """The command that changes the compression factor; where a token is needed, as a variable has it."""
    shown = '-H "Authorization: Bearer $CRYOFLUX_TOKEN" ' if token else ""
    return (
        f"curl -X PATCH {address}/api/v1/sessions/current/acquisition {shown}"
        f"-H 'content-type: application/json' -d '{{\"compression_factor\": {factor:g}}}'"
    )


class _Lasting:
    """A stream that outlives its terminal: once that was closed, what is written goes nowhere.

    The signal that tells of it is heard only after the line that is being shown.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As the stream does."""
        with _without_terminal():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As the stream does."""
        with _without_terminal():
            self._stream.flush()


@contextmanager
def _without_terminal() -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise


def _console() -> Console:
    """Lines are not broken; a table may be wide where there is no terminal to say how wide."""
    file: Any = _Lasting(sys.stdout)
    console = Console(file=file, highlight=False, soft_wrap=True)
    if console.is_terminal:
        return console
    return Console(file=file, highlight=False, soft_wrap=True, width=TABLE_WIDTH)


def _table(rows: Mapping[str, str]) -> None:
    console = _console()
    for name, value in rows.items():
        console.print(f"[bold]{name:>9}[/]  {escape(value)}")


def _workers(count: int) -> str:
    return f"{count} worker{'s' if count > 1 else ''}"


def _source(source: Mapping[str, Any]) -> str:
    if source["kind"] == "archive":
        speed = f"at {source['speed']:g} times its speed" if source["speed"] else "as fast as it goes"
        return f"replay of {source['path'] or 'the archive of the detector'} {speed}"
    match source["kind"]:
        case "specimen":
            specimen = source["specimen"]
            return f"simulated {specimen['output']} ({specimen['structure']})"
        case "pattern":
            return "numbered test pattern"
        case _:
            return f"{source['path']} (watched)" if source.get("watch") else str(source["path"])


def _mask(mask: Mapping[str, Any]) -> str:
    match mask["kind"]:
        case "coded-aperture":
            return f"coded aperture K={mask['kernel_size']} b={mask['mask_count']}"
        case "phase-plate":
            return f"phase plate {mask['pattern']}"
        case _:
            return "none"


def _factor(setting: Mapping[str, Any]) -> str:
    """The honest factor, and the printed one where that is another."""
    factor, printed = setting["compression_factor"], setting["printed_compression_factor"]
    return f"{factor:.4g}" + ("" if abs(printed - factor) < 0.005 * factor else f" (printed {printed:.4g})")


def _counts(figures: Mapping[str, Any]) -> str:
    frames = figures["frames"]
    expected = f"/{figures['frames_expected']}" if figures["frames_expected"] else ""
    lost = f", {frames['lost']} lost" if frames["lost"] else ""
    return f"{frames['acknowledged']}{expected}{lost}"


def _short_figures(figures: Mapping[str, Any]) -> str:
    """What fits beside a progress bar in 80 columns."""
    speed = f"{figures['frames_per_s']:.1f} frames/s · {figures['wire_mbit_per_s']:.2f} Mbit/s"
    psnr = figures["quality"]["psnr"]
    return f"{speed} · {_times(figures['throughput_gain'])}" + (
        f" · {psnr:.1f} dB" if psnr is not None else ""
    )


def _figures(figures: Mapping[str, Any]) -> str:
    parts = [
        f"{figures['frames_per_s']:.1f} frames/s",
        f"{figures['wire_mbit_per_s']:.2f} Mbit/s",
        f"gain {_times(figures['throughput_gain'])}",
        _quality(figures["quality"]),
    ]
    return " · ".join(filter(None, parts))


def _quality(quality: Mapping[str, Any]) -> str:
    named = (
        ("PSNR", "psnr", ".1f", " dB"),
        ("SSIM", "ssim", ".3f", ""),
        ("LPIPS", "lpips", ".3f", ""),
        ("free residual", "free_residual", ".3f", ""),
        ("prior shift", "prior_shift", ".3f", ""),
    )
    return ", ".join(
        f"{label} {quality[name]:{form}}{unit}"
        for label, name, form, unit in named
        if quality.get(name) is not None
    )


def _times(gain: float | None) -> str:
    return f"{gain:.2f}x" if gain is not None else "–"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
