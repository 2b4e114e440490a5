"""What is fuzzed: functions that take any bytes, and fail only where the product fails.

A target returns whether the input was taken for something; that it was refused, in the way the product
refuses things, is as good. Any other exception, a hang or an allocation beyond the bounds is a finding.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from common.archive import ArchiveWriter, BrokenArchive
from common.wire import codec as array_codec
from common.wire.codec import INTEGER_DTYPES, decode_array
from common.wire.messages import ArrayHeader, Frames, MalformedMessage, decode, encode
from detector_sim import replay
from detector_sim.replay import RecordedFrames
from detector_sim.sources.base import SourceError
from detector_sim.sources.stack import Stack, open_stack
from detector_sim.sources.star import StarSource
from reconstructor.archive import records
from reconstructor.finalise import read_journals
from reconstructor.journal import COLUMNS, find_row
from reconstructor.recorded import ArchiveRecording

MAX_PIXELS_READ = 1 << 20
CODINGS = ("plain", "packed", "bitshuffle-lz4", "bitshuffle-zstd")
VALUES = ("integer", "float32", "float16", "quantised")


def messages(data: bytes) -> bool:
    """A header as it comes; what is taken must survive being sent on."""
    try:
        message = decode(data)
    except MalformedMessage as refusal:
        _one_line(refusal)
        return False
    again = encode(message)
    assert encode(decode(again)) == again, "what was decoded cannot be sent on"
    return True


# The bound on what a payload may become is lowered, so that a few inputs at it do not take gigabytes each.
FUZZED_ARRAY_BYTES = 16 << 20


def codec(data: bytes) -> bool:
    """An array header and its payload: 2 bytes of length, the header in msgpack, the payload."""
    size = int.from_bytes(data[:2], "little")
    try:
        header = msgspec.msgpack.decode(data[2 : 2 + size], type=ArrayHeader)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # `messages` is about these
        return False
    return _decodes(header, data[2 + size :])


def codec_fields(data: bytes) -> bool:
    """The same with the header in 16 bytes, so that most inputs get past it."""
    if len(data) < 16:
        return False
    dtypes = (*INTEGER_DTYPES, "float32", "float64")
    header = ArrayHeader(
        coding=CODINGS[data[0] % 4],
        values=VALUES[(data[0] >> 2) % 4],
        signed=bool(data[0] & 16),
        dtype=dtypes[data[1] % len(dtypes)],
        bits=data[2] % 66,
        shape=[int.from_bytes(data[3:6], "little"), data[6]] if data[0] & 32 else [data[3]],
        offset=int.from_bytes(data[7:12], "little", signed=True),
        step=float(np.frombuffer(data, "<f4", 1, 12)[0]),
    )
    return _decodes(header, data[16:])


def _decodes(header: ArrayHeader, payload: bytes) -> bool:
    bound = array_codec.MAX_ARRAY_BYTES
    array_codec.MAX_ARRAY_BYTES = FUZZED_ARRAY_BYTES
    try:
        array = decode_array(header, payload)
    except MalformedMessage as refusal:
        _one_line(refusal)
        return False
    finally:
        array_codec.MAX_ARRAY_BYTES = bound
    assert list(array.shape) == header.shape, "an array of another shape than its header"
    assert array.dtype.name == header.dtype, "an array of another dtype than its header"
    assert array.flags.writeable, "an array that is not its own"
    return True


def mrc(data: bytes) -> bool:
    """An MRC stack: opened, and its first frames read."""
    return _stack(data, ".mrcs")


def tiff(data: bytes) -> bool:
    """A TIFF stack: opened, and its first frames read."""
    return _stack(data, ".tif")


def _stack(data: bytes, suffix: str) -> bool:
    with _file(data, suffix) as path:
        try:
            stack = open_stack(path)
        except SourceError as refusal:
            _one_line(refusal)
            return False
        try:
            return _frames(stack)
        except SourceError as refusal:
            _one_line(refusal)
            return False
        finally:
            stack.close()


def _frames(stack: Stack) -> bool:
    assert stack.count > 0
    assert min(stack.shape) > 0
    if stack.shape[0] * stack.shape[1] > MAX_PIXELS_READ:
        return True
    frames = stack.frames(0, min(2, stack.count))
    assert frames.shape[1:] == stack.shape
    assert frames.dtype == stack.dtype
    return True


_STACK = np.zeros(1024 + 3 * 8 * 8, np.uint8)
_STACK[:16] = np.array([8, 8, 3, 0], "<i4").view(np.uint8)
_STACK[208:216] = np.frombuffer(b"MAP DD\0\0", np.uint8)


def star(data: bytes) -> bool:
    """A STAR file beside a stack ``s.mrcs`` of three images of 8 x 8."""
    with _folder() as folder:
        if not (folder / "s.mrcs").exists():
            (folder / "s.mrcs").write_bytes(_STACK.tobytes())
        path = folder / "p.star"
        path.write_bytes(data)
        try:
            source = StarSource(path)
        except SourceError as refusal:
            _one_line(refusal)
            return False
        with source:
            try:
                batch = source.read(4)
            except SourceError as refusal:
                _one_line(refusal)
                return False
        assert batch is not None
        assert len(batch) == min(4, source.frame_count or 0)
        for values in (batch.metadata or {}).values():
            assert len(values) == len(batch)
        msgspec.msgpack.encode(batch.metadata)
        msgspec.msgpack.encode(source.optics)
        return True


def cfx(data: bytes) -> bool:
    """An archive of measurements: every record, and every payload decoded."""
    with _file(data, ".cfx") as path:
        taken = False
        try:
            for record in records(path):
                taken = True
                if isinstance(record.message, Frames) and record.payloads:
                    _decodes(record.message.payload, record.buffer(0))
        except MalformedMessage as refusal:
            _one_line(refusal, str(path))
        return taken


# How long a hostile archive is replayed for, and how many lost frames come at a time: lowered, for speed.
MOST_READ = 40
FUZZED_LOST = 64


def archive(data: bytes) -> bool:
    """A session's archive: read as a recovery does, or a replay; by a quarter also gone on with."""
    with _file(data, ".h5") as path:
        ways = zlib.crc32(data)
        try:
            taken = _replayed(path) if ways % 2 else _recovered(path)
        except BrokenArchive as refusal:
            _one_line(refusal, str(path))
            taken = False
        if ways % 8 > 1:
            return taken
        try:
            ArchiveWriter.resume(path).close()
        except BrokenArchive as refusal:
            _one_line(refusal, str(path))
        return taken


