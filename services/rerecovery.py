"""``cryoflux recover``: the measurements of a session recovered again, into a folder of their own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from common.session import RecoverySpec
from common.settings import Settings
from common.wire.messages import ConfigurationNotice, Frames, MalformedMessage
from reconstructor.archive import Record, archives, read_start, records
from reconstructor.batches import Block, Recoverer, RecoveryChoice
from reconstructor.writer import ResultsWriter, Summary, finalise
from services.control_plane.metrics import ConfigurationFigures, final_quality, mean_quality
from services.control_plane.report import FILE, write_report
from services.control_plane.session import recovery_id

WORKER = "recover"


class NothingToRecover(ValueError):
    """A folder without the measurements of a session."""


def recover_again(
    session: Path,
    output: Path,
    spec: RecoverySpec,
    *,
    settings: Settings,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Recover every frame of a finished session once more; the new account, as ``session.json`` has it.

    Parameters
    ----------
    session, output : Path
        Folder of the session's results, and of the new ones.
    progress : callable
        Told how many frames are recovered.

    Raises
    ------
    NothingToRecover
        If there are no measurements, or the session was not finished.
    """
    account = read_account(session)
    try:
        start = read_start(session)
        if start is None:
            raise NothingToRecover(f"{session}: there are no measurements")
        start = msgspec.structs.replace(start, output=str(output.absolute()))
        began, done = time.monotonic(), 0
        recoverer = Recoverer(torch_device(settings), settings.batch_pixels)
        recoverer.start(start)
        choice = RecoveryChoice(spec, recovery_id(spec))
        lost: dict[str, int] = {}
        with ResultsWriter(start, WORKER) as writer:
            for batch in _batches(session, recoverer, writer):
                outcomes = recoverer.recover(batch, choice)
                writer.write([outcome.results for outcome in outcomes if outcome.results is not None])
                for outcome in outcomes:
                    for reason in outcome.rejected.values():
                        lost[reason] = lost.get(reason, 0) + 1
                done += sum(len(block.header.frame_ids) for block in batch)
                progress(done)
    except MalformedMessage as error:
        raise NothingToRecover(str(error)) from error
    for reason, count in account["frames"]["lost_by_reason"].items():
        lost[reason] = lost.get(reason, 0) + count
    accounts = {"frames_acquired": account["frames"]["acquired"], "frames_lost": lost}
    summary = finalise(output, msgspec.structs.asdict(start), accounts)
    account = _account(account, summary, choice, session, time.monotonic() - began)
    write_report(account, output)
    return account


def read_account(session: Path) -> dict[str, Any]:
    """The account of a finished session.

    Raises
    ------
    NothingToRecover
        If there is none.
    """
    try:
        account: dict[str, Any] = json.loads((session / FILE).read_text())
    except (OSError, ValueError) as error:
        raise NothingToRecover(f"{session}: no finished session ({FILE} cannot be read)") from error
    if not archives(session):
        raise NothingToRecover(f"{session}: there are no measurements")
    return account


def torch_device(settings: Settings) -> torch.device:
    """The device that the settings mean."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


def _batches(session: Path, recoverer: Recoverer, writer: ResultsWriter) -> Iterator[Sequence[Block]]:
    """Blocks of one configuration, as many as are recovered together."""
    for path in archives(session):
        waiting: list[Block] = []
        for record in records(path):
            match record.message:
                case ConfigurationNotice() as notice:
                    if recoverer.configure(notice):
                        writer.configure(notice)
                case Frames() as header:
                    block = _block(header, record)
                    frames = sum(len(other.header.frame_ids) for other in [*waiting, block])
                    same = all(other.header.config_id == header.config_id for other in waiting)
                    if waiting and (not same or frames > recoverer.frames_per_batch):
                        yield waiting
                        waiting = []
                    waiting.append(block)
                case _:
                    pass
        if waiting:
            yield waiting


def _block(header: Frames, record: Record) -> Block:
    return Block(header, [memoryview(record.buffer(part)) for part in range(len(record.payloads))])


def _account(
    account: Mapping[str, Any], summary: Summary, choice: RecoveryChoice, session: Path, seconds: float
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
        "recovered_from": str(session.absolute()),
        "recovery_seconds": seconds,
        "frames": {
            **account["frames"],
            "recovered": summary.frames_recovered,
            "lost": sum(summary.frames_lost.values()),
            "lost_by_reason": summary.frames_lost,
            "references": summary.references,
        },
        "quality": mean_quality(figures).model_dump(),
        "configurations": [figure.model_dump(mode="json") for figure in figures],
        "recovery": [setting],
    }
