"""Writes the seeds that the fuzzers start from: ``python -m tests.fuzz.seeds``. Small, one of every kind."""

from __future__ import annotations

import io
import struct
import tempfile
from pathlib import Path
from unittest.mock import patch

import msgspec
import numpy as np
import tifffile

from common.archive import ArchiveWriter, Measured, Opening
from common.archive.chunks import encode_chunk
from common.configuration import CodecSpec, Configuration
from common.flat_level import FlatLevel
from common.operators.spec import MaskSpec
from common.wire.codec import encode_array
from common.wire.messages import (
    Ack,
    ArrayHeader,
    Command,
    ConfigurationNotice,
    Credit,
    End,
    Event,
    Frames,
    Goodbye,
    Heartbeat,
    Hello,
    Message,
    Refusal,
    Register,
    Registered,
    Reject,
    Reply,
    Start,
    Telemetry,
    encode,
)
from reconstructor.archive import MAGIC
from reconstructor.journal import COLUMNS
from tests.fuzz.forging import chunks_of, deflated, of_kind, put_together, refill, taken_apart

CORPUS = Path(__file__).parent / "corpus"
SERIES = "6f0c1f7e-8a51-4b07-9df5-7bb8e1b9f0a1"


def headers() -> list[Message]:
    """One message of every kind."""
    payload = ArrayHeader(shape=[2, 4, 4], dtype="uint8", coding="packed", bits=5, offset=3)
    return [
        Start(
            series=SERIES,
            session="s",
            frames_expected=5,
            shape=(8, 8),
            dtype="uint8",
            pixel_size_angstrom=1.5,
            output="o",
            optics={"rlnOpticsGroup": 1},
            calibration={"gain": 1.0, "a": [1, {"b": None}]},
        ),
        ConfigurationNotice(configuration={"config_id": "c", "mask": {"kind": "coded_aperture", "seed": 3}}),
        Frames(
            series=SERIES,
            block=1,
            config_id="c",
            frame_ids=[4, 7],
            acquired_at=[1.7e9, 1.7e9 + 1],
            payload=payload,
            reference_ids=[7],
            metadata={"rlnImageName": ["1@s.mrcs", "2@s.mrcs"], "rlnDefocusU": [1e4, None]},
            reference_payload=ArrayHeader(shape=[1, 8, 8], dtype="uint8", coding="plain", bits=8),
            wanted=[7],
        ),
        End(series=SERIES, last_frame_id=4, acquired=5, acknowledged=4, lost=1),
        Heartbeat(),
        Refusal(reason="another version"),
        Hello(worker="w", host="h", pid=1),
        Credit(blocks=4),
        Ack(series=SERIES, block=1, frame_ids=[4, 7], credit=1),
        Reject(series=SERIES, block=1, frame_ids=[4], reason="not finite"),
        Goodbye(),
        Register(
            component="detector", name="d", host="h", pid=1, data_endpoint="tcp://h:1", details={"a": [1]}
        ),
        Registered(data_endpoint="tcp://h:1", recovery={"method": "wiener"}),
        Command(request="r", verb="pause", arguments={"a": 1}),
        Reply(request="r", ok=False, result={"a": None}, error="e", error_kind="conflict"),
        Telemetry(component="detector", name="d", values={"frames": {"acquired": 5}, "rate": 2.5}),
        Event(component="detector", name="d", kind="k", message="m", details={"a": {"b": [True, "x"]}}),
    ]


def payloads() -> list[tuple[str, ArrayHeader, bytes]]:
    """An array in every coding, and compressed ones of every form."""
    chance = np.random.default_rng(0)
    counts = chance.poisson(3, (4, 10, 10)).astype(np.int16)
    made = [
        (
            f"{values}-{coding}",
            counts,
            CodecSpec(values=values, coding=coding, step=0.5 * (values == "quantised")),
        )
        for values in ("integer", "quantised", "float16", "float32")
        for coding in ("plain", "packed", "bitshuffle-lz4", "bitshuffle-zstd")
        if not (coding == "packed" and values.startswith("float"))
    ]
    for coding in ("bitshuffle-lz4", "bitshuffle-zstd"):
        compressed = CodecSpec(values="integer", coding=coding)
        made += [
            (f"zeros-{coding}", np.zeros(100, np.uint8), compressed),
            (f"tiny-{coding}", np.arange(7, dtype=np.uint8), compressed),
            (f"negative-{coding}", np.arange(-200, 200, dtype=np.int64), compressed),
            (f"blocks-{coding}", np.repeat(np.array([0, 255, 3], np.uint8), 600_000), compressed),
        ]
    out: list[tuple[str, ArrayHeader, bytes]] = []
    for name, array, spec in made:
        values = array.astype(np.float32) if spec.values != "integer" else array
        header, buffer = encode_array(values, spec)
        out.append((name, header, bytes(memoryview(buffer).cast("B"))))
    return out