def _recovered(path: Path) -> bool:
    with ArchiveRecording(path) as recording:
        msgspec.json.encode(msgspec.to_builtins(recording.start))
        assert "\n" not in recording.message
        assert recording.frames_acquired >= sum(recording.lost_by_reason.values())
        known = {configuration.config_id for configuration in recording.configurations()}
        count = 0
        for unit in recording.units():
            assert unit.config_id in known
            count += len(unit.frame_ids)
            with contextlib.suppress(BrokenArchive):
                _block(recording, unit)
        assert count + sum(recording.lost_by_reason.values()) == recording.frames_acquired
    return True


def _replayed(path: Path) -> bool:
    frames = RecordedFrames(path)
    bound, replay.LOST_AT_ONCE = replay.LOST_AT_ONCE, FUZZED_LOST
    try:
        given = 0
        for _ in range(MOST_READ):
            batch = frames.read(16)
            if batch is None:
                assert given == frames.end
                break
            given += len(batch)
            assert len(batch.values) == len(batch.frame_ids)
            assert len(batch) > 0
            assert len(batch.lost) <= FUZZED_LOST + 16
    finally:
        replay.LOST_AT_ONCE = bound
        frames.close()
    return True


def _block(recording: ArchiveRecording, unit: Any) -> None:
    """A block must be one that could have come over the wire."""
    if recording.start.shape[0] * recording.start.shape[1] > MAX_PIXELS_READ:
        return
    block = recording.block(unit, unit.frame_ids)
    try:
        decode(encode(block.header))
        decode_array(block.header.payload, block.buffers[0])
    except MalformedMessage as refusal:
        _one_line(refusal)


def journal(data: bytes) -> bool:
    """A worker's journal: one line of it, and all as a table."""
    with _folder() as folder:
        (folder / "journal").mkdir(exist_ok=True)
        (folder / "journal" / "w.csv").write_bytes(data)
        try:
            row = find_row(folder, 1)
            assert tuple(row) == COLUMNS
        except KeyError:
            pass
        except ValueError as refusal:
            _one_line(refusal)
        try:
            table, repeated = read_journals(folder)
        except ValueError as refusal:
            _one_line(refusal)
            return False
        assert table["frame_id"].is_unique
        assert repeated >= 0
        return len(table) > 0


def _one_line(refusal: Exception, without: str = "") -> None:
    """What a refusal must be; that memory ran out on the way to it is a finding."""
    cause: BaseException | None = refusal
    while cause is not None:
        assert not isinstance(cause, (MemoryError, RecursionError)) or _is_nesting(cause), "memory ran out"
        cause = cause.__cause__ or cause.__context__
    text = str(refusal).replace(without, "FILE") if without else str(refusal)
    assert text, "a refusal without a reason"
    assert "\n" not in text, "a refusal of more than one line"
    assert len(text) < 2000, "a refusal that goes on and on"


def _is_nesting(error: BaseException) -> bool:
    """msgpack nested a thousand deep: its decoder counts, and says so by this."""
    return isinstance(error, RecursionError) and "deserializing" in str(error)


_kept: dict[str, Path] = {}


def _root() -> Path:
    """A folder in memory where there is one, this process's own."""
    if "root" not in _kept or not _kept["root"].exists():
        memory = Path("/dev/shm")
        base = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
        folder = tempfile.TemporaryDirectory(prefix="cryoflux-fuzz-", dir=base)
        _kept["root"] = Path(folder.name)
        _keepers.append(folder)
    return _kept["root"]


_keepers: list[Any] = []


@contextlib.contextmanager
def _folder() -> Any:
    yield _root()


@contextlib.contextmanager
def _file(data: bytes, suffix: str) -> Any:
    path = _root() / f"input{suffix}"
    path.write_bytes(data)
    yield path


TARGETS: dict[str, Callable[[bytes], bool]] = {
    "messages": messages,
    "codec": codec,
    "codec-fields": codec_fields,
    "mrc": mrc,
    "tiff": tiff,
    "star": star,
    "cfx": cfx,
    "archive": archive,
    "journal": journal,
}
