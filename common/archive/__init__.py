"""The archive of a session: its compressed measurements in one HDF5 file; docs/archive.md."""

from common.archive.layout import BrokenArchive
from common.archive.log import Opening
from common.archive.reader import Archive, Part, Rows
from common.archive.writer import ArchiveWriter, Measured

__all__ = ["Archive", "ArchiveWriter", "BrokenArchive", "Measured", "Opening", "Part", "Rows"]