def mrc_file(mode: int, dtype: str, shape: tuple[int, int, int] = (2, 6, 5), extended: int = 0) -> bytes:
    """A small MRC stack."""
    header = bytearray(1024)
    struct.pack_into("<4i", header, 0, shape[2], shape[1], shape[0], mode)
    struct.pack_into("<3i3f", header, 28, shape[2], shape[1], 1, 7.5, 9.0, 1.5)
    struct.pack_into("<i", header, 92, extended)
    header[208:216] = b"MAP DD\0\0"
    return bytes(header) + bytes(extended) + np.arange(np.prod(shape)).astype(dtype).tobytes()


def tiff_files() -> dict[str, bytes]:
    """Small TIFF stacks, striped and tiled, in the codings that cameras write."""
    frames = np.arange(2 * 32 * 32).reshape(2, 32, 32)
    out: dict[str, bytes] = {}
    for name, dtype, options in (
        ("plain", "uint16", {}),
        ("deflate", "uint16", {"compression": "zlib", "predictor": True}),
        ("lzw", "uint8", {"compression": "lzw", "rowsperstrip": 8}),
        ("zstd", "float32", {"compression": "zstd"}),
        ("packbits", "uint8", {"compression": "packbits"}),
        ("tiled", "int16", {"tile": (16, 16), "compression": "zlib"}),
        ("half", "float16", {}),
        ("big", "uint8", {"bigtiff": True}),
        ("order", "uint16", {"byteorder": ">"}),
        ("bad-jpeg", "uint8", {"compression": "jpeg"}),
    ):
        file = io.BytesIO()
        extra = {key: options.pop(key) for key in ("bigtiff", "byteorder") if key in options}
        with tifffile.TiffWriter(file, **extra) as writer:
            for frame in frames.astype(dtype):
                writer.write(
                    frame, resolution=(1e8, 1e8), resolutionunit="CENTIMETER", metadata=None, **options
                )
        out[name] = file.getvalue()
    return out


NEW_STAR = """# version 30001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnVoltage #3
_rlnImagePixelSize #4
opticsGroup1 1 300.0 1.25

data_particles

loop_
_rlnImageName #1
_rlnDefocusU #2
_rlnOpticsGroup #3
000001@s.mrcs 10000.5 1
000003@s.mrcs 12000.5 1
"""
OLD_STAR = """data_

loop_
_rlnImageName
_rlnOriginX
_rlnVoltage
_rlnDetectorPixelSize
_rlnMagnification
1@s.mrcs 1.5 300 5 40000
2@s.mrcs -2 300 5 40000
"""
SIMPLE_STAR = "data_p\n_rlnImageName '2@s.mrcs'\n_rlnAnglePsi -12.5\n"


SIDE = 8  # of an archive's frames


def archived(*codecs: tuple[dict[str, object], CodecSpec], cut: bool = False, views: bool = False) -> bytes:
    """A small archive: five frames of each configuration, one of them whole, with and without metadata."""
    start = msgspec.structs.replace(headers()[0], shape=(SIDE, SIDE), calibration={})
    opening = Opening(
        software="cryoflux", created_at=1.7e9, start=msgspec.to_builtins(start), specification={}
    )
    # chunks of a few frames, so that a few frames make several
    with tempfile.TemporaryDirectory() as folder, patch("common.archive.writer.CHUNK_FRAMES", 3):
        path = Path(folder) / "a.h5"
        with ArchiveWriter.create(path, opening) as writer:
            for number, (mask, codec) in enumerate(codecs):
                _archive_part(writer, number, MaskSpec.model_validate(mask), codec)
            writer.finish(5 * len(codecs) + 3, lambda frame: f"worker {frame // 12} died", {"frames": {}})
        head, records, _ = taken_apart(path.read_bytes())
    kept = [record for record in records if views or record.header["record"] != "contents"]
    for record in of_kind(kept, "ending"):
        record.header["finished_at"] = 1.7e9
    if cut:
        kept = kept[: -1 - views]
    whole = put_together(head, kept)
    return whole[:-20] if cut else whole


