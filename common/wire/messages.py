"""Typed headers of both planes. The first part of every multipart message is one of these in msgpack.

Data plane (ROUTER at the detector, DEALER at each worker)
    detector -> worker: Start, ConfigurationNotice, Frames, End, Heartbeat, Refusal
    worker -> detector: Hello, Credit, Ack, Reject, Heartbeat, Goodbye
Control bus (ROUTER at the control plane, DEALER at detector and workers)
    component -> control plane: Register, Reply, Telemetry, Event, Goodbye
    control plane -> component: Registered, Command

Decoding checks every field's type and bounds and builds nothing but these structures, of plain values.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import msgspec

PROTOCOL_VERSION = 1

# What comes is a stranger's until it is checked, so every header has bounds; the sender keeps within them.
# A block of 64 MB raw has 16000 frames of 64 x 64 pixels; smaller frames travel in more blocks.
MAX_BLOCK_FRAMES = 16_384
# A header of frames has up to some forty RELION columns, each value of which takes up to some fifty bytes.
# Decoded it takes up to 21 times as many bytes (short texts), so 700 MB; real ones are a few kilobytes.
MAX_FRAMES_HEADER_BYTES = 32 << 20
# All others are small. Where they may have free form (``Any``) they take up to 100 times as many bytes
# decoded (maps in maps), so 100 MB.
MAX_HEADER_BYTES = 1 << 20
# A payload is no longer than the array it stands for, but for the framing of compressed ones.
MAX_ARRAY_BYTES = 2_000_000_000  # 16384 x 16384 float32 (1.07 GB) fits; blosc2 takes up to 2^31 bytes
MAX_PAYLOAD_BYTES = MAX_ARRAY_BYTES + (1 << 20)
MAX_DEPTH = 16  # of values of free form; what goes on to other encoders must not exhaust their stack
MAX_SIDE_PIXELS = 1 << 17  # of a frame
MAX_FRAME_ID = 2**31 - 2  # results stand in an MRC stack, which counts in int32

FrameId = Annotated[int, msgspec.Meta(ge=0, le=MAX_FRAME_ID)]
FrameIds = Annotated[list[FrameId], msgspec.Meta(max_length=MAX_BLOCK_FRAMES)]
Times = Annotated[list[float], msgspec.Meta(max_length=MAX_BLOCK_FRAMES)]
Side = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE_PIXELS)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Blocks = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
TraceParent = Annotated[str, msgspec.Meta(max_length=64)]
Cell = str | int | float | bool | None  # of a RELION table

Values = Literal["integer", "float32", "float16", "quantised"]
Coding = Literal["plain", "packed", "bitshuffle-lz4", "bitshuffle-zstd"]


class Header(msgspec.Struct, frozen=True, tag_field="type", kw_only=True):
    """What every message carries."""

    version: int = PROTOCOL_VERSION


class ArrayHeader(msgspec.Struct, frozen=True, kw_only=True):
    """How one payload buffer becomes an array; see ``codec``.

    ``values`` says what is stored: the integers themselves (plus ``offset`` where packed), integers to be
    multiplied by ``step`` (quantised), or floating-point numbers (float16 ones times ``step``). ``dtype`` is
    that of the decoded array.
    """

    shape: Annotated[list[int], msgspec.Meta(max_length=32)]
    dtype: str
    coding: Coding
    values: Values = "integer"
    bits: int = 0  # bits per stored value
    offset: int = 0  # packed: the smallest value, subtracted before packing
    step: float = 0.0  # quantised: value of one step; float16: a power of two
    signed: bool = False  # bitshuffle: stored items are zigzag-coded signed integers


# ---- data plane, detector -> worker ---------------------------------------------------------------


class Start(Header, frozen=True, kw_only=True, tag="start"):
    """A series begins. Reaches every worker, late joiners too."""

    series: str  # UUID
    session: str
    frames_expected: FrameId | None  # None: endless or a watched folder
    shape: tuple[Side, Side]
    dtype: str  # NumPy name of the raw frames' dtype
    pixel_size_angstrom: float
    output: str  # folder the results go to
    optics: dict[str, Any]  # one row of the RELION optics table
    calibration: dict[str, Any]  # common.calibration.Calibration as a dict


class ConfigurationNotice(Header, frozen=True, kw_only=True, tag="configuration"):
    """Sent to a worker before the first frames that use it: ``common.configuration``'s model, dumped."""

    configuration: dict[str, Any]


