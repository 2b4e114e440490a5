"""Packs what the workers keep of a session, ``measurements/*.cfx``, into one archive while it grows."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from common.archive import ArchiveWriter, BrokenArchive, Measured, Opening
from common.configuration import Configuration
from common.flat_level import FlatLevel
from common.wire.codec import Buffer, decode_array
from common.wire.messages import ArrayHeader, ConfigurationNotice, Frames, Start
from reconstructor.archive import MAGIC, Record, archives, read_start, records

FLATS_KEPT = 8


class Packer:
    """Follows the measurements of a session's folder into an archive.

    Parameters
    ----------
    session : Path
        The results folder.
    archive : Path
        A file that is not there yet, or one that a packer before this one did not complete.
    specification : dict
        ``common.session.SessionSpec`` of the session.

    Raises
    ------
    BrokenArchive
        If ``archive`` is something else, or of another session.
    OSError
        If it cannot be written.
    """

    def __init__(self, session: Path, archive: Path, specification: dict[str, Any], start: Start) -> None:
        self._session = session
        self._read_up_to: dict[Path, int] = {}
        self._configurations: dict[str, Configuration] = {}
        self._flats: OrderedDict[str, NDArray[Any]] = OrderedDict()
        self.payload_bytes = 0  # of what was archived, as it came over the wire
        document = msgspec.to_builtins(start)
        if archive.exists():
            self.writer = ArchiveWriter.resume(archive)
            if self.writer.index.opening.start["series"] != start.series:
                self.writer.close()
                raise BrokenArchive(f"{archive}: is the archive of another session")
            return
        opening = Opening(
            software=f"cryoflux {version('cryoflux')}",
            created_at=time.time(),
            start=document,
            specification=specification,
        )
        self.writer = ArchiveWriter.create(archive, opening)

    def pack(self, going_on: Callable[[], bool] = lambda: True) -> int:
        """Take in what the workers have written since; returns how many frames were new.

        Parameters
        ----------
        going_on : callable
            Asked between two blocks; False ends early.
        """
        new = 0
        for path in archives(self._session):
            if path.stat().st_size <= len(MAGIC):
                continue  # its worker has only just made it
            for record in records(path, self._read_up_to.get(path, 0)):
                new += self._take(record)
                self._read_up_to[path] = record.span.offset + record.span.length
                self.writer.renew_view_if_due()
                if not going_on():
                    return new
        return new

    def _take(self, record: Record) -> int:
        match record.message:
            case ConfigurationNotice(configuration=document):
                configuration = Configuration.model_validate(document)
                self._configurations.setdefault(configuration.config_id, configuration)
            case Frames() as frames:
                return self._add(frames, record)
            case _:
                pass
        return 0

    def _add(self, frames: Frames, record: Record) -> int:
        if all(self.writer.has(frame) for frame in frames.frame_ids):
            return 0
        configuration = self._configurations[frames.config_id]
        payload = record.buffer(0)
        new = self.writer.append(
            Measured(
                configuration=configuration.model_dump(mode="json"),
                values=as_sent(frames.payload, payload),
                scale=configuration.codec.step if configuration.codec.values == "quantised" else 1.0,
                flat=self._flat(configuration),
                frame_ids=frames.frame_ids,
                acquired_at=frames.acquired_at,
                metadata=frames.metadata,
            )
        )
        self.payload_bytes += len(payload)
        if frames.reference_payload is not None:
            coded = record.buffer(1)
            self.payload_bytes += len(coded)
            whole = decode_array(frames.reference_payload, coded)
            for frame, image in zip(frames.reference_ids, whole, strict=True):
                self.writer.add_reference(frame, image)
        return new

    def _flat(self, configuration: Configuration) -> NDArray[Any]:
        """What was taken off the measurements before they were coded."""
        key = configuration.config_id
        if key not in self._flats:
            flat = np.zeros(1, np.int64)
            if configuration.codec.level:
                operator = configuration.mask.build(configuration.shape)
                zeros = np.zeros((1, *operator.measurement_shape), np.int64)
                flat = FlatLevel(operator, configuration.codec.level).put_back(zeros)[0]
            self._flats[key] = flat
            if len(self._flats) > FLATS_KEPT:
                self._flats.popitem(last=False)
        return self._flats[key]

    def finish(
        self, frames_acquired: int, lost_by_reason: dict[str, int], account: dict[str, Any] | None = None
    ) -> None:
        """Take in what is left and complete the archive."""
        self.pack()
        self.writer.finish(frames_acquired, lambda frame: _reason(lost_by_reason), account)


def _reason(lost_by_reason: dict[str, int]) -> str:
    if not lost_by_reason:
        return "no worker has it"
    if len(lost_by_reason) == 1:
        return next(iter(lost_by_reason))
    return "one of: " + "; ".join(f"{reason} ({count})" for reason, count in lost_by_reason.items())


def as_sent(header: ArrayHeader, payload: Buffer) -> NDArray[Any]:
    """A payload's values before any scaling: integers, or float32.

    Raises
    ------
    MalformedMessage
        If the payload cannot be decoded.
    """
    if header.values == "quantised":
        header = msgspec.structs.replace(header, values="integer", dtype="int32", step=0.0)
    return decode_array(header, payload)


def pack_session(
    session: Path, archive: Path, account: dict[str, Any], specification: dict[str, Any]
) -> Packer:
    """Pack a finished session, or complete an archive of it that was left unfinished.

    Raises
    ------
    BrokenArchive, OSError
        If that cannot be done, in one line.
    """
    start = read_start(session)
    if start is None:
        raise BrokenArchive(f"{session}: there are no measurements")
    packer = Packer(session, archive, specification, start)
    with packer.writer:
        frames = account.get("frames", {})
        packer.finish(frames.get("acquired", 0), frames.get("lost_by_reason", {}), account)
    return packer
