"""HDF5's table of contents, written directly: groups, attributes, and datasets over chunks already on disk.

The HDF5 library keeps its table of contents scattered through the file and rewrites it in place, so a writer
that is killed, or a file that is cut, takes all of it along. Here it is written whole, behind data that never
move, and comes into force with the 48 bytes of the superblock. The structures are those of HDF5 1.8 (file
format specification 2.0 and 3.0): superblock 2, object headers 2, chunks in a version 1 B-tree; any HDF5
reader since 2008 knows them, and may also append to the file.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SUPERBLOCK_BYTES = 48
UNDEFINED = 0xFFFFFFFFFFFFFFFF
CHILDREN_PER_NODE = 64  # twice the rank of chunk B-trees, which is 32 where the superblock does not say
SHUFFLE, DEFLATE, FLETCHER32 = 2, 1, 3

_DATASPACE, _LINK_INFO, _DATATYPE, _FILL_VALUE, _LINK = 0x01, 0x02, 0x03, 0x05, 0x06
_LAYOUT, _GROUP_INFO, _FILTERS, _ATTRIBUTE = 0x08, 0x0A, 0x0B, 0x0C


class StoredChunk(NamedTuple):
    """Filtered bytes in the file, of the rows from ``row`` on."""

    row: int
    address: int
    size: int


@dataclass(frozen=True)
class Dataset:
    """An array that is given whole, and small."""

    value: NDArray[Any]
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class ChunkedDataset:
    """An array in chunks of ``chunk_rows`` whole rows, which ``chunks.encode_chunk`` has filtered."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    chunk_rows: int
    chunks: Sequence[StoredChunk]
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Group:
    """Named members."""

    members: Mapping[str, Group | Dataset | ChunkedDataset]
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])


def text(value: str) -> NDArray[Any]:
    """A string as HDF5 keeps it: UTF-8 of fixed length."""
    data = value.encode()
    return np.array(data, h5py.string_dtype("utf-8", max(1, len(data))))


def texts(values: Sequence[str]) -> NDArray[Any]:
    """Strings of one fixed length, (n,)."""
    data = [value.encode() for value in values]
    return np.array(data, h5py.string_dtype("utf-8", max([1, *map(len, data)])))


def encode_tree(root: Group, address: int) -> tuple[bytes, int]:
    """The whole table of contents for a place in the file, and the address of the root group in it."""
    page = _Page(address)
    place = _group(page, root)
    return bytes(page.data), place


def superblock(root: int, end: int) -> bytes:
    """The first bytes of the file: where the root group is, and where the file ends."""
    block = SIGNATURE + struct.pack("<BBBBQQQQ", 2, 8, 8, 0, 0, UNDEFINED, end, root)
    return block + struct.pack("<I", lookup3(block))


def lookup3(data: bytes) -> int:
    """Bob Jenkins' lookup3 hash, HDF5's checksum of metadata."""
    mask = 0xFFFFFFFF

    def rotated(value: int, by: int) -> int:
        return ((value << by) | (value >> (32 - by))) & mask

    a = b = c = (0xDEADBEEF + len(data)) & mask
    if not data:
        return c
    words = struct.unpack(f"<{-(-len(data) // 12) * 3}I", data + bytes(-len(data) % 12))
    for at in range(0, len(words) - 3, 3):
        a, b, c = (a + words[at]) & mask, (b + words[at + 1]) & mask, (c + words[at + 2]) & mask
        a = ((a - c) & mask) ^ rotated(c, 4)
        c = (c + b) & mask
        b = ((b - a) & mask) ^ rotated(a, 6)
        a = (a + c) & mask
        c = ((c - b) & mask) ^ rotated(b, 8)
        b = (b + a) & mask
        a = ((a - c) & mask) ^ rotated(c, 16)
        c = (c + b) & mask
        b = ((b - a) & mask) ^ rotated(a, 19)
        a = (a + c) & mask
        c = ((c - b) & mask) ^ rotated(b, 4)
        b = (b + a) & mask
    a, b, c = (a + words[-3]) & mask, (b + words[-2]) & mask, (c + words[-1]) & mask
    c = ((c ^ b) - rotated(b, 14)) & mask
    a = ((a ^ c) - rotated(c, 11)) & mask
    b = ((b ^ a) - rotated(a, 25)) & mask
    c = ((c ^ b) - rotated(b, 16)) & mask
    a = ((a ^ c) - rotated(c, 4)) & mask
    b = ((b ^ a) - rotated(a, 14)) & mask
    return ((c ^ b) - rotated(b, 24)) & mask


class _Page:
    """Bytes that will lie at ``address``."""

    def __init__(self, address: int) -> None:
        self._address = address
        self.data = bytearray()

    def place(self, data: bytes) -> int:
        """Add bytes; their address."""
        self.data += bytes(-(self._address + len(self.data)) % 8)
        address = self._address + len(self.data)
        self.data += data
        return address


def _member(page: _Page, member: Group | Dataset | ChunkedDataset) -> int:
    match member:
        case Group():
            return _group(page, member)
        case Dataset():
            return _dataset(page, member)
        case ChunkedDataset():
            return _chunked(page, member)


def _group(page: _Page, group: Group) -> int:
    places = {name: _member(page, member) for name, member in group.members.items()}
    messages = [
        (_LINK_INFO, struct.pack("<BBQQ", 0, 0, UNDEFINED, UNDEFINED)),
        # links stay in the header, however many there are
        (_GROUP_INFO, struct.pack("<BBHH", 0, 1, 0xFFFF, 0)),
        *((_LINK, _link(name, place)) for name, place in places.items()),
    ]
    return _object(page, messages, group.attributes)


