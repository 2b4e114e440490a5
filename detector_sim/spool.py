"""What a series still owes, on disk: blocks until they are settled, and the account that says which are.

A folder per series:

``account``
    Small records: how the series began, which frames were exposed, what became of them. It begins with a
    snapshot of everything before it and is rewritten as one snapshot when it has grown.
``blocks-00000001`` …
    Blocks as they go over the wire, only ever appended. A file is deleted when every block in it is settled.
``lock``
    Held by the process whose series it is; the kernel lets go of it however that process ends.

Every record carries checksums of its prefix, its header and its payload. What was written survives the death
of the process at any instant: a torn last record is cut off, a damaged one is skipped and told. Nothing is
synced to the device block by block, so a machine that loses power may lose the last seconds; the frames
concerned are then counted as lost.

Nothing here knows sockets, clocks or policies.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import shutil
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zlib import crc32

import msgspec

from common.whole import read_all_at, write_all
from common.wire.link import Buffer, as_bytes
from common.wire.messages import Frames, Start

FORMAT = 1
ACCOUNT = "account"
LOCK = "lock"
SEGMENT = "blocks-{:08d}"
LARGEST_SEGMENT_BYTES = 64_000_000
SEGMENTS = 16  # at least so many fit into the limit, so that space comes free in small steps
COMPACTED_AT_BYTES = 4_000_000
LARGEST_HEADER_BYTES = 64 << 20
MISSING = "not found in the spool"

_MAGIC = b"CFsp"
_PREFIX = struct.Struct("<4sIQII")  # magic, bytes of header and payload, their checksums
_CHECK = struct.Struct("<I")
PREFIX_BYTES = _PREFIX.size + _CHECK.size

Phase = Literal["acquiring", "paused", "draining"]


class SpoolDamaged(RuntimeError):
    """What is on disk is not what was written; the message says where."""


class SpoolTaken(RuntimeError):
    """Another process has this series."""


# ---- what is written


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """How a series began: enough to go on with it in another process."""

    start: Start
    spec: dict[str, Any]  # common.session.SessionSpec
    began_at: float  # Unix time, seconds
    format: int = FORMAT


class Change(msgspec.Struct, frozen=True, kw_only=True, tag="change"):
    """Frames are taken so from ``first_frame`` on."""

    configuration: dict[str, Any]  # common.configuration.Configuration
    first_frame: int


class Exposed(msgspec.Struct, frozen=True, kw_only=True, tag="exposed"):
    """All frames below ``until`` were exposed."""

    until: int


class Turn(msgspec.Struct, frozen=True, kw_only=True, tag="turn"):
    """The acquisition was paused or resumed, or takes no further frame."""

    phase: Phase


class Answer(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What became of frames; ``reason``: they are lost, else their results are durable.

    ``block`` is None for frames that never were in one.
    """

    block: int | None
    frame_ids: list[int]
    reason: str | None = None


class Answers(msgspec.Struct, frozen=True, kw_only=True, tag="answers"):
    """Verdicts in the order they came, and the figures a successor goes on counting from."""

    answers: list[Answer]
    figures: dict[str, Any] | None = None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, tag="snapshot"):
    """All of an account at one moment; ``answered`` holds for every open block the frames with a verdict."""

    head: Head
    changes: list[Change]
    exposed: int
    placed: int
    acknowledged: int
    lost: dict[str, int]
    lost_ahead: list[int]
    answered: dict[int, list[int]]
    next_block: int
    phase: Phase
    figures: dict[str, Any]


Record = Change | Exposed | Turn | Answers | Snapshot

_encode = msgspec.msgpack.Encoder().encode
_decode_record: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)
_BlockHeader = tuple[Frames, list[int]]  # and the lengths of its buffers
_decode_block: msgspec.msgpack.Decoder[_BlockHeader] = msgspec.msgpack.Decoder(_BlockHeader)


