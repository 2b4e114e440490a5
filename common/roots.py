"""What sessions may read and write: what lies in the folders that ``inputs`` and ``outputs`` name.

A path is asked for by somebody else, so it is not believed: it is walked from its root on, a name at a time,
from folder to folder by descriptors. A symbolic link on the way is followed by hand, and only to where a path
may lead. What comes of the walk is an open file, not a name that may mean something else a moment later.
Nothing outside is ever looked at, so that nobody can find out what is there.
"""

from __future__ import annotations

import io
import os
import stat
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

from common.protection import is_loopback
from common.settings import Settings

MOST_LINKS = 40
PSEUDO = ("/proc", "/sys")  # files there are the kernel's answers: about this process, among other things

_LOOK = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC  # a FIFO's writer is not waited for

Use = Literal["read", "write to"]


class NotAllowed(ValueError):
    """A path that sessions may not use. The message is one line that begins with the path."""


_NOT_THERE = (NotAllowed, FileNotFoundError, NotADirectoryError, PermissionError)


class _Root(NamedTuple):
    """A folder, as it was named and as it is called without links; ``only``: a single file in it."""

    named: Path
    folder: Path
    only: str | None


class _Reached(NamedTuple):
    """Where a path leads: a name that is no link, in an open folder; ``.``: the folder itself."""

    folder: int
    name: str
    real: Path


