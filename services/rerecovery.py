"""``cryoflux recover``: a session's measurements recovered once more, by several processes, elsewhere.

What is durable stands in the journals, as in a live session; so when it is killed and started again with the
same options, it goes on with the frames that are in none. ``recovery.json`` says which options those are.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from pydantic import BaseModel, Field, NonNegativeInt, ValidationError

from common.archive import BrokenArchive
from common.session import LEARNED, RecoverySpec
from common.settings import SECRETS, Settings
from common.whole import replacing
from common.wire.control import error_line
from common.wire.messages import MAX_FRAME_ID, ConfigurationNotice, Start
from reconstructor.batches import Recoverer, RecoveryChoice
from reconstructor.finalise import Summary, finalise, read_journals
from reconstructor.lpips import WrongWeights, lpips_of
from reconstructor.recorded import ArchiveRecording, FolderRecording, Recording, Unit
from reconstructor.writer import ResultsWriter
from services.clearing import clear
from services.control_plane.metrics import ConfigurationFigures, final_quality
from services.control_plane.report import FILE, quality_of, write_report
from services.control_plane.session import recovery_id
from services.display import Display, recovered_summary, recovering
from services.failure import CannotRun, WrongOption
from services.lifeline import end_with
from services.priors import prior_of
from services.priors import settled as settled_recovery

PLAN = "recovery.json"
LOCK = ".recovery.lock"
MOST_WORKERS = 16
LEARNED_FRAMES = {"cpu": 8, "cuda": 256}  # recovered before they are durable, with a learned prior

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Recovered:
    """What came of it."""

    account: dict[str, Any]  # as session.json has it
    frames: int  # recovered in this run
    found: int  # had been recovered before it


def recorded(source: Path) -> tuple[Recording, dict[str, Any]]:
    """A folder's or an archive's measurements, and the account of its session, as far as it is known.

    Raises
    ------
    CannotRun
        In one line, if there is nothing that can be recovered.
    """
    if not source.exists():
        raise WrongOption(f"{source}: no such folder or file")
    account: Any = None
    if source.is_dir():
        try:
            account = json.loads((source / FILE).read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise WrongOption(f"{source}: no finished session ({FILE} cannot be read)") from error
        if not _is_account(account):
            raise WrongOption(f"{source / FILE}: is not the account of a session")
    try:
        if account is not None:
            return FolderRecording(source, account), account
        archive = ArchiveRecording(source)
        return archive, archive.account if _is_account(archive.account) else {}
    except BrokenArchive as error:
        raise WrongOption(str(error)) from error
    except (OSError, ValueError) as error:
        raise WrongOption(f"{source}: {error_line(error)}") from error


class _Frames(BaseModel):
    acquired: int = Field(ge=0, le=MAX_FRAME_ID + 1)
    lost_by_reason: dict[str, NonNegativeInt]


class _Known(BaseModel):
    """What a recovery takes over from ``session.json``, which somebody else may have written."""

    frames: _Frames
    configurations: list[dict[str, Any]]


def _is_account(document: Any) -> bool:
    try:
        for known in _Known.model_validate(document).configurations:
            ConfigurationFigures.model_validate({**known, "quality": {}})
    except ValidationError:
        return False
    return True


def recover_again(
    source: Path,
    output: Path,
    spec: RecoverySpec,
    *,
    settings: Settings,
    workers: int | None = None,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda line: None,
    note: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], Any],
) -> Recovered:
    """Recover every frame of a recorded session, or those that an earlier run with the same options left.

    Parameters
    ----------
    source : Path
        Folder of a finished session, or an archive.
    workers : int, optional
        Processes; else one a core, or one where there is a GPU.
    tell : callable
        Told, in one line, of what the user should beware of.
    note : callable
        Told, in one line, of what is as it should be.
    progress : callable
        ``progress(frames, of which done)`` gives a context in which one reports how many are done.

    Raises
    ------
    CannotRun
        In one line.
    """
    output = output.absolute()
    if output == source.absolute():
        raise WrongOption("--output: is the session's own folder; name another one")
    spec, problems = settled_recovery(spec)
    if problems:
        raise WrongOption(f"--parameter prior: {problems[0].message}")
    try:
        lpips_of(settings, torch.device("cpu"))
    except WrongWeights as error:  # told once and at once, not by every process
        raise WrongOption(str(error)) from error
    recording, known = recorded(source)
    with recording:
        choice = RecoveryChoice(spec, recovery_id(spec))
        if recording.message:
            tell(recording.message)
        if (prior := prior_of(spec)) is not None:
            note(prior.told())
            if doubt := prior.doubt(recording.start.shape, recording.start.pixel_size_angstrom):
                tell(doubt)
        plan = {
            "source": str(source.absolute()),
            "series": recording.start.series,
            "frames": sum(len(unit.frame_ids) for unit in recording.units()),
            "method": spec.method,
            "parameters": spec.model_dump(mode="json")["parameters"],
            "free_share": spec.free_share,
            "software": f"cryoflux {version('cryoflux')}",
        }
        with _folder(output, plan, overwrite=overwrite):
            began = time.monotonic()
            there = set(read_journals(output)[0]["frame_id"].tolist())
            left = [
                (unit, frames)
                for unit in recording.units()
                if (frames := [frame for frame in unit.frame_ids if frame not in there])
            ]
            if there and left:
                tell(f"{output}: {len(there)} frames are there already; going on with the others")
            start = msgspec.structs.replace(
                recording.start, output=str(output), frames_expected=recording.frames_acquired
            )
            told = settings.model_dump(mode="json", exclude=set(SECRETS))  # recoveries need no secrets
            task = _Task(source, dict(known), msgspec.msgpack.encode(start), choice, told)
            with progress(plan["frames"], len(there)) as done:
                lost = Counter(_in_parallel(task, left, _processes(settings, workers), done, len(there)))
            lost.update(recording.lost_by_reason)
            accounts = {"frames_acquired": recording.frames_acquired, "frames_lost": dict(lost)}
            summary = finalise(output, msgspec.structs.asdict(start), accounts, recording.reference)
            account = _account(
                known or _unknown(recording),
                summary,
                choice,
                source,
                seconds=time.monotonic() - began,
                shape=recording.start.shape,
            )
            write_report(account, output)
    return Recovered(account, summary.frames_recovered - len(there), len(there))


def recover_shown(
    source: Path,
    output: Path | None,
    spec: RecoverySpec,
    *,
    settings: Settings,
    workers: int | None,
    overwrite: bool,
) -> int:
    """Recover, and show how it goes; without an output folder, into one beside the source."""
    began, display = time.monotonic(), Display()
    stem = source.absolute().stem if source.is_file() else source.absolute().name
    folder = output or source.absolute().with_name(f"{stem}-{spec.method}")
    done = recover_again(
        source,
        folder,
        spec,
        settings=settings,
        workers=workers,
        overwrite=overwrite,
        tell=display.warn,
        note=display.note,
        progress=recovering,
    )
    recovered_summary(done.account, folder, found=done.found, seconds=time.monotonic() - began)
    return 0


def torch_device(settings: Settings) -> torch.device:
    """The device that the settings mean."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


