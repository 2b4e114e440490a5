"""Sources give every frame once, in order, with its metadata; what they cannot use they name in one line."""

import warnings
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
import tifffile

from common.session import FileSource, PatternSource
from detector_sim.sources import FrameBatch, Source, SourceError, frame_number, open_source
from detector_sim.sources.folder import WatchedFolderSource


def _images(count: int = 5, side: int = 16, dtype: type = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 100, (count, side, side + 8)).astype(dtype)


def _mrc(path: Path, images: np.ndarray, pixel: float = 1.31) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # statistics of NaN
        file = mrcfile.new(path, images, overwrite=True)
    with file:
        file.voxel_size = pixel
    return path


def _drain(source: Source, count: int = 3) -> list[FrameBatch]:
    batches = []
    while (batch := source.read(count)) is not None:
        assert 1 <= len(batch) <= count
        assert batch.frames.dtype == source.dtype
        assert batch.frames.shape[1:] == source.shape
        for values in (batch.metadata or {}).values():
            assert len(values) == len(batch)
        batches.append(batch)
    return batches


def _frames(source: Source, count: int = 3) -> np.ndarray:
    return np.concatenate([batch.frames for batch in _drain(source, count)])


def _open(path: Path, **options: object) -> Source:
    return open_source(FileSource(path=str(path), **options))


# ---- pattern


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("shape", [(128, 128), (9, 13), (1100, 40)])
def test_pattern_frames_tell_their_number(shape: tuple[int, int], dtype: str):
    with open_source(PatternSource(shape=shape, dtype=dtype)) as source:
        batches = [source.read(1), source.read(300), source.read(2)]
        frames = np.concatenate([b.frames for b in batches if b is not None])
        assert frames.dtype == source.dtype == np.dtype(dtype)
        assert [frame_number(frame) for frame in frames] == list(range(303))
        assert source.frame_count is None
    with open_source(PatternSource(shape=shape, dtype=dtype)) as again:
        batch = again.read(303)
        assert batch is not None
        np.testing.assert_array_equal(batch.frames, frames)


def test_pattern_numbers_do_not_wrap():
    frame = np.zeros((8, 8), np.uint8)
    frame[0, :8] = list((123_456_789_012).to_bytes(8, "little"))
    assert frame_number(frame) == 123_456_789_012


def test_pattern_is_as_noisy_as_counting_frames():
    with open_source(PatternSource()) as source:
        batch = source.read(16)
        assert batch is not None
        body = batch.frames[:, 1:].astype(float)
        assert body.mean() == pytest.approx(20, rel=0.01)
        assert body.var() == pytest.approx(20, rel=0.02)


# ---- MRC


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.float32, np.uint16, np.float16])
def test_mrc_stack_is_read_in_order_and_native_dtype(tmp_path: Path, dtype: type):
    images = _images(dtype=dtype) - (50 if np.dtype(dtype).kind == "i" else 0)
    with _open(_mrc(tmp_path / "a.mrcs", images.astype(dtype))) as source:
        assert source.dtype == (np.float32 if dtype is np.float16 else dtype)
        assert source.shape == (16, 24)
        assert source.frame_count == 5
        assert source.pixel_size_angstrom == pytest.approx(1.31)
        assert source.optics["rlnImagePixelSize"] == source.pixel_size_angstrom
        batches = _drain(source)
        np.testing.assert_array_equal(np.concatenate([b.frames for b in batches]), images)
        names = [name for batch in batches for name in (batch.metadata or {})["rlnImageName"]]
        assert names == [f"{n:06d}@a.mrcs" for n in range(1, 6)]
        assert source.read(1) is None


def test_big_endian_mrc_comes_out_in_the_machines_order(tmp_path: Path):
    images = _images(dtype=np.int16)
    with mrcfile.new(tmp_path / "a.mrcs") as file:
        file.set_data(images.astype(">i2"))
    with _open(tmp_path / "a.mrcs", pixel_size_angstrom=1) as source:
        assert source.dtype.isnative
        np.testing.assert_array_equal(_frames(source), images)


