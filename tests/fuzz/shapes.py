"""Changes to an input that keep its outer form, so that the parts behind the first checks are reached too."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import msgspec

from common.archive.chunks import fletcher32
from tests.fuzz.forging import Forged, chunks_of, deflated, inflated, put_together, refill, taken_apart

CODEC_HEADER_BYTES = 2
NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    8,
    31,
    32,
    33,
    63,
    64,
    127,
    128,
    255,
    256,
    1023,
    1024,
    65_535,
    65_536,
    1 << 17,
    1 << 20,
    1 << 24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**63 - 1,
    -(2**31),
    -(2**63),
    2**64 - 1,
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    "",
    "x",
    "\u202e\n",
    "9" * 400,
    0.0,
    -0.0,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    [],
    {},
    [[]],
    [0] * 40,
    {"": {}},
    b"x",
    "bitshuffle-zstd",
    "packed",
    "plain",
    "quantised",
    "float16",
    "int64",
    "uint8",
)


def mutated(target: str, data: bytes, chance: random.Random) -> bytes:
    """Another input for ``target``."""
    if target == "messages":
        return _msgpack(data, chance)
    if target == "codec":
        return _with_header(data, chance)
    if target == "cfx":
        return _record(data, chance)
    if target == "archive":
        return _log(data, chance)
    if target in ("star", "journal"):
        return _text(data, chance)
    return _words(data, chance)


def _msgpack(data: bytes, chance: random.Random) -> bytes:
    """A value somewhere in a msgpack structure replaced, doubled, moved or taken out."""
    try:
        value = msgspec.msgpack.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _bytes(data, chance)
    for _ in range(chance.randint(1, 3)):
        value = _changed(value, chance, 4)
    try:
        return msgspec.msgpack.encode(value)
    except (msgspec.MsgspecError, OverflowError, TypeError, ValueError, RecursionError):
        return _bytes(data, chance)


def _changed(value: Any, chance: random.Random, depth: int) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.9 and depth:
        key = chance.choice(list(value))
        what = chance.random()
        if what < 0.05:
            return {k: v for k, v in value.items() if k != key}
        if what < 0.10:
            return value | {str(chance.choice(VALUES)): chance.choice(list(value.values()))}
        return value | {key: _changed(value[key], chance, depth - 1)}
    if isinstance(value, list) and value and chance.random() < 0.8 and depth:
        place = chance.randrange(len(value))
        what = chance.random()
        if what < 0.2:
            return value[:place]
        if what < 0.4:
            return value + value[: place + 1]
        return [*value[:place], _changed(value[place], chance, depth - 1), *value[place + 1 :]]
    if isinstance(value, int) and chance.random() < 0.5:
        return value + chance.randint(-2, 2)
    if chance.random() < 0.1:
        nest: Any = value
        for _ in range(chance.choice((1, 3, 14, 20, 400))):
            nest = [nest] if chance.random() < 0.5 else {"a": nest}
        return nest
    return chance.choice(NUMBERS) if chance.random() < 0.5 else chance.choice(VALUES)


def _with_header(data: bytes, chance: random.Random) -> bytes:
    """The codec's input with its header or its payload changed, the length of the header kept right."""
    size = int.from_bytes(data[:2], "little")
    header, payload = data[2 : 2 + size], data[2 + size :]
    if chance.random() < 0.5:
        header = _msgpack(header, chance)[:65_535]
    else:
        payload = _words(payload, chance)
    return len(header).to_bytes(2, "little") + header + payload


def _record(data: bytes, chance: random.Random) -> bytes:
    """The first record of an archive with another header, its lengths kept right."""
    begin = 8
    count = int.from_bytes(data[begin : begin + 4], "little")
    if len(data) < begin + 4 or not 1 <= count <= 8 or chance.random() < 0.3:
        return _words(data, chance)
    at = begin + 4 + 8 * count
    size = int.from_bytes(data[begin + 4 : begin + 12], "little")
    header = _msgpack(data[at : at + size], chance)
    lengths = len(header).to_bytes(8, "little") + data[begin + 12 : at]
    return data[: begin + 4] + lengths + header + data[at + size :]