# ---- the folder -----------------------------------------------------------------------------------------


@contextmanager
def _folder(output: Path, plan: Mapping[str, Any], *, overwrite: bool) -> Iterator[None]:
    """The results folder: new, or of an earlier run with the same options; nobody else writes to it."""
    path = output / PLAN
    before = _read_plan(path)
    if before is None or overwrite:
        clear(output, overwrite=overwrite)
    else:
        for name in plan:
            if before.get(name) != plan[name]:
                raise WrongOption(
                    f"--output: {output} holds a recovery with another {name} "
                    f"({before.get(name)!s:.60} there, {plan[name]!s:.60} now); "
                    "name another folder or give --overwrite"
                )
    try:
        lock = os.open(output / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise WrongOption(f"--output: {output}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise WrongOption(f"--output: another recovery writes to {output}") from None
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(plan, indent=2) + "\n")
        yield
    finally:
        os.close(lock)


def _read_plan(path: Path) -> dict[str, Any] | None:
    try:
        plan = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return plan if isinstance(plan, dict) else None


# ---- the processes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """What every process must know."""

    source: Path
    account: dict[str, Any]
    start: bytes
    choice: RecoveryChoice
    settings: dict[str, Any]


def _processes(settings: Settings, workers: int | None) -> int:
    cores = os.cpu_count() or 1
    if workers is not None:
        return workers
    return 1 if torch_device(settings).type != "cpu" else min(cores, MOST_WORKERS)


def _in_parallel(
    task: _Task, left: list[tuple[Unit, list[int]]], processes: int, progress: Progress, done: int
) -> dict[str, int]:
    """Recover units of work; reasons of the frames that could not be."""
    lost: Counter[str] = Counter()
    if not left:
        return lost
    processes = min(processes, len(left))
    threads = task.settings.get("threads") or max(1, (os.cpu_count() or 1) // processes)
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(task, threads, os.getpid()),
    )
    waiting: set[Future[tuple[int, dict[int, str]]]] = set()
    try:
        with _deaf_to_interrupts():  # the processes, which begin here, stay so: the parent decides
            waiting.update(pool.submit(_recover, unit, frames) for unit, frames in _jobs(task, left))
        for future in as_completed(waiting):
            count, rejected = future.result()
            lost.update(rejected.values())
            done += count
            progress(done)
    except BrokenProcessPool as error:
        raise CannotRun(
            "a recovery process was killed or could not begin; the same command goes on where this stopped"
        ) from error
    except KeyboardInterrupt:
        raise CannotRun("interrupted; the same command goes on where this stopped", 130) from None
    finally:
        pool.shutdown(cancel_futures=True)
    return lost


def _jobs(task: _Task, left: list[tuple[Unit, list[int]]]) -> Iterator[tuple[Unit, list[int]]]:
    """Units, or parts of them where recovering one takes long."""
    if task.choice.spec.method != LEARNED:
        yield from left
        return
    size = LEARNED_FRAMES.get(torch_device(Settings.model_validate(task.settings)).type, 8)
    for unit, frames in left:
        yield from ((unit, frames[first : first + size]) for first in range(0, len(frames), size))


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Process:
    """One of the processes: its recording, its recoverer and its files."""

    def __init__(self, task: _Task) -> None:
        settings = Settings.model_validate(task.settings)
        start = msgspec.msgpack.decode(task.start, type=Start)
        self.choice = task.choice
        self.recording: Recording = (
            FolderRecording(task.source, task.account)
            if task.source.is_dir()
            else ArchiveRecording(task.source)
        )
        device = torch_device(settings)
        self.recoverer = Recoverer(device, settings.batch_pixels, lpips=lpips_of(settings, device))
        self.recoverer.start(start)
        name = f"recover-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.writer = ResultsWriter(start, name, keep_measurements=False)
        for configuration in self.recording.configurations():
            notice = ConfigurationNotice(configuration=configuration.model_dump(mode="json"))
            self.recoverer.configure(notice)


_process: _Process | None = None


def _begin(task: _Task, threads: int, parent: int) -> None:
    global _process
    end_with(parent)
    torch.set_num_threads(threads)
    _process = _Process(task)


def _recover(unit: Unit, frames: list[int]) -> tuple[int, dict[int, str]]:
    """Recover frames of a unit and make them durable: how many were, and why the others were not."""
    assert _process is not None
    try:
        block = _process.recording.block(unit, frames)
    except (OSError, ValueError) as error:
        return 0, dict.fromkeys(frames, error_line(error))
    outcome = _process.recoverer.recover([block], _process.choice)[0]
    if outcome.results is None:
        return 0, outcome.rejected
    _process.writer.write([outcome.results])
    return len(outcome.results.rows), outcome.rejected


# ---- the account ----------------------------------------------------------------------------------------


def _unknown(recording: Recording) -> dict[str, Any]:
    """An account of a session of which nothing is known but its measurements."""
    start = recording.start
    frames: dict[str, list[int]] = {}
    for unit in recording.units():
        frames.setdefault(unit.config_id, []).extend(unit.frame_ids)
    known = sum(map(len, frames.values()))
    return {
        "session": start.session,
        "state": "recovered",
        "error": None,
        "frames": {"acquired": recording.frames_acquired},
        "bytes": {"raw": known * start.shape[0] * start.shape[1] * np.dtype(start.dtype).itemsize},
        "configurations": [
            {
                **configuration.model_dump(
                    mode="json",
                    include={"config_id", "mask", "compression_factor", "printed_compression_factor"},
                ),
                "error_bound": configuration.codec.error_bound,
                "first_frame": min(frames.get(configuration.config_id, []), default=None),
                "frames": len(frames.get(configuration.config_id, [])),
            }
            for configuration in recording.configurations()
        ],
        "calibration": start.calibration,
        "shape": list(start.shape),
        "dtype": start.dtype,
        "pixel_size_angstrom": start.pixel_size_angstrom,
        "optics": start.optics,
    }


def _account(
    account: Mapping[str, Any],
    summary: Summary,
    choice: RecoveryChoice,
    source: Path,
    *,
    seconds: float,
    shape: tuple[int, int],
) -> dict[str, Any]:
    """The session's account with what this recovery changed."""
    judged = final_quality(summary.quality)
    figures = [
        ConfigurationFigures.model_validate({**known, "quality": judged.get(known["config_id"], {})})
        for known in account["configurations"]
    ]
    setting = {
        **choice.spec.model_dump(mode="json"),
        "recovery_id": choice.recovery_id,
        "set_at": time.time(),
    }
    return {
        **account,
        "recovered_from": str(source.absolute()),
        "recovery_seconds": seconds,
        "frames": {
            **account["frames"],
            "acquired": summary.frames_acquired,
            "recovered": summary.frames_recovered,
            "lost": sum(summary.frames_lost.values()),
            "lost_by_reason": summary.frames_lost,
            "references": summary.references,
        },
        "quality": quality_of(figures, shape),
        "configurations": [figure.model_dump(mode="json") for figure in figures],
        "recovery": [setting],
    }