def test_mrc_of_several_sections_is_a_stack_and_of_one_a_frame(tmp_path: Path):
    with _open(_mrc(tmp_path / "many.mrc", _images(4))) as source:
        assert source.frame_count == 4
    with _open(_mrc(tmp_path / "one.mrc", _images(1)[0])) as source:
        assert source.frame_count == 1


def test_header_without_map_stamp_is_read_where_the_sizes_fit(tmp_path: Path):
    path, images = _mrc(tmp_path / "a.mrcs", _images()), _images()
    content = bytearray(path.read_bytes())
    content[208:216] = bytes(8)  # map stamp and machine stamp
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with _open(path) as source:
            np.testing.assert_array_equal(_frames(source), images)
    path.write_bytes(content + b"more")
    with pytest.raises(SourceError, match="not an MRC file"):
        _open(path)


def test_pixel_size_of_zero_is_one_with_a_warning_unless_given(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = _mrc(tmp_path / "a.mrcs", _images(), pixel=0)
    with _open(path) as source:
        assert source.pixel_size_angstrom == 1
    assert "states no pixel size" in caplog.text
    caplog.clear()
    with _open(path, pixel_size_angstrom=2.5) as source:
        assert source.pixel_size_angstrom == 2.5
    assert not caplog.text


# ---- TIFF


@pytest.mark.parametrize("compression", [None, "lzw", "zstd"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiff_stack_is_read_whatever_its_coding(tmp_path: Path, dtype: type, compression: str | None):
    images = _images(dtype=dtype)
    tifffile.imwrite(tmp_path / "a.tif", images, compression=compression, photometric="minisblack")
    with _open(tmp_path / "a.tif") as source:
        assert source.dtype == dtype
        assert source.frame_count == 5
        np.testing.assert_array_equal(_frames(source), images)


def test_tiff_pixel_size_comes_from_plausible_resolution_tags(tmp_path: Path):
    per_centimetre = 1e8 / 1.06
    tifffile.imwrite(
        tmp_path / "a.tif", _images()[0], resolution=(per_centimetre,) * 2, resolutionunit="CENTIMETER"
    )
    tifffile.imwrite(tmp_path / "b.tif", _images()[0], resolution=(72, 72), resolutionunit="INCH")
    with _open(tmp_path / "a.tif") as source:
        assert source.pixel_size_angstrom == pytest.approx(1.06, rel=1e-3)
    with _open(tmp_path / "b.tif") as source:
        assert source.pixel_size_angstrom == 1


# ---- STAR


OPTICS = pd.DataFrame([{
    "rlnOpticsGroup": 1, "rlnOpticsGroupName": "opticsGroup1", "rlnVoltage": 300.0,
    "rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.1, "rlnImagePixelSize": 1.2, "rlnImageSize": 24,
}])  # fmt: skip


def _star(path: Path, names: list[str], optics: pd.DataFrame | None = OPTICS, **columns: list) -> Path:
    particles = pd.DataFrame({"rlnImageName": names, **columns})
    tables = {"particles": particles} if optics is None else {"optics": optics, "particles": particles}
    starfile.write(tables, path, overwrite=True)
    return path


def test_star_particles_come_in_file_order_from_several_stacks(tmp_path: Path):
    project = tmp_path / "project"
    (project / "Extract").mkdir(parents=True)
    a, b = _images(6, seed=1), _images(4, seed=2)
    _mrc(project / "Extract" / "a.mrcs", a)
    _mrc(project / "Extract" / "b.mrcs", b)
    order = [(b, 1), (a, 0), (a, 1), (a, 2), (b, 0), (a, 5), (a, 3), (b, 3), (b, 2), (a, 4)]
    names = [f"{index + 1:06d}@Extract/{'a' if stack is a else 'b'}.mrcs" for stack, index in order]
    star = _star(  # paths are as seen from the project, the file lies deeper
        project / "Extract" / "job.star", names, rlnDefocusU=list(range(10)),
        rlnMicrographName=[f"{n}" for n in range(10)], rlnOpticsGroup=[1] * 10,
    )  # fmt: skip
    for count in (1, 3, 10, 99):
        with _open(star) as source:
            assert source.frame_count == 10
            batches = _drain(source, count)
            frames = np.concatenate([batch.frames for batch in batches])
            np.testing.assert_array_equal(frames, [stack[index] for stack, index in order])
            metadata = [batch.metadata or {} for batch in batches]
            assert [n for m in metadata for n in m["rlnImageName"]] == names
            assert [n for m in metadata for n in m["rlnDefocusU"]] == list(range(10))
            assert metadata[0]["rlnMicrographName"][0] == "0"  # a name stays text
            assert source.pixel_size_angstrom == 1.2
            assert source.optics["rlnVoltage"] == 300.0


def test_old_star_columns_come_out_as_the_new_ones(tmp_path: Path):
    _mrc(tmp_path / "a.mrcs", _images(2))
    star = _star(
        tmp_path / "a.star", ["1@a.mrcs", "2@a.mrcs"], None, rlnVoltage=[200.0] * 2,
        rlnSphericalAberration=[2.0] * 2, rlnAmplitudeContrast=[0.07] * 2, rlnMagnification=[50000] * 2,
        rlnDetectorPixelSize=[7.5] * 2, rlnOriginX=[2.0, -1.0], rlnOriginY=[0.0, 4.0],
        rlnAnglePsi=[10.0, 20.0],
    )  # fmt: skip
    with _open(star) as source:
        batch = source.read(2)
        assert batch is not None
        assert source.pixel_size_angstrom == pytest.approx(1.5)
        known = {"rlnVoltage": 200.0, "rlnSphericalAberration": 2.0, "rlnAmplitudeContrast": 0.07}
        assert known.items() <= source.optics.items()
        metadata = batch.metadata or {}
        assert metadata["rlnOriginXAngst"] == [3.0, -1.5]
        assert metadata["rlnOriginYAngst"] == [0.0, 6.0]
        assert metadata["rlnAnglePsi"] == [10.0, 20.0]
        assert not {"rlnOriginX", "rlnVoltage", "rlnMagnification"} & metadata.keys()


def test_star_without_a_pixel_size_takes_the_stacks(tmp_path: Path):
    _mrc(tmp_path / "a.mrcs", _images(2), pixel=1.7)
    star = _star(tmp_path / "a.star", ["1@a.mrcs", "2@a.mrcs"], None)
    with _open(star) as source:
        assert source.pixel_size_angstrom == pytest.approx(1.7)
    with _open(star, pixel_size_angstrom=2.0) as source:
        assert source.pixel_size_angstrom == 2.0


# ---- folder


def test_folder_is_read_by_name_and_bad_files_are_told(tmp_path: Path):
    images = _images(6)
    for index in (2, 0, 1):
        _mrc(tmp_path / f"m{index}.mrc", images[index])
    _mrc(tmp_path / "m3.mrcs", images[3:5])
    tifffile.imwrite(tmp_path / "m5.tif", images[5])
    _mrc(tmp_path / "m1b.mrc", _images(1, side=20)[0])
    _mrc(tmp_path / "m1c.mrc", _images(1, dtype=np.int16)[0])
    (tmp_path / "m1d.mrc").write_bytes(b"junk")
    (tmp_path / "notes.txt").write_text("not a micrograph")
    with _open(tmp_path) as source:
        assert source.frame_count == 6
        assert {Path(bad.path).name for bad in source.bad_files} == {"m1b.mrc", "m1c.mrc", "m1d.mrc"}
        batches = _drain(source)
        np.testing.assert_array_equal(np.concatenate([batch.frames for batch in batches]), images)
        names = [name for batch in batches for name in (batch.metadata or {})["rlnMicrographName"]]
        assert names == ["m0.mrc", "m1.mrc", "m2.mrc", "m3.mrcs", "m3.mrcs", "m5.tif"]


def test_folder_skips_a_file_that_turns_out_bad_while_reading(tmp_path: Path):
    images = _images(3, dtype=np.uint16)
    for index in range(3):
        tifffile.imwrite(tmp_path / f"m{index}.tif", images[index], compression="zstd")
    content = bytearray((tmp_path / "m1.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "m1.tif") as file:
        start, length = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    content[start : start + length] = bytes(length)
    (tmp_path / "m1.tif").write_bytes(content)
    with _open(tmp_path) as source:
        assert source.frame_count == 3
        np.testing.assert_array_equal(_frames(source), images[[0, 2]])
        assert source.frame_count == 2
        (bad,) = source.bad_files
        assert "m1.tif: page 1 cannot be decoded" in bad.reason


def _read_until(source: Source, wanted: Callable[[list[np.ndarray]], bool]) -> list[np.ndarray]:
    """Frames read until they, or the source, are as wanted; every wait in between is the source's own."""
    frames: list[np.ndarray] = []
    for _ in range(200):
        batch = source.read(10)
        assert batch is not None  # a watched folder never ends
        frames.extend(batch.frames)
        if wanted(frames):
            return frames
    raise AssertionError(f"it never came: {len(frames)} frames, bad files {source.bad_files}")


def test_watched_folder_takes_new_files_and_passes_over_bad_ones(tmp_path: Path):
    images = _images(3)
    _mrc(tmp_path / "z.mrc", images[0])
    with WatchedFolderSource(tmp_path, rest_seconds=0, patience_seconds=0.2) as source:
        assert source.frame_count is None
        np.testing.assert_array_equal(_read_until(source, bool), images[:1])
        nothing = source.read(10)
        assert nothing.frames.shape == (0, 16, 24)
        (tmp_path / "junk.mrc").write_bytes(b"x" * 2000)
        _mrc(tmp_path / "other.mrc", _images(1, side=20)[0])
        assert not _read_until(source, lambda _: len(source.bad_files) == 2)
        _mrc(tmp_path / "a.mrc", images[1])  # taken though its name comes before z
        np.testing.assert_array_equal(_read_until(source, bool), images[1:2])
        assert sorted(Path(bad.path).name for bad in source.bad_files) == ["junk.mrc", "other.mrc"]
        _mrc(tmp_path / "junk.mrc", images[2])  # written again, whole this time
        np.testing.assert_array_equal(_read_until(source, bool), images[2:3])


def test_watched_folder_waits_until_a_file_is_complete(tmp_path: Path):
    images = _images(2)
    _mrc(tmp_path / "a.mrc", images[0])
    content = _mrc(tmp_path.parent / "whole.mrc", images[1]).read_bytes()
    with WatchedFolderSource(tmp_path, rest_seconds=0, patience_seconds=600) as source:
        _read_until(source, bool)
        (tmp_path / "b.mrc").write_bytes(content[:-10])
        for _ in range(4):
            assert len(source.read(10)) == 0
        with (tmp_path / "b.mrc").open("ab") as file:
            file.write(content[-10:])
        np.testing.assert_array_equal(_read_until(source, bool), images[1:])
        assert source.bad_files == []


def test_watched_folder_that_stays_empty_is_told_in_one_line(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("no micrograph")
    with pytest.raises(SourceError, match=r"no readable micrograph came within 0\.1 s") as caught:
        open_source(FileSource(path=str(tmp_path), watch=True), first_file_seconds=0.1)
    assert "\n" not in str(caught.value)


# ---- what cannot be used


def _truncated(folder: Path) -> Path:
    path = _mrc(folder / "a.mrcs", _images())
    path.write_bytes(path.read_bytes()[:-100])
    return path


def _with_header(folder: Path, offset: int, value: int) -> Path:
    path = _mrc(folder / "a.mrcs", _images())
    content = bytearray(path.read_bytes())
    content[offset : offset + 4] = value.to_bytes(4, "little", signed=True)
    path.write_bytes(content)
    return path


def _bytes(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def _rgb(folder: Path) -> Path:
    tifffile.imwrite(folder / "a.tif", np.zeros((16, 16, 3), np.uint8), photometric="rgb")
    return folder / "a.tif"


def _truncated_tiff(folder: Path) -> Path:
    tifffile.imwrite(folder / "a.tif", _images(1, side=64)[0])
    path = folder / "a.tif"
    path.write_bytes(path.read_bytes()[:-1000])
    return path


def _complex(folder: Path) -> Path:
    return _mrc(folder / "a.mrc", _images(1)[0].astype(np.complex64))


def _double_tiff(folder: Path) -> Path:
    tifffile.imwrite(folder / "a.tif", _images(1, dtype=np.float64)[0])
    return folder / "a.tif"


def _star_naming(folder: Path, *names: str) -> Path:
    _mrc(folder / "a.mrcs", _images(5))
    _mrc(folder / "wide.mrcs", _images(2, side=20))
    return _star(folder / "a.star", list(names))


def _star_without_images(folder: Path) -> Path:
    starfile.write(pd.DataFrame({"rlnCoordinateX": [1.0, 2.0]}), folder / "a.star")
    return folder / "a.star"


def _two_optics(folder: Path) -> Path:
    optics = pd.concat([OPTICS, OPTICS.assign(rlnOpticsGroup=2, rlnImagePixelSize=1.4)])
    _mrc(folder / "a.mrcs", _images(2))
    return _star(folder / "a.star", ["1@a.mrcs", "2@a.mrcs"], optics, rlnOpticsGroup=[1, 2])


BAD_INPUTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda f: f / "no.mrcs", "no such file"),
    "empty": (lambda f: _bytes(f, "a.mrcs", b""), "the file is empty"),
    "short": (lambda f: _bytes(f, "a.mrcs", b"MAP "), "not an MRC file"),
    "garbage": (lambda f: _bytes(f, "a.mrc", bytes(range(256)) * 20), "not an MRC file"),
    "text": (lambda f: _bytes(f, "a.mrc", b"Hello, world! " * 200), "not an MRC file"),
    "other kind": (lambda f: _bytes(f, "a.jpeg", b"image"), "not a kind of file that is known"),
    "truncated": (_truncated, r"truncated: \d+ of \d+ bytes"),
    "complex": (_complex, r"MRC mode 4 \(a complex transform\) holds no images"),
    "4 bits": (lambda f: _with_header(f, 12, 101), "MRC mode 101"),
    "unknown mode": (lambda f: _with_header(f, 12, 77), "MRC mode 77"),
    "zero sections": (lambda f: _with_header(f, 8, 0), "24 x 16 x 0: no pixels"),
    "garbage TIFF": (lambda f: _bytes(f, "a.tif", b"not a TIFF at all" * 100), "not a TIFF file"),
    "RGB TIFF": (_rgb, "in colour"),
    "truncated TIFF": (_truncated_tiff, "truncated"),
    "double TIFF": (_double_tiff, "pixels of type float64"),
    "folder without": (lambda f: f, "no micrographs"),
    "folder of junk": (lambda f: _bytes(f, "a.mrc", b"junk").parent, "none of its 1 files can be used"),
    "no STAR": (lambda f: f / "no.star", "no such file"),
    "not a STAR": (lambda f: _bytes(f, "a.star", b"\x00\x01binary"), "a.star"),
    "STAR without images": (_star_without_images, "no column rlnImageName"),
    "STAR missing stack": (lambda f: _star_naming(f, "1@a.mrcs", "1@b.mrcs"), r"row 2: b\.mrcs is neither"),
    "STAR missing index": (lambda f: _star_naming(f, "1@a.mrcs", "6@a.mrcs"), "row 2 names image 6"),
    "STAR index zero": (lambda f: _star_naming(f, "0@a.mrcs", "1@a.mrcs"), "row 1 names image 0"),
    "STAR bad name": (lambda f: _star_naming(f, "x@a.mrcs", "1@a.mrcs"), "not of the form index@stack"),
    "STAR unlike stacks": (lambda f: _star_naming(f, "1@a.mrcs", "1@wide.mrcs"), "must be alike"),
    "STAR two pixel sizes": (_two_optics, "rlnImagePixelSize is 1.2 and 1.4"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_is_refused_in_one_line_that_names_it(tmp_path: Path, name: str):
    make, message = BAD_INPUTS[name]
    path = make(tmp_path)
    with pytest.raises(SourceError, match=message) as caught:
        _open(path)
    told = str(caught.value)
    assert "\n" not in told
    assert str(path) in told
    assert len(told) < 400


def test_a_file_cannot_be_watched(tmp_path: Path):
    with pytest.raises(SourceError, match="only a folder can be watched"):
        _open(_mrc(tmp_path / "a.mrc", _images()), watch=True)


def test_pixels_that_are_not_numbers_come_as_they_are(tmp_path: Path):
    images = _images()
    images[3, 2, 1], images[4, 0, 0] = np.nan, np.inf
    with _open(_mrc(tmp_path / "a.mrcs", images)) as source:
        np.testing.assert_array_equal(_frames(source), images)


def test_reading_after_close_gives_nothing_of_a_file(tmp_path: Path):
    source = _open(_mrc(tmp_path / "a.mrcs", _images()))
    batch = source.read(2)
    source.close()
    source.close()
    assert batch is not None
    np.testing.assert_array_equal(batch.frames, _images()[:2])  # what was read stays


# ---- real data


def test_real_apoferritin_micrographs(data: Path, tmp_path: Path):
    averages = sorted((data / "micrographs").glob("*_avg.mrc"))
    for path in averages:
        (tmp_path / path.name).symlink_to(path)
    with _open(tmp_path) as source:
        assert (source.shape, source.dtype, source.frame_count) == ((1200, 1240), np.uint16, 10)
        assert source.pixel_size_angstrom == 1.5
        batches = _drain(source, 8)
        assert sum(len(batch) for batch in batches) == 10
        np.testing.assert_array_equal(batches[0].frames[0], mrcfile.read(averages[0]))


def test_real_old_style_star_carries_pixel_size_and_ctf(data: Path):
    with _open(data / "particles" / "empiar10076_7.star") as source:
        assert source.pixel_size_angstrom == pytest.approx(1.31, abs=1e-4)
        assert (source.shape, source.frame_count) == ((320, 320), 7)
        assert source.optics["rlnVoltage"] == 300
        assert source.optics["rlnAmplitudeContrast"] == 0.07
        (batch,) = _drain(source, 7)
        metadata = batch.metadata or {}
        assert metadata["rlnDefocusU"][0] == 15301.1
        assert metadata["rlnDefocusAngle"] == [5.28] * 7
        np.testing.assert_array_equal(batch.frames, mrcfile.read(data / "particles" / "empiar10076_7.mrcs"))


def test_real_stack_without_map_stamp(data: Path):
    with _open(data / "particles" / "ribosome_subtilts.star") as source:
        assert source.pixel_size_angstrom == pytest.approx(1.96)
        assert source.frame_count == 219
        batches = _drain(source, 64)
        assert sum(len(batch) for batch in batches) == 219
        assert (batches[0].metadata or {})["rlnAngleRot"][0] == 113.1491