def _archive_part(writer: ArchiveWriter, number: int, mask: MaskSpec, codec: CodecSpec) -> None:
    operator = mask.build((SIDE, SIDE))
    configuration = Configuration.create(
        mask,
        (SIDE, SIDE),
        "uint8" if codec.values == "integer" else "float32",
        codec,
        mask_hash=operator.mask_hash,
        compression_factor=operator.compression_factor,
        printed_compression_factor=operator.printed_compression_factor,
    )
    counts = np.random.default_rng(number).poisson(30, (5, *operator.measurement_shape))
    flat = np.zeros(1, np.int64)
    if codec.level:
        zeros = np.zeros((1, *operator.measurement_shape), np.int64)
        flat = FlatLevel(operator, codec.level).put_back(zeros)[0]
    kind = {"integer": "i2", "quantised": "i4"}.get(codec.values, "f4")
    frames = range(5 * number, 5 * number + 5)
    writer.append(
        Measured(
            configuration=configuration.model_dump(mode="json"),
            values=counts.astype(kind),
            scale=codec.step or 1.0,
            flat=flat,
            frame_ids=frames,
            acquired_at=[1.7e9 + frame / 7 for frame in frames],
            metadata={"rlnDefocusU": [1e4] * 5, "rlnImageName": [f"{k}@s.mrcs" for k in frames]}
            if number % 2
            else None,
        )
    )
    writer.add_reference(5 * number, np.full((SIDE, SIDE), number, np.uint8))


def spoiled(content: bytes, *changes: tuple[int, str, int]) -> bytes:
    """The same with some numbers in it replaced: (place, layout, number)."""
    out = bytearray(content)
    for place, layout, number in changes:
        struct.pack_into(layout, out, place, number)
    return bytes(out)


def codec_input(header: ArrayHeader, payload: bytes) -> bytes:
    """Length of the header, header, payload."""
    packed = msgspec.msgpack.encode(header)
    return len(packed).to_bytes(2, "little") + packed + payload