class Roots:
    """Folders and single files below which paths must lie.

    Parameters
    ----------
    places : iterable of str or Path, optional
        None: paths may lead anywhere. Relative ones count from the working folder.
    use : str
        What is done with the paths, as messages say it.
    """

    def __init__(self, places: Iterable[str | Path] | None, use: Use = "read") -> None:
        self._use: Use = use
        self._places = None if places is None else [Path(place).absolute() for place in places]

    @property
    def limited(self) -> bool:
        """Whether there are paths that must not be used."""
        return self._places is not None

    @property
    def places(self) -> list[str]:
        """The folders and files; none where paths may lead anywhere."""
        return [str(place) for place in self._places or ()]

    # ---- by name alone

    def named(self, path: str | Path) -> Path:
        """An absolute path by which a session may ask for something, as far as its name tells.

        Nothing of it is looked at, so it need not exist on this machine. Where all paths are allowed, a
        relative one counts from the working folder of the process that asks; else it is refused.

        Raises
        ------
        NotAllowed
            If it lies elsewhere, goes back by ``..``, or is relative.
        """
        text = _text(path)
        if text == "~" or text.startswith("~"):
            raise NotAllowed(f"{text!r:.200}: ~ stands for nobody's folder here; write the path out")
        if self._places is None:
            return Path(text).absolute()
        if not text.startswith("/"):
            raise NotAllowed(f"{text!r:.200}: give an absolute path{self._allowed()}")
        if ".." in text.split("/"):
            raise NotAllowed(f"{text!r:.200}: give a path without ..{self._allowed()}")
        self._from_root(text)
        return Path("/", *_parts(text))

    # ---- as it really is

    def open(self, path: str | Path) -> io.BufferedReader:
        """A file, open to be read.

        Raises
        ------
        NotAllowed
            If it, or a link on the way, leads to where sessions may not read, or it is no plain file.
        OSError
            If it is not there, or cannot be opened.
        """
        with self._reached(path) as reached:
            self._require_file(path, os.stat(reached.name, dir_fd=reached.folder, follow_symlinks=False))
            descriptor = os.open(reached.name, _READ | os.O_NOFOLLOW, dir_fd=reached.folder)
        try:
            self._require_file(path, os.fstat(descriptor))  # another one may have taken its place
            return io.BufferedReader(_Plain(descriptor, os.fspath(path)))
        except BaseException:
            os.close(descriptor)
            raise

    def status(self, path: str | Path) -> os.stat_result:
        """What ``os.stat`` says of a path; raises as ``open`` does, but for what is no plain file."""
        with self._reached(path) as reached:
            return os.stat(reached.name, dir_fd=reached.folder, follow_symlinks=False)

    def is_file(self, path: str | Path) -> bool:
        """Whether there is a plain file that may be read; what must not be read is as good as not there."""
        try:
            return stat.S_ISREG(self.status(path).st_mode)
        except _NOT_THERE:
            return False

    def is_folder(self, path: str | Path) -> bool:
        """Whether there is a folder that may be used."""
        try:
            return stat.S_ISDIR(self.status(path).st_mode)
        except _NOT_THERE:
            return False

    def listing(self, folder: str | Path) -> list[str]:
        """The names in a folder, sorted; raises as ``open`` does."""
        with self._reached(folder) as reached:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(reached.name, flags, dir_fd=reached.folder)
            try:
                return sorted(os.listdir(descriptor))
            finally:
                os.close(descriptor)

    def real(self, path: str | Path) -> Path:
        """A path without links, of something that need not be there yet.

        Raises
        ------
        NotAllowed
            If it, or a link on the way, leads elsewhere.
        OSError
            If a folder on the way cannot be looked into.
        """
        with self._reached(path, missing="keep") as reached:
            return reached.real

    def make_folder(self, path: str | Path) -> Path:
        """A folder that is there from now on, by its path without links; raises as ``real`` does."""
        with self._reached(path, missing="make") as reached:
            status = os.stat(reached.name, dir_fd=reached.folder, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                raise NotADirectoryError(20, "is a file; name a folder", os.fspath(path))
            return reached.real

    # ---- the walk

    def _allowed(self) -> str:
        if not self._places:
            return f"; no folder is named that sessions may {self._use}"
        return f" in a folder that sessions may {self._use}: {', '.join(map(str, self._places))}"

    def _outside(self, path: str | Path) -> NotAllowed:
        named = f": {', '.join(map(str, self._places))}" if self._places else ""
        return NotAllowed(
            f"{os.fspath(path)!r:.200}: is not in a folder that sessions may {self._use}{named}"
        )

    def _require_file(self, path: str | Path, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(21, "is a folder", os.fspath(path))
        if not stat.S_ISREG(status.st_mode):
            kind = _kind(status.st_mode)
            raise NotAllowed(f"{os.fspath(path)!r:.200}: is {kind}; only plain files can be read")
        if status.st_dev in _pseudo_devices():
            raise NotAllowed(f"{os.fspath(path)!r:.200}: is made by the kernel; only plain files can be read")

    def _roots(self) -> Iterator[_Root]:
        for place in self._places or ():
            real = Path(os.path.realpath(place))
            if real.is_file():
                yield _Root(place, real.parent, real.name)
            else:
                yield _Root(place, real, None)

    def _from_root(self, path: str) -> tuple[_Root, list[str]]:
        """The root that a path lies in by its name, and what of the path is below it."""
        if self._places is None:
            return _Root(Path("/"), Path("/"), None), _parts(path)
        parts = _parts(path)
        best: tuple[_Root, list[str]] | None = None
        for root in self._roots():
            whole = root.folder / root.only if root.only else root.folder
            for spelled in (_parts(os.fspath(root.named)), _parts(os.fspath(whole))):
                if parts[: len(spelled)] == spelled:
                    rest = parts[len(spelled) :]
                    below = [root.only, *rest] if root.only else rest
                    if best is None or len(below) < len(best[1]):
                        best = root, below
        if best is None:
            raise self._outside(path)
        return best

    @contextmanager
    def _reached(
        self, path: str | Path, missing: Literal["refuse", "keep", "make"] = "refuse"
    ) -> Generator[_Reached]:
        """Walk to what a path names."""
        text = _text(path)
        if not text.startswith("/"):
            if self.limited:
                raise self._outside(path)
            text = f"{os.getcwd()}/{text}"
        with ExitStack() as opened, _told(path):
            folders: list[int] = []
            names: list[str] = []
            pending: deque[str] = deque()

            def begin(at: str) -> _Root:
                root, rest = self._from_root(at)
                folders[:] = [os.open(root.folder, _LOOK)]
                opened.callback(os.close, folders[0])
                names[:] = []
                pending.extendleft(reversed(rest))
                return root

            root, rest = self._from_root(text)
            if missing != "refuse" and not root.folder.exists():  # a root that is yet to be made
                if ".." in rest:
                    raise self._outside(path)
                if missing == "keep":
                    yield _Reached(-1, "", Path(root.folder, *rest))
                    return
                root.folder.mkdir(parents=True, exist_ok=True)
            root, links = begin(text), 0
            while pending:
                name = pending.popleft()
                if name == "..":
                    if len(folders) > 1:
                        del folders[-1], names[-1]
                    elif self.limited:  # the parent of / is /
                        raise self._outside(path)
                    continue
                if root.only is not None and name != root.only:
                    raise self._outside(path)
                here = folders[-1]
                try:
                    status = os.stat(name, dir_fd=here, follow_symlinks=False)
                except FileNotFoundError:
                    if missing == "refuse" or ".." in pending:
                        raise
                    if missing == "keep":
                        yield _Reached(here, name, Path(root.folder, *names, name, *pending))
                        return
                    with suppress(FileExistsError):  # another process has just made it
                        os.mkdir(name, dir_fd=here)
                    status = os.stat(name, dir_fd=here, follow_symlinks=False)
                if stat.S_ISLNK(status.st_mode):
                    links += 1
                    if links > MOST_LINKS:
                        raise NotAllowed(f"{os.fspath(path)!r:.200}: too many links lead to one another")
                    target = os.readlink(name, dir_fd=here)
                    if target.startswith("/"):
                        root = begin(target)
                    else:
                        pending.extendleft(reversed(_parts(target)))
                elif pending or stat.S_ISDIR(status.st_mode):
                    folders.append(os.open(name, _LOOK | os.O_NOFOLLOW, dir_fd=here))
                    opened.callback(os.close, folders[-1])
                    names.append(name)
                else:
                    yield _Reached(here, name, Path(root.folder, *names, name))
                    return
            yield _Reached(folders[-1], ".", Path(root.folder, *names))


def _text(path: str | Path) -> str:
    text = os.fspath(path)
    if "\0" in text:
        raise NotAllowed(f"{text!r:.200}: no path: it holds a zero byte")
    return text


ANYWHERE = Roots(None)


def inputs_of(settings: Settings) -> Roots:
    """What sessions may read, by the settings of this process."""
    limits = settings.inputs or _exposed(settings)
    return Roots([*settings.inputs, *settings.outputs, settings.results] if limits else None)


def outputs_of(settings: Settings) -> Roots:
    """What sessions may write to, by the settings of this process."""
    limits = settings.outputs or _exposed(settings)
    return Roots([*settings.outputs, settings.results] if limits else None, "write to")


def _exposed(settings: Settings) -> bool:
    """Whether others than users of this machine may ask for paths."""
    return not is_loopback(settings.http_reached)


class _Plain(io.FileIO):
    """An open file that is called as it was asked for."""

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__(descriptor, "r")
        self.name = name


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


@contextmanager
def _told(path: str | Path) -> Generator[None]:
    """Errors of the system name the whole path, not the part of it that was looked at."""
    try:
        yield
    except OSError as error:
        error.filename = os.fspath(path)
        raise


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"))
    return next((kind for test, kind in kinds if test(mode)), "a device")


def _pseudo_devices() -> set[int]:
    found: set[int] = set()
    for folder in PSEUDO:
        try:
            found.add(os.stat(folder).st_dev)
        except OSError:
            continue
    return found