def _log(data: bytes, chance: random.Random) -> bytes:
    """Records of an archive changed, moved, doubled or taken out; lengths and checksums are right again."""
    if chance.random() < 0.15:
        return _words(data, chance)
    head, records, tail = taken_apart(data)
    for _ in range(chance.randint(1, 3)):
        if not records:
            return _words(data, chance)
        place = chance.randrange(len(records))
        record, what = records[place], chance.random()
        if what < 0.5:
            packed = _msgpack(
                record.header if isinstance(record.header, bytes) else msgspec.msgpack.encode(record.header),
                chance,
            )
            records[place] = Forged(packed, record.body)
        elif what < 0.75 and isinstance(record.header, dict):
            with contextlib.suppress(Exception):
                records[place] = _refilled(record, chance)
        elif what < 0.8:
            del records[place]
        elif what < 0.87:
            records.insert(chance.randrange(len(records) + 1), record)
        elif what < 0.94:
            other = chance.randrange(len(records))
            records[place], records[other] = records[other], records[place]
        else:
            whole = put_together(head, records, tail)
            return whole[: chance.randrange(len(whole) + 1)]
    return put_together(head, records, tail)


def _refilled(record: Forged, chance: random.Random) -> Forged:
    """A record with one of its chunks changed; the sizes in its header mostly go with it."""
    header = dict(record.header)
    new = Forged(header, record.body)
    chunks = chunks_of(new)
    place = chance.randrange(len(chunks))
    what = chance.random()
    if what < 0.4:
        chunks[place] = deflated(_words(inflated(chunks[place]), chance))
    elif what < 0.6:
        content = inflated(chunks[place])
        chunks[place] = deflated(content[: chance.randrange(len(content) + 1)] * chance.choice((1, 2, 100)))
    elif what < 0.8:
        stream = _words(chunks[place][:-4], chance)
        chunks[place] = stream + fletcher32(stream).to_bytes(4, "little")
    elif what < 0.9:
        chunks.append(chunks[place])
    else:
        chunks[place] = chance.choice(chunks)
    if chance.random() < 0.9:
        refill(new, chunks)
    else:
        new.body = b"".join(chunks)
    return new


def _words(data: bytes, chance: random.Random) -> bytes:
    """A number of 1 to 8 bytes somewhere replaced by an awkward one; early places more often."""
    spoiled = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        if not spoiled:
            break
        width = chance.choice((1, 2, 4, 4, 4, 8))
        place = chance.randrange(min(len(spoiled), chance.choice((16, 64, 256, len(spoiled)))))
        number = chance.choice(NUMBERS) % (1 << 8 * width)
        spoiled[place : place + width] = number.to_bytes(width, chance.choice(("little", "little", "big")))
    return bytes(spoiled)


def _text(data: bytes, chance: random.Random) -> bytes:
    """Lines and words replaced, doubled, moved or taken out."""
    lines = data.split(b"\n")
    for _ in range(chance.randint(1, 3)):
        place, what = chance.randrange(len(lines)), chance.random()
        words = lines[place].split(b" ") if b" " in lines[place] else lines[place].split(b",")
        joint = b" " if b" " in lines[place] else b","
        if what < 0.15:
            lines.insert(chance.randrange(len(lines) + 1), lines[place])
        elif what < 0.3 and len(lines) > 1:
            del lines[place]
        elif what < 0.4:
            lines[place] *= chance.choice((2, 10))
        else:
            word = chance.randrange(len(words))
            words[word] = chance.choice(
                (
                    b"",
                    b"loop_",
                    b"data_",
                    b"'",
                    b'"',
                    b";",
                    b"#",
                    b"_rlnImageName",
                    b"1@s.mrcs",
                    b"0@s.mrcs",
                    b"@",
                    b"nan",
                    b"inf",
                    b"-1",
                    b"1e999",
                    b"\xff\xfe",
                    b"\0",
                    b"<NA>",
                    str(chance.choice(NUMBERS)).encode(),
                ),
            )
            lines[place] = joint.join(words)
    return b"\n".join(lines)


def _bytes(data: bytes, chance: random.Random) -> bytes:
    spoiled = bytearray(data)
    if spoiled:
        spoiled[chance.randrange(len(spoiled))] = chance.randrange(256)
    return bytes(spoiled)