def write_findings() -> None:
    """What fuzzing and reading the code found, each refused since: a regression case under its name."""
    made = {name: (header, payload) for name, header, payload in payloads()}
    header, chunk = made["blocks-bitshuffle-zstd"]
    for name, changes in {
        "bad-plugin-compressor": ((2, "B", 0xD5), (22, "B", 36)),
        "bad-plugin-filter": ((16, "B", 36),),
        "bad-block-outside": ((32, "<i", 2**31 - 5),),
        "bad-block-of-two-gigabytes": ((8, "<i", 2**30),),
        "bad-delta-filter": ((17, "B", 3),),
    }.items():
        write("codec", name, codec_input(header, spoiled(chunk, *changes)))
    header, chunk = made["zeros-bitshuffle-zstd"]
    write("codec", "bad-uninitialised", codec_input(header, spoiled(chunk, (31, "B", 0x40))))
    huge = msgspec.structs.replace(header, shape=[1_999_999_999])
    write(
        "codec", "bad-two-gigabytes-of-32-bytes", codec_input(huge, spoiled(chunk, (4, "<i", 1_999_999_999)))
    )
    header, _ = made["float16-plain"]
    signed = msgspec.structs.replace(header, signed=True, coding="bitshuffle-lz4")
    write("codec", "bad-signed-floats", codec_input(signed, made["float16-bitshuffle-lz4"][1]))
    frames = headers()[2]
    for name, changes in {
        "bad-short-metadata": {"metadata": {"rlnImageName": ["1@s.mrcs"]}},
        "bad-slot-beyond-the-stack": {"frame_ids": [4, 2**40], "wanted": None, "reference_ids": []},
        "bad-frame-twice": {"frame_ids": [4, 4], "acquired_at": [1.0, 1.0]},
        "bad-no-frames": {"frame_ids": [], "acquired_at": []},
    }.items():
        write("messages", name, encode(msgspec.structs.replace(frames, **changes)))
    nest: object = 1
    for _ in range(900):
        nest = [nest]
    write("messages", "bad-nested", encode(msgspec.structs.replace(headers()[-1], details={"a": nest})))
    claims = encode(msgspec.structs.replace(headers()[-1], details={"a": 0}))[:-1]
    write("messages", "bad-four-billion-items", claims + bytes.fromhex("ddffffffff"))
    for name, text in {
        "bad-column-twice": OLD_STAR.replace("_rlnOriginX", "_rlnImageName"),
        "bad-stack-without-end": SIMPLE_STAR.replace("2@s.mrcs", "2@" + "s" * 400),
        "bad-index": OLD_STAR.replace("1@s.mrcs", "\u00b2@s.mrcs"),
        "bad-index-of-300-digits": OLD_STAR.replace("1@s.mrcs", "9" * 300 + "@s.mrcs"),
        "bad-origin": OLD_STAR.replace("1.5 300", "x 300"),
        "bad-no-pixel-size": OLD_STAR.replace("40000", "0"),
        "bad-wide": "data_\nloop_\n_rlnImageName\n" + "1 " * 5000 + "\n",
        "long-integer": SIMPLE_STAR.replace("-12.5", "9" * 60),
        "optics-without-rows": NEW_STAR.replace("opticsGroup1 1 300.0 1.25\n", ""),
    }.items():
        write("star", name, text.encode())
    plain = tiff_files()["plain"]
    (first,) = struct.unpack_from("<I", plain, 4)
    (tags,) = struct.unpack_from("<H", plain, first)
    chain = first + 2 + 12 * tags
    write("tiff", "bad-endless-pages", spoiled(plain, (chain, "<I", first)))
    write("tiff", "bad-page-outside", spoiled(plain, (chain, "<I", 2**32 - 1)))
    for number in range(tags):
        at = first + 2 + 12 * number
        (code,) = struct.unpack_from("<H", plain, at)
        if code == 256:
            write("tiff", "bad-width", spoiled(plain, (at + 2, "<H", 4), (at + 8, "<I", 2**31)))
            write("tiff", "bad-empty-claim", spoiled(plain, (at + 2, "<H", 4), (at + 8, "<I", 131_072)))
        if code == 273:
            write("tiff", "bad-strips", spoiled(plain, (at + 4, "<I", 2**31)))
    write("mrc", "bad-side", spoiled(mrc_file(2, "<f4"), (0, "<i", 2**31 - 1)))
    write("mrc", "bad-extended", spoiled(mrc_file(2, "<f4"), (92, "<i", 2**31 - 1)))
    write("cfx", "bad-header-of-exabytes", MAGIC + struct.pack("<IQ", 1, 2**63) + b"x")
    write("cfx", "bad-parts", MAGIC + struct.pack("<IQ", 2**31, 1) + b"x")
    line = ",".join(COLUMNS) + "\n1,c,4.0\n"
    write("journal", "bad-columns", line.replace("recovered_at", "then").encode())
    write("journal", "bad-bytes", line.encode() + b"1,\xff\xfe,x\n")


def write_archives_found(whole: bytes) -> None:
    """Archives whose records say what they should not, with right checksums; ``whole``: a good one."""

    def forged(
        name: str, kind: str, changes: dict[str, object], chunk: tuple[int, bytes] | None = None
    ) -> None:
        head, records, tail = taken_apart(whole)
        changed = of_kind(records, kind)[0]
        changed.header |= changes
        if chunk is not None:
            chunks = chunks_of(changed)
            chunks[chunk[0]] = chunk[1]
            refill(changed, chunks)
        write("archive", name, put_together(head, records, tail))

    start = of_kind(taken_apart(whole)[1], "opening")[0].header["start"]
    forged("bad-year", "opening", {"created_at": 1e300})
    forged("bad-frames-of-text", "opening", {"start": start | {"dtype": "S2000000000"}})
    forged("bad-frames-of-terabytes", "opening", {"start": start | {"shape": [131_072, 131_072]}})
    forged("bad-chunks-of-terabytes", "part", {"measurement_shape": [2**30, 2**10], "chunk_rows": 4096})
    forged("bad-kind-of-values", "part", {"dtype": "|O"})
    forged("bad-column", "part", {"columns": [["rlnImageName", "|S999999999"]]})
    forged("bad-row", "frames", {"row": 2**31 - 1})
    forged("negative-sizes", "frames", {"sizes": [-5, 5, 5]})
    bomb = deflated(bytes(1 << 20))
    forged("bomb", "frames", {}, (1, bomb))
    forged("bad-frame-number", "frames", {}, (1, encode_chunk(np.array([0, 1, 2**62]), 3)))
    forged("bad-balance", "ending", {"frames_acquired": 2**31 - 1})
    for name, acquired in (("bad-two-billion-lost", 2**31 - 1), ("sixty-million-lost", 60_000_000)):
        lost = [{"first": 5, "last": acquired - 1, "reason": "gone"}]
        forged(name, "ending", {"frames_acquired": acquired, "lost": lost})