class Frames(Header, frozen=True, kw_only=True, tag="frames"):
    """A block of frames of one configuration; buffers: payload[, reference payload].

    The payload decodes to (len(frame_ids), *measurement_shape).
    """

    series: str
    block: Count
    config_id: str
    frame_ids: FrameIds
    acquired_at: Times  # detector's Unix time of each exposure's end, seconds
    payload: ArrayHeader
    reference_ids: FrameIds = []  # frame_ids also sent whole
    reference_payload: ArrayHeader | None = None  # (len(reference_ids), H, W)
    metadata: dict[str, list[Cell]] | None = None  # RELION columns, one value a frame
    attempt: Count = 1  # 1 + times this block was redelivered
    wanted: FrameIds | None = None  # redelivered: the frames still without a result; none: all of them
    alone: bool = False  # workers died with it: recover and acknowledge its frames one at a time, in order
    trace: TraceParent = ""  # W3C traceparent of the block where traces are made; see common.tracing


class End(Header, frozen=True, kw_only=True, tag="end"):
    """The series is over: no frame after last_frame_id. Counts, not this message, finish it."""

    series: str
    last_frame_id: int
    acquired: Count
    acknowledged: Count
    lost: Count


class Heartbeat(Header, frozen=True, kw_only=True, tag="heartbeat"):
    """I live. Either direction, once a second."""


class Refusal(Header, frozen=True, kw_only=True, tag="refusal"):
    """The detector will not serve this worker (say, another protocol version)."""

    reason: str


# ---- data plane, worker -> detector ---------------------------------------------------------------


class Hello(Header, frozen=True, kw_only=True, tag="hello"):
    """First message of a worker."""

    worker: str
    host: str
    pid: int


class Credit(Header, frozen=True, kw_only=True, tag="credit"):
    """The detector may send this many further blocks."""

    blocks: Blocks


class Ack(Header, frozen=True, kw_only=True, tag="ack"):
    """These frames' results are durable."""

    series: str
    block: Count
    frame_ids: FrameIds
    credit: Blocks = 0  # as in Credit: most acks bring the next one with them


class Reject(Header, frozen=True, kw_only=True, tag="reject"):
    """These frames cannot be recovered, and why."""

    series: str
    block: Count
    frame_ids: FrameIds
    reason: str


class Goodbye(Header, frozen=True, kw_only=True, tag="goodbye"):
    """The worker leaves; what it has not acknowledged goes to others at once. Said on the control bus too."""


# ---- control bus ------------------------------------------------------------------------------------


class Register(Header, frozen=True, kw_only=True, tag="register"):
    """A component joins (again after the control plane came back)."""

    component: Literal["detector", "reconstructor"]
    name: str
    host: str
    pid: int
    data_endpoint: str = ""  # detector: where workers connect
    details: dict[str, Any] = {}  # device, threads, ...


class Registered(Header, frozen=True, kw_only=True, tag="registered"):
    """Answer to Register; for a worker it carries what it has to know."""

    data_endpoint: str = ""
    recovery: dict[str, Any] = {}  # common.session.RecoverySpec plus recovery_id


class Command(Header, frozen=True, kw_only=True, tag="command"):
    """Do this.

    Detector verbs: open, acquisition, pause, resume, stop, abandon,
    describe. Worker verbs: recovery, attach.
    """

    request: str
    verb: str
    arguments: dict[str, Any] = {}


class Reply(Header, frozen=True, kw_only=True, tag="reply"):
    """Answer to a Command, matched by ``request``."""

    request: str
    ok: bool
    result: dict[str, Any] = {}
    error: str = ""
    error_kind: Literal["", "invalid", "conflict", "failed"] = ""


class Telemetry(Header, frozen=True, kw_only=True, tag="telemetry"):
    """Once a second; values are the component's own counters since it started."""

    component: str
    name: str
    values: dict[str, Any]


class Event(Header, frozen=True, kw_only=True, tag="event"):
    """Something worth a line in the session's history (a bad file skipped, a worker lost, finished)."""

    component: str
    name: str
    kind: str
    message: str
    details: dict[str, Any] = {}


Message = (
    Start | ConfigurationNotice | Frames | End | Heartbeat | Refusal
    | Hello | Credit | Ack | Reject | Goodbye
    | Register | Registered | Command | Reply | Telemetry | Event
)  # fmt: skip

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_frames_decoder: msgspec.msgpack.Decoder[Frames] = msgspec.msgpack.Decoder(Frames)
_FREE_FORM: dict[type[Header], tuple[str, ...]] = {
    Start: ("optics", "calibration"),
    ConfigurationNotice: ("configuration",),
    Register: ("details",),
    Registered: ("recovery",),
    Command: ("arguments",),
    Reply: ("result",),
    Telemetry: ("values",),
    Event: ("details",),
}

