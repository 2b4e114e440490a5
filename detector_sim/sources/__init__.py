"""Where frames come from: MRC and TIFF files, a STAR file's particles, folders, a pattern, the simulator."""

from pathlib import Path

from common.session import ArchiveSource, FileSource, PatternSource, SourceSpec, SpecimenSource
from detector_sim.sources.base import BadFile, FrameBatch, Source, SourceError
from detector_sim.sources.folder import FolderSource, WatchedFolderSource
from detector_sim.sources.pattern import Pattern, frame_number
from detector_sim.sources.stack import StackSource
from detector_sim.sources.star import StarSource

__all__ = ["BadFile", "FrameBatch", "Source", "SourceError", "frame_number", "open_source"]


def open_source(spec: SourceSpec, *, first_file_seconds: float = 30.0) -> Source:
    """Open what ``spec`` describes, ready to be read.

    Parameters
    ----------
    spec
        Of any kind.
    first_file_seconds
        A watched folder that is still empty: how long to wait for its first file.

    Raises
    ------
    SourceError
        One line that says what cannot be used, where, and what to do.
    """
    match spec:
        case PatternSource():
            return Pattern(spec)
        case FileSource():
            return _open_path(spec, first_file_seconds)
        case ArchiveSource():
            raise SourceError("source.kind: an archive has measurements, not frames; it is replayed")
        case SpecimenSource():
            # torch and its slicing libraries take seconds to import: only who simulates pays
            from detector_sim.sources.specimen import SpecimenFrames

            return SpecimenFrames(spec.specimen)


def _open_path(spec: FileSource, first_file_seconds: float) -> Source:
    path, pixel_size = Path(spec.path), spec.pixel_size_angstrom
    if not path.exists():
        raise SourceError(f"{path}: no such file or folder; check the path")
    if path.is_dir():
        if spec.watch:
            return WatchedFolderSource(path, pixel_size, first_file_seconds=first_file_seconds)
        return FolderSource(path, pixel_size)
    if spec.watch:
        raise SourceError(f"{path}: is a file; only a folder can be watched")
    if path.suffix.lower() == ".star":
        return StarSource(path, pixel_size)
    return StackSource(path, pixel_size)