def record(message: Message, *buffers: bytes) -> bytes:
    """One record of an archive."""
    parts = [encode(message), *buffers]
    return struct.pack(f"<I{len(parts)}Q", len(parts), *map(len, parts)) + b"".join(parts)


def main() -> None:
    """Write them all."""
    for message in headers():
        write("messages", type(message).__name__.lower(), encode(message))
    for name, header, payload in payloads():
        write("codec", name, codec_input(header, payload))
    codings = ("plain", "packed", "bitshuffle-lz4", "bitshuffle-zstd")
    kinds = ("integer", "float32", "float16", "quantised")
    dtypes = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")
    for name, header, payload in payloads():
        count = int(np.prod(header.shape))
        if len(payload) > 1500 or count % 100 or count > 25_500:
            continue
        flags = codings.index(header.coding) | kinds.index(header.values) << 2 | header.signed << 4 | 32
        fields = bytes((flags, dtypes.index(header.dtype), header.bits)) + (count // 100).to_bytes(
            3, "little"
        )
        fields += (
            bytes((100,)) + header.offset.to_bytes(5, "little", signed=True) + struct.pack("<f", header.step)
        )
        write("codec-fields", name, fields + payload)
    for mode, dtype in ((0, "i1"), (1, "<i2"), (2, "<f4"), (6, "<u2"), (12, "<f2")):
        write("mrc", f"mode-{mode}", mrc_file(mode, dtype))
    write("mrc", "extended", mrc_file(2, "<f4", extended=160))
    for name, content in tiff_files().items():
        write("tiff", name, content)
    coded: dict[str, object] = {"kind": "coded-aperture", "kernel_size": 4, "mask_count": 2}
    phase: dict[str, object] = {"kind": "phase-plate", "compression_factor": 4}
    packed = CodecSpec(values="integer", coding="packed", level=4)
    quantised = CodecSpec(values="quantised", coding="bitshuffle-zstd", step=0.5)
    whole = CodecSpec(values="float32", coding="plain")
    write("archive", "coded", archived((coded, packed)))
    write_archives_found(archived((coded, packed)))
    write("archive", "two-masks", archived((phase, quantised), (coded, packed)))
    write("archive", "floats", archived((phase, whole), (coded, packed), (phase, whole)))
    write("archive", "unmasked", archived(({"kind": "none"}, packed)))
    write("archive", "cut", archived((coded, packed), (phase, quantised), cut=True))
    write("archive", "as-written", archived((coded, packed), views=True))
    for name, text in (("new", NEW_STAR), ("old", OLD_STAR), ("simple", SIMPLE_STAR)):
        write("star", name, text.encode())
    start, notice, frames = headers()[:3]
    write("cfx", "whole", MAGIC + record(start) + record(notice) + record(frames, bytes(20), bytes(64)))
    write("cfx", "frames", MAGIC + record(frames, bytes(20), bytes(64)))
    line = "{n},c,4.0,r,wiener,w,1,1700000000.5,1700000001.5,1.0,0.9,0.2,,20,1,30.5,0.8,0.1,4.5,8,100,8,"
    lines = [",".join(COLUMNS), line.format(n=1), line.format(n=2), line.format(n=1), line.format(n=10**6)]
    write("journal", "whole", ("\n".join(lines) + '"{""rlnDefocusU"":1.5}"\n').encode())
    write_findings()


def write(target: str, name: str, content: bytes) -> None:
    """One seed."""
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


if __name__ == "__main__":
    main()
