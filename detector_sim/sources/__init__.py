"""Where frames come from: MRC and TIFF files, a STAR file's particles, folders, a pattern, the simulator."""

import stat
from pathlib import Path

from common.roots import ANYWHERE, NotAllowed, Roots
from common.session import ArchiveSource, FileSource, PatternSource, SourceSpec, SpecimenSource
from detector_sim.sources.base import BadFile, FrameBatch, Source, SourceError
from detector_sim.sources.folder import FolderSource, WatchedFolderSource
from detector_sim.sources.pattern import Pattern, frame_number
from detector_sim.sources.stack import StackSource

__all__ = ["BadFile", "FrameBatch", "Source", "SourceError", "frame_number", "open_source"]


def open_source(spec: SourceSpec, inputs: Roots = ANYWHERE, *, first_file_seconds: float = 30.0) -> Source:
    """Open what ``spec`` describes, ready to be read.

    Parameters
    ----------
    spec
        Of any kind.
    inputs
        What of the file system may be read.
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
            return _open_path(spec, inputs, first_file_seconds)
        case ArchiveSource():
            raise SourceError("source.kind: an archive has measurements, not frames; it is replayed")
        case SpecimenSource():
            # torch and its slicing libraries take seconds to import: only who simulates pays
            from detector_sim.sources.specimen import SpecimenFrames

            return SpecimenFrames(spec.specimen, inputs)


def _open_path(spec: FileSource, inputs: Roots, first_file_seconds: float) -> Source:
    path, pixel_size = Path(spec.path), spec.pixel_size_angstrom
    try:
        status = inputs.status(path)
    except NotAllowed as error:
        raise SourceError(f"source.path: {error}") from error
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError(f"{path}: no such file or folder; check the path") from None
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    if stat.S_ISDIR(status.st_mode):
        if spec.watch:
            return WatchedFolderSource(path, pixel_size, inputs, first_file_seconds=first_file_seconds)
        return FolderSource(path, pixel_size, inputs)
    if spec.watch:
        raise SourceError(f"{path}: is a file; only a folder can be watched")
    if path.suffix.lower() == ".star":
        # pandas takes a while to import: only who needs it pays
        from detector_sim.sources.star import StarSource

        return StarSource(path, pixel_size, inputs)
    return StackSource(path, pixel_size, inputs)
