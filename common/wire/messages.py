"""Typed headers of both planes. The first part of every multipart message is one of these in msgpack.

Data plane (ROUTER at the detector, DEALER at each worker)
    detector -> worker: Start, ConfigurationNotice, Frames, End, Heartbeat, Refusal
    worker -> detector: Hello, Credit, Ack, Reject, Heartbeat, Goodbye
Control bus (ROUTER at the control plane, DEALER at detector and workers)
    component -> control plane: Register, Reply, Telemetry, Event
    control plane -> component: Registered, Command

Decoding checks every field's type and builds nothing but these structures.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

PROTOCOL_VERSION = 1

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

    shape: list[int]
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
    frames_expected: int | None  # None: endless or a watched folder
    shape: tuple[int, int]
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
    block: int
    config_id: str
    frame_ids: list[int]
    acquired_at: list[float]  # detector's Unix time of each exposure's end, seconds
    payload: ArrayHeader
    reference_ids: list[int] = []  # frame_ids also sent whole
    reference_payload: ArrayHeader | None = None  # (len(reference_ids), H, W)
    metadata: dict[str, list[Any]] | None = None  # RELION columns, one value a frame
    attempt: int = 1  # 1 + times this block was redelivered
    wanted: list[int] | None = None  # redelivered: the frames still without a result; none: all of them


class End(Header, frozen=True, kw_only=True, tag="end"):
    """The series is over: no frame after last_frame_id. Counts, not this message, finish it."""

    series: str
    last_frame_id: int
    acquired: int
    acknowledged: int
    lost: int


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

    blocks: int


class Ack(Header, frozen=True, kw_only=True, tag="ack"):
    """These frames' results are durable."""

    series: str
    block: int
    frame_ids: list[int]
    credit: int = 0  # as in Credit: most acks bring the next one with them


class Reject(Header, frozen=True, kw_only=True, tag="reject"):
    """These frames cannot be recovered, and why."""

    series: str
    block: int
    frame_ids: list[int]
    reason: str


class Goodbye(Header, frozen=True, kw_only=True, tag="goodbye"):
    """The worker leaves; what it has not acknowledged goes to others at once."""


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
    """Do this. Detector verbs: open, acquisition, pause, resume, stop. Worker verbs: recovery, attach."""

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


class MalformedMessage(ValueError):
    """A header that is not one of ours, or of another protocol version."""


def encode(message: Message) -> bytes:
    """One header as msgpack."""
    return _encoder.encode(message)


def decode(data: bytes | memoryview) -> Message:
    """The header in ``data``.

    Raises
    ------
    MalformedMessage
        If it is not msgpack, not one of the messages, has a field of the wrong type, or speaks another
        protocol version.
    """
    try:
        message = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessage(f"not a CryoFlux message: {error}") from error
    if message.version != PROTOCOL_VERSION:
        raise MalformedMessage(f"protocol version {message.version}, this side speaks {PROTOCOL_VERSION}")
    return message