def _framed(header: bytes, buffers: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    check, size = 0, 0
    for buffer in buffers:
        check, size = crc32(buffer, check), size + len(buffer)
    prefix = _PREFIX.pack(_MAGIC, len(header), size, crc32(header), check)
    return [prefix + _CHECK.pack(crc32(prefix)), header, *buffers]


class _Found(NamedTuple):
    """A record whose prefix and header are sound."""

    offset: int
    header: bytes
    payload_bytes: int
    payload_check: int

    @property
    def end(self) -> int:
        return self.offset + PREFIX_BYTES + len(self.header) + self.payload_bytes


def _prefix_at(data: mmap.mmap | bytes, at: int) -> tuple[int, int, int, int] | None:
    if at + PREFIX_BYTES > len(data):
        return None
    prefix = data[at : at + _PREFIX.size]
    if _CHECK.unpack_from(data, at + _PREFIX.size)[0] != crc32(prefix):
        return None
    magic, header_bytes, payload_bytes, header_check, payload_check = _PREFIX.unpack(prefix)
    if magic != _MAGIC or header_bytes > LARGEST_HEADER_BYTES:
        return None
    return header_bytes, payload_bytes, header_check, payload_check


def scan(path: Path) -> Iterator[_Found | str]:
    """The records of a file in order, and a line for each place where something else stands.

    What is torn off at the end of the file is not an error and ends the records. Payloads are not checked.
    """
    size = path.stat().st_size
    if not size:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = 0
        while at < size:
            prefix = _prefix_at(data, at)
            if prefix is not None:
                header_bytes, payload_bytes, header_check, payload_check = prefix
                body = at + PREFIX_BYTES
                if body + header_bytes + payload_bytes > size:
                    return  # torn: the process died while it wrote this
                header = data[body : body + header_bytes]
                if crc32(header) == header_check:
                    found = _Found(at, header, payload_bytes, payload_check)
                    yield found
                    at = found.end
                    continue
            follower = _next_prefix(data, at + 1)
            if follower is None:
                if prefix is not None or not _could_be_torn(data, at):
                    yield f"{path}: damaged from byte {at} on"
                return
            yield f"{path}: damaged in bytes {at} to {follower}"
            at = follower


def _next_prefix(data: mmap.mmap | bytes, at: int) -> int | None:
    while (at := data.find(_MAGIC, at)) >= 0:
        if _prefix_at(data, at) is not None:
            return at
        at += 1
    return None


def _could_be_torn(data: mmap.mmap | bytes, at: int) -> bool:
    """Whether the end of the file is a part of a prefix, as a write that was cut short leaves it."""
    return len(data) - at < PREFIX_BYTES and data[at : at + 4] == _MAGIC[: len(data) - at]


# ---- the account


@dataclass(eq=False, slots=True)
class _Open:
    """A block in the spool that is not settled."""

    segment: _Segment
    offset: int
    frame_ids: range | tuple[int, ...]
    size: int
    answered: set[int] = field(default_factory=set)


@dataclass(eq=False, slots=True)
class _Segment:
    number: int
    path: Path
    file: int
    size: int = 0
    open_blocks: int = 0


class Waiting(NamedTuple):
    """A block that a successor finds: the frames that have no verdict yet, and the bytes of its payload."""

    block: int
    frame_ids: tuple[int, ...]
    size: int


class Found(NamedTuple):
    """What a successor goes on with; ``exposed == acknowledged + lost + in blocks + gathering``."""

    head: Head
    changes: list[Change]
    exposed: int
    gathering_from: int  # frames from here on were exposed and are in no block,
    lost_ahead: frozenset[int]  # but for these, which are lost already
    acknowledged: int
    lost: dict[str, int]
    blocks: list[Waiting]
    next_block: int
    phase: Phase
    figures: dict[str, Any]
    damages: list[str]

    @property
    def gathering(self) -> list[int]:
        """The frames that were exposed and neither reached a block nor were lost."""
        frames = range(self.gathering_from, self.exposed)
        return [frame for frame in frames if frame not in self.lost_ahead]


class _State:
    """The account as the records make it, for the process that writes them and for its successor alike."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self.changes: list[Change] = []
        self.exposed = self.placed = self.acknowledged = self.next_block = 0
        self.lost: Counter[str] = Counter()
        self.lost_ahead: set[int] = set()
        self.phase: Phase = "acquiring"
        self.figures: dict[str, Any] = {}

    @classmethod
    def of(cls, snapshot: Snapshot) -> _State:
        state = cls(snapshot.head)
        state.changes = list(snapshot.changes)
        state.exposed, state.placed = snapshot.exposed, snapshot.placed
        state.acknowledged, state.next_block = snapshot.acknowledged, snapshot.next_block
        state.lost, state.lost_ahead = Counter(snapshot.lost), set(snapshot.lost_ahead)
        state.phase, state.figures = snapshot.phase, snapshot.figures
        return state

    def snapshot(self, answered: dict[int, list[int]]) -> Snapshot:
        return Snapshot(
            head=self.head,
            changes=self.changes,
            exposed=self.exposed,
            placed=self.placed,
            acknowledged=self.acknowledged,
            lost=dict(self.lost),
            lost_ahead=sorted(self.lost_ahead),
            answered=answered,
            next_block=self.next_block,
            phase=self.phase,
            figures=self.figures,
        )

    def apply(self, record: Change | Exposed | Turn | Answers) -> None:
        match record:
            case Change():
                self.changes.append(record)
            case Exposed(until=until):
                self.exposed = max(self.exposed, until)
            case Turn(phase=phase):
                self.phase = phase
            case Answers(answers=answers, figures=figures):
                for answer in answers:
                    self._answer(answer)
                self.figures = self.figures if figures is None else figures

    def _answer(self, answer: Answer) -> None:
        if answer.reason is None:
            self.acknowledged += len(answer.frame_ids)
        else:
            self.lost[answer.reason] += len(answer.frame_ids)
        if answer.block is not None:
            self.place(answer.block, answer.frame_ids)
        else:
            self.lost_ahead.update(frame for frame in answer.frame_ids if frame >= self.placed)

    def place(self, block: int, frame_ids: Sequence[int]) -> None:
        """Frames are in a block: with them everything before them has been dealt with."""
        self.next_block = max(self.next_block, block + 1)
        if frame_ids and frame_ids[-1] >= self.placed:
            self.placed = frame_ids[-1] + 1
            self.exposed = max(self.exposed, self.placed)
            if self.lost_ahead:
                self.lost_ahead = {frame for frame in self.lost_ahead if frame >= self.placed}


# ---- the spool


class Spool:
    """The spool of one series; ``create`` begins one, ``resume`` goes on with one that was left.

    One thread appends blocks, another may settle and read them at the same time.

    Attributes
    ----------
    limit_bytes : int
        What the files of blocks may take; ``fits`` says whether a block would exceed it.
    """

    def __init__(self, folder: Path, lock: int, state: _State, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._lock_file = lock
        self._state = state
        self._open: dict[int, _Open] = {}
        self._segments: dict[int, _Segment] = {}
        self._current: _Segment | None = None
        self._next_segment = 1
        self._stale = False  # the account on disk lacks something
        self._account = -1
        self._account_bytes = 0
        self._segment_bytes = max(1, min(LARGEST_SEGMENT_BYTES, limit_bytes // SEGMENTS))
        self._lock = threading.Lock()

    @classmethod
    def create(cls, root: Path, head: Head, limit_bytes: int) -> Spool:
        """Begin the spool of a series in a folder of its own under ``root``.

        Raises
        ------
        OSError
            If the folder cannot be written.
        """
        folder = root / head.start.series
        folder.mkdir(parents=True)
        try:
            lock = _locked(folder)
            try:
                spool = cls(folder, lock, _State(head), limit_bytes)
                spool._begin_account()
            except OSError:
                os.close(lock)
                raise
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return spool

    @classmethod
    def resume(cls, folder: Path, limit_bytes: int) -> tuple[Spool, Found]:
        """Go on with the spool that another process left.

        Raises
        ------
        SpoolTaken
            If that process is still there.
        SpoolDamaged
            If it cannot be told how the series began.
        OSError
            If the folder cannot be read and written.
        """
        lock = _locked(folder)
        try:
            damages: list[str] = []
            account = _read_account(folder / ACCOUNT, damages)
            spool = cls(folder, lock, account.state, limit_bytes)
            spool._read_segments(account, damages)
            found = spool._found(damages)
            spool._begin_account()
        except BaseException:
            os.close(lock)
            raise
        return spool, found

    # ---- writing

    @property
    def bytes(self) -> int:
        """Of all files of blocks, settled blocks that stand beside open ones included."""
        return sum(segment.size for segment in list(self._segments.values()))

    @property
    def open_blocks(self) -> int:
        """Blocks that are not settled."""
        return len(self._open)

    def fits(self, size: int) -> bool:
        """Whether ``size`` bytes of payload more are within the limit; an empty spool takes any block."""
        return not self._open or self.bytes + size + PREFIX_BYTES <= self.limit_bytes

    def append(self, header: Frames, buffers: Sequence[Buffer]) -> None:
        """Keep a block until all its frames have their verdict, whether or not it ``fits``.

        Raises
        ------
        OSError
            If it could not be written; nothing of it is left.
        """
        flat = [as_bytes(buffer) for buffer in buffers]
        lengths = [len(buffer) for buffer in flat]
        parts = _framed(_encode((header, lengths)), flat)
        size = sum(map(len, parts))
        with self._lock:
            segment = self._segment_for(size)
            offset = segment.size
        try:
            write_all(segment.file, parts)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(segment.file, offset)
            raise
        with self._lock:
            segment.size += size
            segment.open_blocks += 1
            self._open[header.block] = _Open(segment, offset, compact(header.frame_ids), sum(lengths))
            self._state.place(header.block, header.frame_ids)

    def note(self, record: Change | Exposed | Turn | Answers) -> None:
        """Write what happened into the account; blocks that are settled by it make room.

        Raises
        ------
        OSError
            If it could not be written; the next one is written with all that was missed.
        """
        with self._lock:
            self._state.apply(record)
            if isinstance(record, Answers):
                self._settle(record.answers)
            if not self._stale:
                try:
                    self._write_account(record)
                except OSError:
                    self._stale = True
            self._free()  # on a full disk this may be the room that was missing
            if self._stale:
                self._begin_account()
            elif self._account_bytes > COMPACTED_AT_BYTES:
                with contextlib.suppress(OSError):  # the longer account is as good
                    self._begin_account()

    def read(self, block: int) -> tuple[Frames, list[memoryview]]:
        """A block as it was appended, ``wanted`` naming the frames without a verdict if some have one.

        Raises
        ------
        KeyError
            If it is settled.
        SpoolDamaged
            If it is not as it was written.
        OSError
            If it cannot be read.
        """
        with self._lock:
            known = self._open[block]
            file, offset = os.dup(known.segment.file), known.offset
            answered = set(known.answered)
        try:
            header, payload = _read_record(file, offset)
        except (ValueError, EOFError) as error:
            raise SpoolDamaged(f"{known.segment.path}: byte {offset}: {error}") from error
        finally:
            os.close(file)
        frames, lengths = header
        buffers: list[memoryview] = []
        for length in lengths:
            buffers.append(payload[:length])
            payload = payload[length:]
        if answered:
            wanted = [frame for frame in frames.frame_ids if frame not in answered]
            frames = msgspec.structs.replace(frames, wanted=wanted)
        return frames, buffers

    def close(self) -> None:
        """Let go of the files; another process may go on with what is left."""
        with self._lock:
            for segment in self._segments.values():
                os.close(segment.file)
            self._segments.clear()
            if self._account >= 0:
                os.close(self._account)
                self._account = -1
            if self._lock_file >= 0:
                os.close(self._lock_file)
                self._lock_file = -1

    def remove(self) -> None:
        """The series is over: nothing of it is kept."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- inside

    def _segment_for(self, size: int) -> _Segment:
        """The file to append to, a new one if the current is long enough."""
        current = self._current
        is_long = current is not None and current.size and current.size + size > self._segment_bytes
        if current is None or is_long:
            self._current = current = self._new_segment()
            self._free()
        return current

    def _new_segment(self) -> _Segment:
        number = self._next_segment
        path = self.folder / SEGMENT.format(number)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._next_segment += 1
        segment = self._segments[number] = _Segment(number, path, file)
        return segment

    def _settle(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            known = None if answer.block is None else self._open.get(answer.block)
            if known is None:
                continue
            known.answered.update(answer.frame_ids)
            if len(known.answered) >= len(known.frame_ids):
                assert answer.block is not None
                del self._open[answer.block]
                known.segment.open_blocks -= 1

    def _free(self) -> None:
        """Delete the files in which every block is settled."""
        for segment in list(self._segments.values()):
            if segment is not self._current and not segment.open_blocks:
                del self._segments[segment.number]
                os.close(segment.file)
                with contextlib.suppress(OSError):
                    segment.path.unlink()

    def _begin_account(self) -> None:
        """Write all of the account anew as one record, in the place of the one before."""
        answered = {block: sorted(known.answered) for block, known in self._open.items()}
        parts = _framed(_encode(self._state.snapshot(answered)), [])
        new = self.folder / f"{ACCOUNT}.new"
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        try:
            write_all(file, parts)
            new.rename(self.folder / ACCOUNT)
        except OSError:
            os.close(file)
            raise
        if self._account >= 0:
            os.close(self._account)
        self._account, self._account_bytes, self._stale = file, sum(map(len, parts)), False

    def _write_account(self, record: Record) -> None:
        parts = _framed(_encode(record), [])
        try:
            write_all(self._account, parts)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._account, self._account_bytes)
            raise
        self._account_bytes += sum(map(len, parts))

    def _read_segments(self, account: _Account, damages: list[str]) -> None:
        for path in sorted(self.folder.glob("blocks-*")):
            number = int(path.name.partition("-")[2])
            self._next_segment = max(self._next_segment, number + 1)
            segment = _Segment(number, path, os.open(path, os.O_RDONLY), path.stat().st_size)
            self._segments[number] = segment
            for found in scan(path):
                if isinstance(found, str):
                    damages.append(found)
                    continue
                try:
                    header, lengths = _decode_block.decode(found.header)
                except msgspec.MsgspecError as error:
                    damages.append(f"{path}: byte {found.offset}: {error}")
                    continue
                if header.series != self._state.head.start.series or sum(lengths) != found.payload_bytes:
                    damages.append(f"{path}: byte {found.offset}: not a block of this series")
                    continue
                self._state.place(header.block, header.frame_ids)
                done = account.answered.get(header.block, set()) & set(header.frame_ids)
                if account.may_be_open(header.block) and len(done) < len(header.frame_ids):
                    frame_ids, size = compact(header.frame_ids), found.payload_bytes
                    self._open[header.block] = _Open(segment, found.offset, frame_ids, size, done)
                    segment.open_blocks += 1
        self._free()

    def _found(self, damages: list[str]) -> Found:
        state = self._state
        blocks = [
            Waiting(block, tuple(f for f in known.frame_ids if f not in known.answered), known.size)
            for block, known in sorted(self._open.items())
        ]
        waiting = sum(len(block.frame_ids) for block in blocks)
        gathering = state.exposed - state.placed - len(state.lost_ahead)
        missing = state.exposed - state.acknowledged - state.lost.total() - waiting - gathering
        if missing < 0:
            raise SpoolDamaged(f"{self.folder}: the account names {-missing} frames too many")
        if missing:
            state.lost[MISSING] += missing
        return Found(
            head=state.head,
            changes=list(state.changes),
            exposed=state.exposed,
            gathering_from=state.placed,
            lost_ahead=frozenset(state.lost_ahead),
            acknowledged=state.acknowledged,
            lost=dict(state.lost),
            blocks=blocks,
            next_block=state.next_block,
            phase=state.phase,
            figures=state.figures,
            damages=damages,
        )


def unfinished(root: Path) -> list[Path]:
    """The folders of series that were left under ``root``, those begun first before the others."""
    folders = [path.parent for path in root.glob(f"*/{ACCOUNT}")] if root.is_dir() else []
    return sorted(folders, key=lambda folder: (folder.stat().st_mtime, folder.name))


def claimed(root: Path) -> int:
    """A descriptor that holds the lock of a folder of spools, until it is closed.

    Raises
    ------
    BlockingIOError
        If another process has it.
    """
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(folder)
        raise
    return folder


def _locked(folder: Path) -> int:
    file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(file)
        raise SpoolTaken(f"{folder}: another detector has this series") from error
    except OSError:
        os.close(file)
        raise
    return file


@dataclass(eq=False, slots=True)
class _Account:
    """An account as it was read."""

    state: _State
    answered: dict[int, set[int]]  # by block
    open_then: set[int]  # when the snapshot was written,
    next_then: int  # and the next block's number then

    def may_be_open(self, block: int) -> bool:
        return block >= self.next_then or block in self.open_then


def _read_account(path: Path, damages: list[str]) -> _Account:
    account: _Account | None = None
    for found in scan(path):
        if isinstance(found, str):
            damages.append(found)
            continue
        try:
            record = _decode_record.decode(found.header)
        except msgspec.MsgspecError as error:
            damages.append(f"{path}: byte {found.offset}: {error}")
            continue
        if isinstance(record, Snapshot):
            answered = {block: set(frames) for block, frames in record.answered.items()}
            account = _Account(_State.of(record), answered, set(answered), record.next_block)
        elif account is not None:
            account.state.apply(record)
            for answer in record.answers if isinstance(record, Answers) else ():
                if answer.block is not None:
                    account.answered.setdefault(answer.block, set()).update(answer.frame_ids)
    if account is None:
        told = f" ({damages[0]})" if damages else ""
        raise SpoolDamaged(f"{path}: does not say how the series began{told}")
    if account.state.head.format != FORMAT:
        raise SpoolDamaged(f"{path}: format {account.state.head.format}, this version reads {FORMAT}")
    return account


def _read_record(file: int, offset: int) -> tuple[_BlockHeader, memoryview]:
    prefix = os.pread(file, PREFIX_BYTES, offset)
    sizes = _prefix_at(prefix, 0)
    if sizes is None:
        raise ValueError("damaged prefix")
    header_bytes, payload_bytes, header_check, payload_check = sizes
    data = memoryview(read_all_at(file, header_bytes + payload_bytes, offset + PREFIX_BYTES))
    header, payload = data[:header_bytes], data[header_bytes:]
    if crc32(header) != header_check:
        raise ValueError("damaged header")
    if crc32(payload) != payload_check:
        raise ValueError("damaged payload")
    return _decode_block.decode(header), payload


def compact(frame_ids: Sequence[int]) -> range | tuple[int, ...]:
    """The same ids in the least memory."""
    run = range(frame_ids[0], frame_ids[-1] + 1) if frame_ids else range(0)
    return run if len(run) == len(frame_ids) else tuple(frame_ids)