_PLAIN = frozenset({type(None), bool, int, float, str})


class MalformedMessage(ValueError):
    """A header that is not one of ours, or of another protocol version."""


def encode(message: Message) -> bytes:
    """One header as msgpack."""
    return _encoder.encode(message)


def decode(data: bytes | memoryview) -> Message:
    """The header in ``data``, which agrees with itself and keeps within the bounds above.

    Raises
    ------
    MalformedMessage
        If it is not msgpack, not one of the messages, has a field of the wrong type or out of bounds, or
        speaks another protocol version.
    """
    size = len(data)
    if size > MAX_FRAMES_HEADER_BYTES:
        raise MalformedMessage(f"a header of {size} bytes, {MAX_FRAMES_HEADER_BYTES} at most")
    try:
        message = _decoder.decode(data) if size <= MAX_HEADER_BYTES else _frames_decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise MalformedMessage(f"not a CryoFlux message: {_one_line(error)}") from error
    if message.version != PROTOCOL_VERSION:
        raise MalformedMessage(f"protocol version {message.version}, this side speaks {PROTOCOL_VERSION}")
    if isinstance(message, Frames):
        _check_frames(message)
    else:
        for name in _FREE_FORM.get(type(message), ()):
            _check_plain(getattr(message, name), name)
    return message


def has_buffers(message: Message, count: int) -> bool:
    """Whether so many payloads may follow the header."""
    if isinstance(message, Frames):
        return count == (1 if message.reference_payload is None else 2)
    return count == 0


def _one_line(error: Exception) -> str:
    """What a library has to say about a stranger's bytes, printable and short."""
    return ascii(str(error))[1:-1][:200]


def _check_frames(frames: Frames) -> None:
    """Raise MalformedMessage unless every list has one entry a frame and every id is where it belongs."""
    ids, count = frames.frame_ids, len(frames.frame_ids)
    known = set(ids)
    if not count or len(known) < count:
        raise MalformedMessage(f"block {frames.block}: {count} frames, {len(known)} different ones")
    if len(frames.acquired_at) != count or not math.isfinite(math.fsum(frames.acquired_at)):
        raise MalformedMessage(f"block {frames.block}: no time for each of its {count} frames")
    if frames.payload.shape[:1] != [count]:
        raise MalformedMessage(f"block {frames.block}: {count} frames, payload {frames.payload.shape}")
    for values in frames.metadata.values() if frames.metadata else ():
        if len(values) != count:
            raise MalformedMessage(f"block {frames.block}: {len(values)} rows of metadata for {count} frames")
    if frames.wanted is not None and not known.issuperset(frames.wanted):
        raise MalformedMessage(f"block {frames.block}: frames wanted that are not in it")
    references, payload = frames.reference_ids, frames.reference_payload
    if not known.issuperset(references) or len(set(references)) < len(references):
        raise MalformedMessage(f"block {frames.block}: references that are not in it")
    if (payload is None) != (not references) or (payload and payload.shape[:1] != [len(references)]):
        raise MalformedMessage(f"block {frames.block}: payload and ids of its references do not agree")


def _check_plain(values: dict[str, Any], where: str) -> None:
    """Raise MalformedMessage unless it is made of what JSON can say, nested no deeper than ``MAX_DEPTH``."""
    level: list[dict[Any, Any] | list[Any]] = [values]
    for _ in range(MAX_DEPTH):
        inner: list[dict[Any, Any] | list[Any]] = []
        for container in level:
            if isinstance(container, dict):
                _check_keys(container, where)
                container = container.values()
            for value in container:
                kind = type(value)
                if kind is dict or kind is list:
                    inner.append(value)
                elif kind not in _PLAIN:
                    raise MalformedMessage(f"{where}: a {kind.__name__} in it")
        if not inner:
            return
        level = inner
    raise MalformedMessage(f"{where}: nested deeper than {MAX_DEPTH}")


def _check_keys(table: dict[Any, Any], where: str) -> None:
    for key in table:
        if type(key) not in _PLAIN:
            raise MalformedMessage(f"{where}: a {type(key).__name__} as a key in it")