def _link(name: str, address: int) -> bytes:
    data = name.encode()
    return struct.pack("<BBB", 1, 0, len(data)) + data + struct.pack("<Q", address)


def _dataset(page: _Page, dataset: Dataset) -> int:
    value = np.ascontiguousarray(dataset.value).reshape(dataset.value.shape)
    address = page.place(value.tobytes()) if value.nbytes else UNDEFINED
    messages = [
        (_DATASPACE, _dataspace(value.shape)),
        (_DATATYPE, _datatype(value.dtype)),
        (_FILL_VALUE, struct.pack("<BB", 3, 0x0A)),
        (_LAYOUT, struct.pack("<BBQQ", 3, 1, address, value.nbytes)),
    ]
    return _object(page, messages, dataset.attributes)


def _chunked(page: _Page, dataset: ChunkedDataset) -> int:
    chunk = (dataset.chunk_rows, *dataset.shape[1:])
    itemsize = dataset.dtype.itemsize
    dimensions = (*chunk, itemsize)
    index = _chunk_index(page, dataset.chunks, dimensions)
    shuffle = [(SHUFFLE, 1, [itemsize])] if itemsize > 1 else []
    messages = [
        (_DATASPACE, _dataspace(dataset.shape, unlimited=True)),
        (_DATATYPE, _datatype(dataset.dtype)),
        (_FILL_VALUE, struct.pack("<BB", 3, 0x0B)),
        (
            _LAYOUT,
            struct.pack(f"<BBBQ{len(dimensions)}I", 3, 2, len(dimensions), index, *dimensions),
        ),
        (_FILTERS, _filters([*shuffle, (DEFLATE, 1, [6]), (FLETCHER32, 0, [])])),
    ]
    return _object(page, messages, dataset.attributes)


def _filters(filters: Sequence[tuple[int, int, list[int]]]) -> bytes:
    parts = [struct.pack("<BB", 2, len(filters))]
    for identifier, flags, values in filters:
        parts.append(struct.pack(f"<HHH{len(values)}I", identifier, flags, len(values), *values))
    return b"".join(parts)


def _chunk_index(page: _Page, chunks: Sequence[StoredChunk], dimensions: tuple[int, ...]) -> int:
    """A B-tree over chunks that differ in their first row only; the address of its root."""
    if not chunks:
        return UNDEFINED
    zeros = [0] * (len(dimensions) - 1)

    def key(size: int, row: int, others: Sequence[int]) -> bytes:
        return struct.pack(f"<II{len(dimensions)}Q", size, 0, row, *others)

    ordered = sorted(chunks)
    level = 0
    entries = [(key(chunk.size, chunk.row, zeros), chunk.address) for chunk in ordered]
    beyond = key(0, ordered[-1].row + dimensions[0], dimensions[1:])
    while True:
        groups = [entries[at : at + CHILDREN_PER_NODE] for at in range(0, len(entries), CHILDREN_PER_NODE)]
        size = 24 + (CHILDREN_PER_NODE + 1) * len(beyond) + 8 * CHILDREN_PER_NODE
        size += -size % 8  # so that the nodes of a level lie one behind the other
        first = page.place(b"")
        places = [first + k * size for k in range(len(groups))]
        for k, group in enumerate(groups):
            left = places[k - 1] if k else UNDEFINED
            right = places[k + 1] if k + 1 < len(groups) else UNDEFINED
            node = b"TREE" + struct.pack("<BBHQQ", 1, level, len(group), left, right)
            node += b"".join(start + struct.pack("<Q", child) for start, child in group)
            node += groups[k + 1][0][0] if k + 1 < len(groups) else beyond
            page.place(node.ljust(size, b"\0"))
        if len(groups) == 1:
            return first
        entries = [(group[0][0], place) for group, place in zip(groups, places, strict=True)]
        level += 1


def _object(page: _Page, messages: Sequence[tuple[int, bytes]], attributes: Mapping[str, Any]) -> int:
    every = [*messages, *((_ATTRIBUTE, _attribute(name, value)) for name, value in attributes.items())]
    body = b"".join(struct.pack("<BHB", kind, len(data), 0) + data for kind, data in every)
    header = b"OHDR" + struct.pack("<BBI", 2, 0x02, len(body)) + body
    return page.place(header + struct.pack("<I", lookup3(header)))


def _attribute(name: str, value: Any) -> bytes:
    array = text(value) if isinstance(value, str) else np.asarray(value)
    label = name.encode() + b"\0"
    datatype, dataspace = _datatype(array.dtype), _dataspace(array.shape)
    sizes = struct.pack("<BBHHHB", 3, 0, len(label), len(datatype), len(dataspace), 0)
    return sizes + label + datatype + dataspace + array.tobytes()


def _datatype(dtype: np.dtype[Any]) -> bytes:
    """As the HDF5 library encodes it, without the two bytes before the message."""
    return bytes(h5py.h5t.py_create(dtype, logical=True).encode())[2:]


def _dataspace(shape: tuple[int, ...], *, unlimited: bool = False) -> bytes:
    header = struct.pack("<BBBB", 2, len(shape), int(unlimited), int(bool(shape)))
    dimensions = struct.pack(f"<{len(shape)}Q", *shape)
    most = struct.pack(f"<{len(shape)}Q", UNDEFINED, *shape[1:]) if unlimited else b""
    return header + dimensions + most
